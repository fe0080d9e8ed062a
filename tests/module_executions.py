#!/usr/bin/env python3
"""How many modules a run of site.yml executes that changes nothing, held against a checked-in table.

./run molecule converge && ./run molecule idempotence     count (.config/molecule/config.yml)
.cache/venv/bin/python tests/module_executions.py         show what was counted against the table
.cache/venv/bin/python tests/module_executions.py --write make the table again; `most` is for people to change
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
#: What testbed/callback/module_executions.py leaves of Molecule's runs of scenario `default`.
COUNTED = ROOT / ".cache/reports/module-executions/default"
TABLE = ROOT / "tests/hosts/site/module_executions.yml"
HEAD = """\
---
# Module executions of a run of site.yml that changes nothing, on the host of scenario `default`: by role (or by
# playbook, where no role runs) and task. The sum of a role and `most` are limits; how a role spreads its sum is not.
# Made by tests/module_executions.py --write; only `most` is written by hand.
"""
#: Executions by role and task.
Counts = dict[str, dict[str, int]]


def last_no_change_run(folder: Path) -> dict[str, Any] | None:
    """The newest run of site.yml on the present host that was no check and changed nothing; None without one."""
    for file in sorted(folder.glob("*.json"), reverse=True):
        run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if run["playbook"] == "testbed_create.yml":
            return None
        quiet = not any(host["changed"] or host["failures"] or host["unreachable"] for host in run["hosts"].values())
        if run["playbook"] == "site.yml" and not run["check"] and quiet:
            return run
    return None


def counts(run: dict[str, Any]) -> Counts:
    """By role and task; what executes nothing is left out."""
    return {
        name: {task: sum(modules.values()) for task, modules in role["tasks"].items()}
        for name, role in run["roles"].items()
        if role["tasks"]
    }


def listed(tasks: dict[str, int]) -> str:
    return "\n".join(f"      {count} × {task}" for task, count in tasks.items())


def grown(seen: Counts, table: dict[str, Any]) -> list[str]:
    """Roles that execute more than the table allows, each with what it added and all that it does."""
    problems = []
    for role, tasks in seen.items():
        before = table["roles"].get(role, {})
        now, allowed = sum(tasks.values()), sum(before.values())
        if now > allowed:
            more = {task: count - before.get(task, 0) for task, count in tasks.items() if count > before.get(task, 0)}
            problems.append(
                f"{role} executes {now} modules in a run that changes nothing; {allowed} are allowed.\n"
                f"    More than before:\n{listed(more)}\n    All of them:\n{listed(tasks)}"
            )
    total = sum(sum(tasks.values()) for tasks in seen.values())
    if total > table["most"]:
        by_role = {role: sum(tasks.values()) for role, tasks in seen.items()}
        problems.append(f"All roles together execute {total} modules; {table['most']} are allowed:\n{listed(by_role)}")
    return problems


def written(seen: Counts, most: int) -> str:
    """The table as it is checked in."""
    return HEAD + yaml.safe_dump({"most": most, "roles": seen}, sort_keys=False, allow_unicode=True, width=120)


def main(arguments: list[str]) -> int:
    """Entry point."""
    run = last_no_change_run(COUNTED)
    if run is None:
        print(f"{COUNTED} holds no run that changed nothing: ./run molecule converge && ./run molecule idempotence")
        return 1
    seen = counts(run)
    total = sum(sum(tasks.values()) for tasks in seen.values())
    table: dict[str, Any] = {"most": total, "roles": {}}
    if TABLE.exists():
        table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    if arguments == ["--write"]:
        TABLE.write_text(written(seen, table["most"]), encoding="utf-8")
        table["roles"] = seen
    problems = grown(seen, table)
    print("\n".join(problems) or f"{total} of {table['most']} executions")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
