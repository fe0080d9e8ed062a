# MIT licence (see LICENSE)
"""The gateway's counters of each user, as lines to print. Runs on the gateway's host, mostly as root.

The file belongs to the gateway's account. So it is opened without following a link or waiting for a pipe, and only what
has the form of names and numbers is shown.
"""

from __future__ import annotations

import json
import os
import re
import stat
from typing import Any

#: More is not the gateway's.
LARGEST = 4 << 20
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def read(path: str) -> Any:
    """The file's content; OSError or ValueError if it is not one to read."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), encoding="utf-8") as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise ValueError("it is no file")
        text = handle.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError("it is too large")
    return json.loads(text)


def time(value: Any) -> str:
    """A time as it stands in the file; `?` for what is none."""
    return value if isinstance(value, str) and TIME.fullmatch(value) else "?"


def number(value: Any) -> str:
    """A number with its thousands apart; `?` for what is none."""
    return format(value, ",") if isinstance(value, int) and not isinstance(value, bool) else "?"


def lines(path: str) -> list[str]:
    """One line for each user. None at all where nothing has been counted yet."""
    try:
        content = read(path)
        users = {name: entry for name, entry in content["users"].items() if NAME.fullmatch(name)}
        rows = [
            "  %s: %s requests, %s refused by a limit; tokens: %s of prompts, %s of answers; last at %s"
            % (
                name,
                *(number(entry[key]) for key in ("requests", "refused", "prompt_tokens", "completion_tokens")),
                time(entry.get("last")),
            )
            for name, entry in sorted(users.items())
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return ["The users' counters cannot be read from %s (%s)." % (path, type(error).__name__)]
    heading = "Users since %s, as written down at %s:" % (time(content.get("since")), time(content.get("written")))
    return [heading, *rows] if rows else []
