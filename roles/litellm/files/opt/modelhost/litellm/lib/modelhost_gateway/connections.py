"""A connection that sends no whole request is closed.

Uvicorn, on which LiteLLM runs, ends an idle connection only after an answer: one that never sends a request, or
its headers byte by byte, would be held for ever.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

#: Seconds until the headers of a request must have come, twice this at most.
HEADER_SECONDS = float(os.environ.get("MODELHOST_HEADER_TIMEOUT", 30))


def waiting(protocol: Any) -> bool:
    """Whether nothing is being answered on this connection."""
    cycle = getattr(protocol, "cycle", None)
    return cycle is None or bool(cycle.response_complete)


def guard(protocol_class: Any, seconds: float = HEADER_SECONDS) -> None:
    """Have each new connection of this class looked after."""
    made = protocol_class.connection_made

    def connection_made(self: Any, transport: Any) -> None:
        made(self, transport)
        loop = asyncio.get_running_loop()

        def look(before: Any) -> None:
            if transport.is_closing():
                return
            # The same finished request as at the last look, or none at all: the time was enough for another.
            if waiting(self) and self.cycle is before:
                transport.close()
            else:
                loop.call_later(seconds, look, self.cycle)

        loop.call_later(seconds, look, None)

    protocol_class.connection_made = connection_made
