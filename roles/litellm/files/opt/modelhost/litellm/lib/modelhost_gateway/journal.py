"""Lines for the journal that a client causes: one line each whatever it holds, and not too many."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LOG = logging.getLogger("modelhost.gateway")

#: Lines of one kind within one window; the rest is counted and said once.
LINES, SECONDS = 20, 60.0


class Journal:
    """Writes lines about requests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._windows: dict[str, tuple[float, int]] = {}

    def line(self, kind: str, text: str, *values: object) -> None:
        """text with %s for each value, which is shown as ASCII with quotes: no value can begin a line."""
        began, count = self._windows.get(kind, (0.0, 0))
        now = self.clock()
        if not count or now - began >= SECONDS:
            if count > LINES:
                LOG.warning("%s: %d more like this were not written down", kind, count - LINES)
            began, count = now, 0
        self._windows[kind] = (began, count + 1)
        if count < LINES:
            LOG.warning("%s: " + text, kind, *(ascii(str(value)[:200]) for value in values))
