"""How the tests wait: for events, and for nothing with a limit that a slow or busy machine could meet."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: Seconds after which something hangs. It is the one limit of all waits: whatever ends by itself ends long before, also
#: on a machine that has ten other things to do.
HANGS = 1200


def wait_until(condition: Callable[[], Any], what: str | Callable[[], str], pause: float = 0.2) -> Any:
    """The first true value of the condition. One that can no longer become true should fail by itself."""
    ends = time.monotonic() + HANGS
    while not (value := condition()):
        if time.monotonic() > ends:  # clock: the limit for what hangs
            raise AssertionError(f"not within {HANGS} s: {what if isinstance(what, str) else what()}")
        time.sleep(pause)  # clock: between two looks
    return value
