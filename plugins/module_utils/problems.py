# MIT licence (see LICENSE)
"""One form for everything that is wrong with an inventory or a host, and its report.

A problem is a dictionary: host, variable, value (None: not shown), problem, fix, and level
(`error` stops the run, `warning` is shown).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Characters of a value that a report shows.
WIDTH = 120


def problem(host: str, variable: str, value: Any, why: str, fix: str, level: str = "error") -> dict[str, Any]:
    """One problem."""
    return {"host": host, "variable": variable, "value": value, "problem": why, "fix": fix, "level": level}


def shown(value: Any) -> str:
    """A value as the report shows it."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= WIDTH else text[:WIDTH] + "…"


def report(found: list[dict[str, Any]]) -> str:
    """All problems as text, those of several hosts in one paragraph."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for item in found:
        value = "" if item.get("value") is None else shown(item["value"])
        key = (item["variable"], value, item["problem"], item["fix"])
        grouped.setdefault(key, []).append(item["host"])
    lines = []
    for (variable, value, why, fix), hosts in grouped.items():
        subject = f"{variable} = {value}" if value else variable
        lines += [f"{', '.join(dict.fromkeys(hosts))}: {subject}", f"    {why}", f"    → {fix}"]
    return "\n".join(lines)


def verdict(
    result: dict[str, Any], found: list[dict[str, Any]], promise: str, sound: str, warn: Callable[[str], None]
) -> dict[str, Any]:
    """How a check ends: warnings are shown, errors fail it with all of them and what did not happen (`promise`)."""
    for item in found:
        if item["level"] == "warning":
            warn(report([item]))
    errors = [item for item in found if item["level"] == "error"]
    if errors:
        message = f"{len(errors)} problem(s){promise}\n" + report(errors)
        return {**result, "failed": True, "changed": False, "problems": len(errors), "msg": message}
    return {**result, "changed": False, "msg": sound}
