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
    """Whether an error says something about the engine rather than about the request.

    LiteLLM makes a 500 of whatever goes wrong in its own code too, for instance at a message that is a number. What an
    engine has caused comes from the library that speaks HTTP with it.
    """
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and status >= 500 and _comes_from_the_wire(error)


def _comes_from_the_wire(error: BaseException | None) -> bool:
    """Whether an error of the HTTP client stands at the beginning of this one. An earlier try's does not count: it is
    the context of an error that has a cause of its own."""
    for _ in range(10):
        if error is None:
            return False
        if type(error).__module__.partition(".")[0] in ("aiohttp", "httpcore", "httpx"):
            return True
        error = error.__cause__ or error.__context__
    return False


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
