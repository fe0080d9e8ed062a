"""What a run costs: how modules are counted, and how two revisions are shown beside each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark.playbook_report import Cost, by_role, summary, wrong

ROOT = Path(__file__).resolve().parents[2]
LOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Look
      ansible.builtin.stat: {path: "{{ folder }}"}
"""
PLAYBOOK = """\
- hosts: all
  gather_facts: false
  roles: [files]
  tasks:
    - name: Look
      ansible.builtin.stat: {path: /}
    - name: Skip
      ansible.builtin.stat: {path: /}
      when: false
    - name: Say
      ansible.builtin.debug: {msg: on the controller}
"""
ROLE = """\
- name: Write files
  ansible.builtin.copy: {content: "{{ item }}", dest: "{{ folder }}/{{ inventory_hostname }}-{{ item }}", mode: "0600"}
  loop: [a, b]
- name: Ask until it is true
  ansible.builtin.command: test -e /nothing/is/here
  register: asked
  until: asked is success
  retries: 2
  delay: 0
  failed_when: false
  changed_when: false
"""


def all_counted(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Runs on two hosts that are this machine, in one command: of site.yml and of further playbooks."""
    (folder / "roles/files/tasks").mkdir(parents=True, exist_ok=True)
    (folder / "roles/files/tasks/main.yml").write_text(ROLE)
    (folder / "site.yml").write_text(PLAYBOOK)
    local = ["-c", "local", "-e", f"ansible_python_interpreter={sys.executable}", "-e", f"folder={folder}"]
    subprocess.run(
        ["ansible-playbook", "-i", "one,two,", *local, "site.yml", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "testbed/callback"),
            "MODELHOST_EXECUTIONS": str(folder / "counted"),
        },
    )
    files = sorted((folder / "counted").iterdir())
    runs: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
    for file in files:
        file.unlink()
    return runs


def counted(folder: Path, *arguments: str) -> dict[str, Any]:
    (run,) = all_counted(folder, *arguments)
    return run


def test_playbooks_of_one_command_are_counted_each_for_itself(tmp_path: Path) -> None:
    (tmp_path / "look.yml").write_text(LOOK)
    site, look = all_counted(tmp_path, "look.yml")
    assert (site["playbook"], look["playbook"]) == ("site.yml", "look.yml")
    assert site["roles"]["files"]["executions"] == 10
    assert {name: role["tasks"] for name, role in look["roles"].items() if role["tasks"]} == {
        "look.yml": {"Look": {"stat": 2}}
    }


def test_what_is_executed_is_counted_by_role_and_task(tmp_path: Path) -> None:
    run = counted(tmp_path)
    assert (run["playbook"], run["check"]) == ("site.yml", False)
    assert run["hosts"]["one"]["changed"] == run["hosts"]["two"]["changed"] == 1
    # Two hosts and two items; a copy looks at the target before. What is asked again counts once.
    assert run["roles"]["files"]["tasks"] == {
        "Write files": {"stat": 4, "copy": 4},
        "Ask until it is true": {"command": 2},
    }
    assert run["roles"]["files"]["executions"] == 10
    # Skipped tasks and those of the controller execute nothing.
    assert run["roles"]["site.yml"]["tasks"] == {"Look": {"stat": 2}}
    # Each execution is a command on the connection at least; what is asked again is one as well.
    assert run["roles"]["files"]["commands"] >= 10 + 2 * 2
    assert run["roles"]["files"]["seconds"] > 0
    assert run["roles"]["files"]["cpu"] > 0
    again = counted(tmp_path, "--check")
    assert again["check"]
    assert again["roles"]["files"]["tasks"]["Write files"] == {"stat": 4, "file": 4}


# --- tables ----------------------------------------------------------------------------------------------------------


def cost(side: str, turn: int, seconds: float, executions: int) -> Cost:
    roles = {"base": {"executions": executions, "seconds": seconds - 1, "cpu": 2.0}}
    roles |= {"extra": {"executions": 1, "seconds": 1.0, "cpu": 1.0}} if side == "this" else {}
    return Cost(side, 2, "no-change", turn, seconds, seconds / 2, {"roles": roles})


COSTS = [cost("this", 0, 10, 4), cost("old", 0, 40, 9), cost("old", 1, 80, 9), cost("this", 1, 30, 4)]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_revisions_are_divided_turn_by_turn() -> None:
    row = cells(summary(COSTS, ["this", "old"]).splitlines()[2])
    # Medians of each side, per host, and the medians of 10/40 and 30/80.
    assert row == ["no change", "2", "5", "20", "10", "10", "9", "60", "30", "30", "0.56", "0.31", "0.31"]
    assert len(cells(summary(COSTS[:1], ["this"]).splitlines()[2])) == 6


def test_a_role_that_one_revision_lacks_is_no_mistake() -> None:
    rows = {cells(line)[0]: cells(line)[1:] for line in by_role(COSTS, ["this", "old"]).splitlines()[2:]}
    assert rows["base"] == ["4", "19.0", "2.0", "9", "59.0", "2.0", "0.44", "0.32"]
    assert rows["extra"] == ["1", "1.0", "1.0", "0", "0.0", "0.0", "–", "–"]


@pytest.mark.parametrize(
    ("kind", "host", "reason"),
    [
        ("first", {"changed": 3}, ""),
        ("no-change", {"changed": 0}, ""),
        ("no-change", {"changed": 1}, "something changed on one"),
        ("check", {"changed": 1}, "something changed on one"),
        ("first", {"changed": 3, "failures": 1}, "it failed on one"),
        ("first", {"unreachable": 1}, "it failed on one"),
    ],
)
def test_a_run_that_is_not_what_it_should_be_is_not_measured(kind: str, host: dict[str, int], reason: str) -> None:
    assert wrong(kind, {"hosts": {"one": {"changed": 0, "failures": 0, "unreachable": 0, **host}}}) == reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hosts", "0"], "0: say how many hosts, from 1 to 50, for example 1,2"),
        (["--hosts", "1,x"], "1,x: say how many hosts"),
        (["--only", "nothing"], "nothing: there is no such run; there are first, no-change, check"),
        (["--runs", "0"], "0: say how often, 1 or more"),
        (["--against", "no-such-revision"], "--against no-such-revision: this checkout knows no such revision"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_made(arguments: list[str], message: str) -> None:
    command = [sys.executable, str(ROOT / "tests/benchmark/playbook.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr


def test_a_benchmark_that_does_not_exist_is_refused() -> None:
    done = subprocess.run([str(ROOT / "run"), "benchmark", "playbok"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no benchmark playbok" in done.stderr
    assert "playbook, weights, cpu-settings" in done.stderr
