"""Which engines of a replicated model are passed over for a while.

LiteLLM's own cool-down also counts answers 401, 404, 408 and 429, for which a client can be the cause, and can leave
a model without any engine. Here only an engine counts that cannot be reached or fails itself, for all its names at
once, and one is always left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def engine(info: Any) -> str:
    """The engine of a deployment: its id is <host>/<instance>/<name>."""
    return "/".join(str((info or {}).get("id", "")).split("/")[:2])


def is_engines_fault(error: BaseException) -> bool:
    """Whether an error says something about the engine rather than about the request."""
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and status >= 500


class Replicas:
    """Remembers failures of engines."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._until: dict[str, float] = {}

    def failed(self, info: Any, error: BaseException) -> None:
        """A try at this deployment ended with this error."""
        seconds = (info or {}).get("modelhost_cooldown") or 0
        if seconds and engine(info) and is_engines_fault(error):
            self._until[engine(info)] = self.clock() + seconds

    def standing(self, deployments: list[Any]) -> list[Any]:
        """Those that may be asked now; if none would be left, all but the one that has failed last."""
        until = [self._until.get(engine(item.get("model_info")), 0.0) for item in deployments]
        bound = self.clock()
        if until and min(until) > bound:
            bound = sorted(until)[-2:][0]
        return [item for item, moment in zip(deployments, until, strict=True) if moment <= bound]
