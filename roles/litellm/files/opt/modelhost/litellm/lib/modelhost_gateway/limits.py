"""Limits of each user: requests and tokens within a minute, and answers that run at the same time.

A limit that is missing or 0 does not hold. The minute slides: within any 60 seconds no more than the limit is let
through. Tokens are counted when the engine has said how many there were, so the answer that goes over the budget ends
normally and the next request waits. Nothing is set aside beforehand: Claude Code asks for up to 128,000 tokens of
output and uses a few hundred.

`Store` holds what is counted. `MemoryStore` is right for one process; another one can share the counts between
workers and gateways. Nothing of LiteLLM is needed here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

LOG = logging.getLogger("modelhost.gateway")

#: Seconds of the window.
WINDOW = 60.0
#: Events this close together are kept as one, at the time of the later one. So a user costs at most 61 entries.
GRAIN = 1.0
#: Seconds after which a place that nobody renews is free again: its worker is dead.
LEASE = 90.0
#: Longest Retry-After when too many answers run; nobody knows when the first of them ends.
LONGEST_WAIT = 30.0
#: Counting tokens takes the engine milliseconds, and Claude Code does it in bursts: this many times as many places.
LIGHT = 4
#: Times are sums of floating-point numbers.
EPSILON = 1e-6


@dataclass(frozen=True)
class Allowance:
    """What one user may do; 0 means no limit."""

    requests: int = 0
    tokens: int = 0
    places: int = 0

    @classmethod
    def of(cls, limits: dict[str, Any]) -> Allowance:
        """From the names that the inventory and the key file use."""
        return cls(
            whole(limits.get("requests_per_minute")),
            whole(limits.get("tokens_per_minute")),
            whole(limits.get("max_parallel_requests")),
        )


@dataclass(frozen=True)
class Verdict:
    """Whether a request may pass: `over` names the limit that it meets, `wait` the seconds until it helps to ask."""

    over: str = ""
    wait: float = 0.0


class Store(Protocol):
    """What is counted, by user. A shared store does each of these as one step.

    `spend` and `leave` are told and not asked: they are called while a request is being cancelled, when nothing can
    be awaited, and they never raise. A shared store sends them behind.
    """

    async def enter(self, user: str, gauge: str, place: str, allowance: Allowance) -> Verdict:
        """Count a request and take a place, or do neither. A place comes back by itself `LEASE` after it was last
        renewed."""

    def spend(self, user: str, tokens: int) -> None:
        """Count tokens."""

    async def renew(self, places: list[tuple[str, str, str]]) -> None:
        """Keep places (user, gauge, place) for another `LEASE`. One that is not taken stays free."""

    def leave(self, user: str, gauge: str, place: str) -> None:
        """Give a place back. One that is not taken is no error."""


@dataclass
class Entry:
    """What came in within `GRAIN`."""

    begin: float
    last: float
    amount: int


@dataclass
class Window:
    """Amounts of the last 60 seconds."""

    entries: deque[Entry] = field(default_factory=deque)
    total: int = 0

    def forget(self, now: float) -> None:
        """Drop what has left the window."""
        while self.entries and now - self.entries[0].last >= WINDOW - EPSILON:
            self.total -= self.entries.popleft().amount

    def add(self, now: float, amount: int) -> None:
        """Count an amount."""
        if self.entries and now - self.entries[-1].begin < GRAIN:
            self.entries[-1].last = now
            self.entries[-1].amount += amount
        else:
            self.entries.append(Entry(now, now, amount))
        self.total += amount

    def wait(self, now: float, limit: int) -> float:
        """Seconds until the window holds less than the limit; 0 if it does."""
        self.forget(now)
        left, wait = self.total, 0.0
        for entry in self.entries:
            if left < limit:
                break
            left -= entry.amount
            wait = entry.last + WINDOW - now
        return wait


@dataclass
class Gauge:
    """Places that are taken, each with the time at which it comes back by itself."""

    places: dict[str, float] = field(default_factory=dict)
    #: When a place last became free, or the first one was taken.
    since: float = 0.0

    def forget(self, now: float) -> None:
        """Free the places that nobody renewed."""
        for place in [place for place, until in self.places.items() if until <= now]:
            self.leave(place, now)

    def enter(self, place: str, now: float) -> None:
        """Take a place."""
        if not self.places:
            self.since = now
        self.places[place] = now + LEASE

    def leave(self, place: str, now: float) -> None:
        """Give a place back."""
        if self.places.pop(place, None) is not None:
            self.since = now

    def wait(self, now: float, limit: int) -> float:
        """Seconds until it helps to ask again, as well as that can be known; 0 if there is a place.

        What has lasted for so long will probably last as long again. So a client that comes back when it is told does
        so once in a second at first, and in the end every half minute, which outlasts answers of many minutes.
        """
        self.forget(now)
        if len(self.places) < limit:
            return 0.0
        return min(LONGEST_WAIT, max(1.0, now - self.since))


class MemoryStore:
    """Counts of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.requests: dict[str, Window] = {}
        self.tokens: dict[str, Window] = {}
        self.gauges: dict[tuple[str, str], Gauge] = {}

    async def enter(self, user: str, gauge: str, place: str, allowance: Allowance) -> Verdict:
        """See `Store`. Nothing is awaited, so no other request comes between."""
        now = self.clock()
        requests = self.requests.setdefault(user, Window())
        tokens = self.tokens.setdefault(user, Window())
        places = self.gauges.setdefault((user, gauge), Gauge())
        # Only the longest wait helps.
        verdict = Verdict()
        for over, limit, counted in (
            ("requests_per_minute", allowance.requests, requests),
            ("tokens_per_minute", allowance.tokens, tokens),
            ("max_parallel_requests", allowance.places, places),
        ):
            wait = counted.wait(now, limit) if limit else 0.0
            if wait > verdict.wait:
                verdict = Verdict(over, wait)
        if not verdict.over:
            requests.forget(now)
            requests.add(now, 1)
            places.enter(place, now)
        return verdict

    def spend(self, user: str, tokens: int) -> None:
        """See `Store`."""
        now = self.clock()
        window = self.tokens.setdefault(user, Window())
        window.forget(now)
        window.add(now, tokens)

    async def renew(self, places: list[tuple[str, str, str]]) -> None:
        """See `Store`. Forgets users who do nothing, too."""
        now = self.clock()
        for user, gauge, place in places:
            known = self.gauges.get((user, gauge))
            if known is not None and place in known.places:
                known.places[place] = now + LEASE
        for windows in (self.requests, self.tokens):
            for user, window in list(windows.items()):
                window.forget(now)
                if not window.entries:
                    del windows[user]
        for key, gauge_of in list(self.gauges.items()):
            gauge_of.forget(now)
            if not gauge_of.places:
                del self.gauges[key]

    def leave(self, user: str, gauge: str, place: str) -> None:
        """See `Store`."""
        known = self.gauges.get((user, gauge))
        if known is not None:
            known.leave(place, self.clock())


class Admission:
    """A request that was let through. `release` at its end, whatever happened; more often does no harm."""

    def __init__(self, store: Store, usage: Any, user: str, model: str, gauge: str) -> None:
        self.user, self.model, self.gauge, self.place = user, model, gauge, uuid.uuid4().hex
        self._store, self._usage = store, usage
        self._counted = (0, 0)

    @property
    def key(self) -> tuple[str, str, str]:
        """What the store knows it by."""
        return self.user, self.gauge, self.place

    def settle(self, prompt_tokens: Any, completion_tokens: Any) -> None:
        """Count the tokens of this request, as far as the engine has named them until now.

        A stream may tell the prompt's first and the answer's at the end, or never if the client hangs up: call it with
        each; only what is more than before is added.
        """
        before = self._counted
        self._counted = (max(before[0], tokens(prompt_tokens)), max(before[1], tokens(completion_tokens)))
        prompt, completion = self._counted[0] - before[0], self._counted[1] - before[1]
        if prompt or completion:
            self._store.spend(self.user, prompt + completion)
            if self._usage is not None:
                self._usage.count(self.user, self.model, prompt_tokens=prompt, completion_tokens=completion)

    def release(self) -> None:
        """Give the place back."""
        self._store.leave(*self.key)


class Limits:
    """Lets requests through, or refuses them.

    refuse: makes the error, called as refuse(429, kind, message, retry_after=seconds); store: where is counted;
    usage: counters that survive a restart (`usage.Usage`), or None; every: seconds between two looks after both.
    """

    def __init__(
        self, refuse: Callable[..., BaseException], store: Store | None = None, usage: Any = None, every: float = 5.0
    ) -> None:
        self.refuse = refuse
        self.store: Store = MemoryStore() if store is None else store
        self.usage = usage
        self.every = every
        # Weak: a request that was lost without `release` is not renewed and so gives its place back.
        self._running: weakref.WeakSet[Admission] = weakref.WeakSet()
        self._tending: asyncio.Task[None] | None = None

    async def admit(
        self, user: Any, body_bytes: int, max_tokens: int | None, *, model: str = "", light: bool = False
    ) -> Admission:
        """Let a request of a user through.

        model: the name that was asked for, for the counters; light: the request only counts tokens. body_bytes and
        max_tokens decide nothing here (see above).
        """
        allowance = Allowance.of(user.limits)
        self._tend()
        gauge = "light" if light else "answers"
        if light:
            allowance = Allowance(allowance.requests, allowance.tokens, allowance.places * LIGHT)
        admission = Admission(self.store, self.usage, user.name, model, gauge)
        # Cancelled meanwhile, a shared store may have taken the place; it comes back when its lease ends.
        verdict = await self.store.enter(*admission.key, allowance)
        if verdict.over:
            if self.usage is not None:
                self.usage.count(user.name, model, refused=1)
            seconds = max(1, math.ceil(verdict.wait - EPSILON))
            raise self.refuse(429, "rate_limit_error", refusal(verdict.over, allowance, seconds), retry_after=seconds)
        self._running.add(admission)
        if self.usage is not None:
            self.usage.count(user.name, model, requests=1)
        return admission

    def _tend(self) -> None:
        """See that somebody looks after the places and the counters. Starts with the first request: only then is
        there surely a loop."""
        if self._tending is None or self._tending.done():
            self._tending = asyncio.get_running_loop().create_task(self._look_after())

    async def _look_after(self) -> None:
        due = LEASE / 3
        while True:
            await asyncio.sleep(self.every)
            due -= self.every
            try:
                if due <= 0:
                    due = LEASE / 3
                    await self.renew()
                if self.usage is not None:
                    await self.usage.save()
            except Exception as error:
                # Whatever it is, the next round may do better; requests go on.
                LOG.error("limits: %s: %s", type(error).__name__, error)

    async def renew(self) -> None:
        """Keep the places of the requests that run."""
        await self.store.renew([admission.key for admission in self._running])

    def close(self) -> None:
        """At the end of the process: write the counters down. To be called when no request runs any more."""
        if self.usage is not None:
            self.usage.close()


def refusal(over: str, allowance: Allowance, seconds: int) -> str:
    """What the user is told."""
    if over == "requests_per_minute":
        what = "You have sent %d requests within a minute" % allowance.requests
    elif over == "tokens_per_minute":
        what = "You have used %d tokens or more within a minute, prompts and answers together" % allowance.tokens
    else:
        what = "%d of your requests are running at this moment" % allowance.places
    return "%s, and that is your limit (%s). Try again in %d s." % (what, over, seconds)


def whole(value: Any) -> int:
    """A limit; ValueError for what is none, because nobody shall be without limits by a slip."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a limit is a whole number, 0 for none, and not %r" % (value,))
    return value


def tokens(value: Any) -> int:
    """A number of tokens as an engine names it; what is no such number counts as none."""
    return min(value, 10**9) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
