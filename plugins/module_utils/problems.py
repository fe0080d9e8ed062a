# MIT licence (see LICENSE)
"""One form for everything that is wrong with an inventory or a host, and its report.

A problem is a dictionary: host, variable, value (None: not shown), problem, fix, and level
(`error` stops the run, `warning` is shown).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

#: Characters of a value that a report shows.
WIDTH = 120
#: Names whose value is nobody's business: HF_TOKEN, api_key, master.password.
SECRET = re.compile(r"(?:^|[_.-])(?:key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)

#: What to do with a key that stands in an inventory as plain text.
HOW_TO_VAULT = (
    "run `ansible-vault encrypt_string --stdin-name key`, type the key, and put what it prints in the key's place; or "
    "leave `key` out, and the gateway makes one that no file of the inventory holds"
)


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return bool(SECRET.search(name))


def problem(host: str, variable: str, value: Any, why: str, fix: str, level: str = "error") -> dict[str, Any]:
    """One problem. The value of what is called a key or password is not shown."""
    value = None if is_secret(variable) else value
    return {"host": host, "variable": variable, "value": value, "problem": why, "fix": fix, "level": level}


def nearest(name: Any, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The name that was probably meant, or nothing."""
    found = difflib.get_close_matches(str(name), list(names), n=1, cutoff=cutoff)
    return found[0] if found else ""


def hint(name: Any, names: Iterable[str]) -> str:
    """` (did you mean `x`?)` or nothing."""
    found = nearest(name, names)
    return f" (did you mean `{found}`?)" if found else ""


def some(names: Iterable[str], more: str, most: int = 12) -> str:
    """Names for a sentence; of many only the first, and where the others are (`more`)."""
    listed = list(names)
    rest = f", … ({len(listed)} in {more})" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest


def shown(value: Any) -> str:
    """A value as the report shows it: on one line, shortened, without the password of an address or a secret in it."""
    if isinstance(value, dict):
        value = {name: "…" if is_secret(str(name)) else item for name, item in value.items()}
    text = repr(value) if isinstance(value, str) else str(value)
    text = re.sub(r"//[^/@\s]+@", "//…@", text).replace("\n", " ")
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
    errors = [item for item in found if item["level"] == "error"]
    warnings = [item for item in found if item["level"] == "warning"]
    # Those of several hosts in one paragraph, each paragraph once.
    for text in dict.fromkeys(report([other for other in warnings if same(other, item)]) for item in warnings):
        warn(text)
    if errors:
        message = f"{len(errors)} problem(s){promise}\n" + report(errors)
        return {**result, "failed": True, "changed": False, "problems": len(errors), "msg": message}
    return {**result, "changed": False, "msg": sound}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two problems differ in the host alone."""
    return all(one[key] == other[key] for key in ("variable", "value", "problem", "fix"))
