"""The guard of what a run that changes nothing costs: how growth is told, and which run counts."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from module_executions import TABLE, counts, grown, last_no_change_run, written

TABLE_OF_TWO = {"most": 6, "roles": {"base": {"Look": 1, "Write": 2}, "engine": {"Ask": 2}}}


def test_a_role_may_spread_its_sum_as_it_likes() -> None:
    assert grown({"base": {"Look": 1, "Write": 2}, "engine": {"Ask": 2}}, TABLE_OF_TWO) == []
    assert grown({"base": {"Other": 3}, "engine": {}}, TABLE_OF_TWO) == []


def test_a_role_that_grows_is_told_with_what_it_added() -> None:
    (problem,) = grown({"base": {"Look": 1, "Write": 2}, "engine": {"Ask": 2, "Ask again": 1}}, TABLE_OF_TWO)
    assert problem == (
        "engine executes 3 modules in a run that changes nothing; 2 are allowed.\n"
        "    More than before:\n      1 × Ask again\n    All of them:\n      2 × Ask\n      1 × Ask again"
    )


def test_a_role_that_the_table_does_not_know_and_the_sum_are_told() -> None:
    unknown, total = grown({"base": {"Look": 3}, "engine": {"Ask": 2}, "new": {"Do": 2}}, TABLE_OF_TWO)
    assert unknown.startswith("new executes 2 modules in a run that changes nothing; 0 are allowed.")
    assert total.startswith("All roles together execute 7 modules; 6 are allowed:\n      3 × base")


def test_the_table_is_what_its_program_writes_and_holds_its_own_limit() -> None:
    text = TABLE.read_text(encoding="utf-8")
    table = yaml.safe_load(text)
    assert text == written(table["roles"], table["most"])
    assert grown(table["roles"], table) == []


def test_the_newest_run_that_changed_nothing_counts(tmp_path: Path) -> None:
    def keep(name: str, playbook: str, changed: int, check: bool = False) -> None:
        host = {"changed": changed, "failures": 0, "unreachable": 0}
        run = {"playbook": playbook, "check": check, "hosts": {"one": host}, "roles": {}, "name": name}
        (tmp_path / f"{name}.json").write_text(json.dumps(run))

    assert last_no_change_run(tmp_path) is None
    keep("1", "testbed_create.yml", 1)
    keep("2", "site.yml", 0, check=True)
    keep("3", "site.yml", 5)
    assert last_no_change_run(tmp_path) is None
    keep("4", "site.yml", 0)
    keep("5", "uninstall.yml", 0)
    keep("6", "site.yml", 1)
    assert (last_no_change_run(tmp_path) or {})["name"] == "4"
    # What was counted on a host that is gone says nothing about this one.
    keep("7", "testbed_create.yml", 1)
    assert last_no_change_run(tmp_path) is None


def test_what_a_run_executed_is_added_up_by_task() -> None:
    tasks = {"Write": {"stat": 4, "file": 4}, "Look": {"stat": 1}}
    assert counts({"roles": {"base": {"tasks": tasks}, "report": {"tasks": {}}}}) == {"base": {"Write": 8, "Look": 1}}
