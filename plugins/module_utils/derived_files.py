# MIT licence (see LICENSE)
"""What programs make from files, by the files' times. Goes to hosts: Python 3.8, standard library.

A rule is a dictionary: path (what is made), of (what it is made from), command (arguments).
"""

from __future__ import annotations

import os
from typing import Any, Callable


def newest(paths: list[str]) -> int:
    """When the last of these files and folders was changed, in ns; 0 where none is there. A folder's files count."""
    times = [0]
    for path in paths:
        try:
            times.append(os.lstat(path).st_mtime_ns)
            with os.scandir(path) as entries:
                times += [entry.stat(follow_symlinks=False).st_mtime_ns for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            continue
    return max(times)


def stale(rule: dict[str, Any]) -> bool:
    """Whether what is made is missing or older than what it is made from. From nothing, nothing is made."""
    try:
        made = os.stat(rule["path"]).st_mtime_ns
    except FileNotFoundError:
        made = 0
    return newest(rule["of"]) > made


def concerns(rule: dict[str, Any], changed: list[str]) -> bool:
    """Whether one of these changed files is what a rule makes something from."""
    return any(path == source or os.path.dirname(path) == source for path in changed for source in rule["of"])


def derive(
    rules: list[dict[str, Any]], changed: list[str], check: bool, run: Callable[[list[str]], Any]
) -> tuple[list[str], str]:
    """(what was made anew, or would be; what went wrong). `changed` are files that this run changed, or would."""
    made: list[str] = []
    for rule in rules:
        # Both: a run that broke off is known by the times, and two changes within one tick of the clock by their names.
        if not (stale(rule) or concerns(rule, changed)):
            continue
        if check:
            made.append(rule["path"])
            continue
        code, said = run(rule["command"])
        if code != 0:
            return made, "%s: %s failed: %s" % (rule["path"], " ".join(rule["command"]), said.strip())
        if stale(rule) and os.path.exists(rule["path"]):
            # It was right as it is, or this clock is behind the one that wrote its sources.
            os.utime(rule["path"], ns=(newest(rule["of"]),) * 2)
        made.append(rule["path"])
    return made, ""
