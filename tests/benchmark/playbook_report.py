"""What was measured of a playbook, and its tables. See README.md."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

#: Kinds of a run by the word on the command line, in the order in which they are measured.
KINDS = {
    "first": "first run, package cache warm",
    "no-change": "no change",
    "check": "check mode, no change",
}


@dataclass(frozen=True)
class Cost:
    """One run: `run` is what testbed/callback/module_executions.py wrote."""

    side: str
    hosts: int
    kind: str
    turn: int
    seconds: float
    cpu: float
    run: dict[str, Any]

    @property
    def executions(self) -> int:
        """Of modules, on all hosts."""
        return sum(role["executions"] for role in self.run["roles"].values())


def wrong(kind: str, run: dict[str, Any]) -> str:
    """Why a run is not of this kind, or ''."""
    bad = [host for host, seen in run["hosts"].items() if seen["failures"] or seen["unreachable"]]
    if bad:
        return f"it failed on {', '.join(bad)}"
    changed = [host for host, seen in run["hosts"].items() if seen["changed"]]
    if changed and kind != "first":
        return f"something changed on {', '.join(changed)}"
    return ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose source is aligned; all columns but the first hold numbers."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def text(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths)) + "|"
    return "\n".join([text(lines[0]), rule, *(text(line) for line in lines[1:])])


def of(costs: Iterable[Cost], **wanted: Any) -> list[Cost]:
    """Those with these values, in the order of turns."""
    found = [cost for cost in costs if all(getattr(cost, key) == value for key, value in wanted.items())]
    return sorted(found, key=lambda cost: cost.turn)


def middle(costs: Iterable[Cost], value: Callable[[Cost], float]) -> float:
    """The median."""
    return statistics.median(value(cost) for cost in costs)


def ratio(ours: float, theirs: float) -> str:
    """Ours by theirs; a dash where there is nothing to divide by."""
    return f"{ours / theirs:.2f}" if theirs else "–"


def turn_by_turn(ours: Sequence[Cost], theirs: Sequence[Cost], value: Callable[[Cost], float]) -> str:
    """The median of the ratios of the runs that followed each other: these met the same machine."""
    return f"{statistics.median(value(one) / value(other) for one, other in zip(ours, theirs)):.2f}"


def summary(costs: Sequence[Cost], sides: Sequence[str]) -> str:
    """A row for each kind of run and number of hosts; the first side is divided by the second."""
    head = ["run", "hosts"]
    for side in sides:
        head += [f"{side}: executions", "seconds", "per host", "CPU s"]
    if len(sides) == 2:
        head += ["executions ×", "seconds ×", "CPU ×"]
    rows = []
    for kind in KINDS:
        for hosts in sorted({cost.hosts for cost in costs if cost.kind == kind}):
            row = [KINDS[kind], str(hosts)]
            both = [of(costs, kind=kind, hosts=hosts, side=side) for side in sides]
            for own in both:
                seconds = middle(own, lambda cost: cost.seconds)
                row += [f"{middle(own, lambda cost: cost.executions):.0f}", f"{seconds:.0f}", f"{seconds / hosts:.0f}"]
                row.append(f"{middle(own, lambda cost: cost.cpu):.0f}")
            if len(sides) == 2:
                row.append(turn_by_turn(both[0], both[1], lambda cost: cost.executions))
                row.append(turn_by_turn(both[0], both[1], lambda cost: cost.seconds))
                row.append(turn_by_turn(both[0], both[1], lambda cost: cost.cpu))
            rows.append(row)
    return table(head, rows)


def by_role(costs: Sequence[Cost], sides: Sequence[str]) -> str:
    """A row for each role or playbook; the costs are of one kind and one number of hosts."""
    head = ["role"]
    for side in sides:
        head += [f"{side}: executions", "seconds", "CPU s"]
    if len(sides) == 2:
        head += ["executions ×", "seconds ×"]
    names = list(dict.fromkeys(name for cost in costs for name in cost.run["roles"]))
    rows = []
    for name in names:
        found = []
        for side in sides:
            roles = [cost.run["roles"].get(name, {}) for cost in of(costs, side=side)]
            found.append(
                [statistics.median(role.get(key, 0) for role in roles) for key in ("executions", "seconds", "cpu")]
            )
        row = [name]
        for executions, seconds, cpu in found:
            row += [f"{executions:.0f}", f"{seconds:.1f}", f"{cpu:.1f}"]
        if len(sides) == 2:
            row += [ratio(found[0][0], found[1][0]), ratio(found[0][1], found[1][1])]
        rows.append(row)
    return table(head, rows)


def report(costs: Sequence[Cost], sides: Sequence[str], words: str) -> str:
    """The whole of it as Markdown."""
    parts = [words, summary(costs, sides)]
    for kind, title in KINDS.items():
        for hosts in sorted({cost.hosts for cost in costs if cost.kind == kind}):
            parts.append(f"## By role: {title}, {hosts} host{'s' if hosts > 1 else ''}")
            parts.append(by_role(of(costs, kind=kind, hosts=hosts), sides))
    return "\n\n".join(parts) + "\n"
