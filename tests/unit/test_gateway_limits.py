"""Limits of users: a fake clock, no LiteLLM, nobody waits."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import litellm_config
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).resolve().parents[2] / "roles/litellm/files/opt/modelhost/litellm/lib/modelhost_gateway"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location("limits_test_" + name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up here
    spec.loader.exec_module(module)
    return module


limits = load("limits")


class Refused(Exception):
    """As the gateway's own."""

    def __init__(self, status: int, kind: str, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.retry_after = status, kind, message, retry_after


class User:
    def __init__(self, name: str = "alice", **allowed: Any) -> None:
        self.name, self.limits = name, allowed


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """Limits with a clock of the test's own."""

    def __init__(self, usage: Any = None) -> None:
        self.clock = Clock()
        self.store = limits.MemoryStore(self.clock)
        self.limits = limits.Limits(Refused, self.store, usage)

    async def admit(self, user: Any, **more: Any) -> Any:
        return await self.limits.admit(user, 50_000, 32_000, **more)

    async def refused(self, user: Any, **more: Any) -> Refused:
        with pytest.raises(Refused) as caught:
            await self.admit(user, **more)
        assert caught.value.status == 429
        assert caught.value.kind == "rate_limit_error"
        return caught.value

    async def spend_time(self, seconds: float) -> None:
        """Seconds pass, and the worker lives."""
        while seconds > 0:
            self.clock.now += min(seconds, limits.LEASE / 3)
            seconds -= limits.LEASE / 3
            await self.limits.renew()

    def places(self) -> int:
        return sum(len(gauge.places) for gauge in self.store.gauges.values())


def run(test: Callable[[World], Awaitable[None]], usage: Any = None) -> World:
    world = World(usage)
    asyncio.run(test(world))  # type: ignore[arg-type]
    return world


# --- requests ----------------------------------------------------------------------------------------------------


def test_the_request_over_the_limit_waits_for_the_oldest() -> None:
    async def test(world: World) -> None:
        user = User(requests_per_minute=3)
        for _ in range(3):
            (await world.admit(user)).release()
            world.clock.now += 10
        refused = await world.refused(user)
        # The first came 30 s ago.
        assert refused.retry_after == 30
        assert "3 requests" in refused.message
        assert "requests_per_minute" in refused.message
        world.clock.now += 29
        assert (await world.refused(user)).retry_after == 1
        world.clock.now += 1
        (await world.admit(user)).release()

    run(test)


def test_refused_requests_do_not_count() -> None:
    async def test(world: World) -> None:
        user = User(requests_per_minute=1)
        (await world.admit(user)).release()
        for _ in range(59):
            world.clock.now += 1
            await world.refused(user)
        world.clock.now += 1
        (await world.admit(user)).release()

    run(test)


def test_one_user_does_not_spend_what_is_anothers() -> None:
    async def test(world: World) -> None:
        await world.admit(User("alice", requests_per_minute=1, max_parallel_requests=1))
        await world.refused(User("alice", requests_per_minute=1, max_parallel_requests=1))
        await world.admit(User("bob", requests_per_minute=1, max_parallel_requests=1))

    run(test)


@pytest.mark.parametrize(
    "allowed", [{}, {"requests_per_minute": 0, "tokens_per_minute": 0, "max_parallel_requests": 0}]
)
def test_without_limits_everything_passes(allowed: dict[str, Any]) -> None:
    async def test(world: World) -> None:
        for _ in range(500):
            (await world.admit(User(**allowed))).settle(10**6, 10**6)

    run(test)


@pytest.mark.parametrize("value", ["60", -1, 1.5, True, [], float("nan")])
def test_a_limit_that_is_none_lets_nobody_through(value: Any) -> None:
    async def test(world: World) -> None:
        with pytest.raises(ValueError, match="a limit is a whole number"):
            await world.admit(User(requests_per_minute=value))

    assert run(test).places() == 0


def test_requests_that_are_kept_as_one_leave_with_the_last() -> None:
    async def test(world: World) -> None:
        user = User(requests_per_minute=2)
        await world.admit(user)
        world.clock.now += 0.9
        await world.admit(user)
        world.clock.now += 59.5
        assert (await world.refused(user)).retry_after == 1
        world.clock.now += 0.5
        await world.admit(user)
        await world.admit(user)
        await world.refused(user)

    run(test)


def test_a_place_that_was_given_back_is_not_renewed() -> None:
    async def test(world: World) -> None:
        user = User(max_parallel_requests=1)
        admission = await world.admit(user)
        admission.release()
        await world.limits.renew()
        (await world.admit(user)).release()

    run(test)


EVENTS = st.lists(st.tuples(st.floats(0, 1) | st.floats(0, 25), st.integers(1, 12)), min_size=1, max_size=60)


@given(st.integers(1, 9), EVENTS)
@settings(deadline=None, max_examples=60)
def test_no_window_holds_more_requests_than_the_limit(limit: int, events: list[tuple[float, int]]) -> None:
    async def test(world: World) -> None:
        user, passed, waits = User(requests_per_minute=limit), [], []
        for pause, burst in events:
            world.clock.now += pause
            for _ in range(burst):
                try:
                    (await world.admit(user)).release()
                    passed.append(world.clock.now)
                except Refused as refused:
                    waits.append(refused.retry_after)
        assert all(1 <= wait <= 60 for wait in waits)
        for begin in passed:
            # Just short of the whole, because a sum of floating-point numbers may round down to it.
            assert sum(begin <= moment < begin + 60 - 1e-5 for moment in passed) <= limit

    run(test)


@given(st.integers(1, 9), st.integers(1, 5000), EVENTS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_who_waits_as_told_passes(
    limit: int, budget: int, events: list[tuple[float, int]], dice: random.Random
) -> None:
    async def test(world: World) -> None:
        user, refusals = User(requests_per_minute=limit, tokens_per_minute=budget), 0
        for pause, burst in events:
            world.clock.now += pause
            for _ in range(burst):
                try:
                    admission = await world.admit(user)
                except Refused as refused:
                    refusals += 1
                    world.clock.now += refused.retry_after
                    admission = await world.admit(user)
                admission.settle(dice.randint(0, 2000), dice.randint(0, 2000))
                admission.release()
        assert refusals or sum(burst for _, burst in events) <= limit or sum(pause for pause, _ in events) > 1

    run(test)


def test_a_user_costs_little_memory() -> None:
    async def test(world: World) -> None:
        user = User(requests_per_minute=100_000)
        for _ in range(3000):
            admission = await world.admit(user)
            admission.settle(10, 1)
            admission.release()
            world.clock.now += 0.02
        assert len(world.store.requests["alice"].entries) <= 61
        assert len(world.store.tokens["alice"].entries) <= 61
        world.clock.now += 61
        await world.limits.renew()
        assert (world.store.requests, world.store.tokens, world.store.gauges) == ({}, {}, {})

    run(test)


# --- tokens ------------------------------------------------------------------------------------------------------


def test_tokens_count_when_they_are_known_and_not_when_they_are_asked_for() -> None:
    async def test(world: World) -> None:
        user = User(tokens_per_minute=100_000)
        first = await world.limits.admit(user, 10**7, 128_000)
        second = await world.limits.admit(user, 10**7, 128_000)
        first.settle(90_000, 5_000)
        await world.admit(user)
        second.settle(90_000, 5_000)
        refused = await world.refused(user)
        assert refused.retry_after == 60
        assert "100000 tokens" in refused.message
        world.clock.now += 60
        await world.admit(user)

    run(test)


def test_the_wait_is_for_as_many_tokens_as_are_too_many() -> None:
    async def test(world: World) -> None:
        user = User(tokens_per_minute=100)
        for amount in (10, 80, 30):
            (await world.admit(user)).settle(amount, 0)
            world.clock.now += 10
        # 120 are used. When the first 10 have left it is still 110; the 80 leave at 70 s.
        assert (await world.refused(user)).retry_after == 40

    run(test)


def test_a_stream_settles_bit_by_bit() -> None:
    async def test(world: World) -> None:
        admission = await world.admit(User())
        for prompt, answer in ((500, 0), (500, 1), (None, 20), (500, 20), ("x", -3), (True, 1.5), (499, 19)):
            admission.settle(prompt, answer)
        assert world.store.tokens["alice"].total == 520

    run(test)


# --- places ------------------------------------------------------------------------------------------------------


def test_places_run_out_and_come_back() -> None:
    async def test(world: World) -> None:
        user = User(max_parallel_requests=2)
        first = await world.admit(user)
        second = await world.admit(user)
        refused = await world.refused(user)
        assert refused.retry_after == 1
        assert "2 of your requests" in refused.message
        first.release()
        first.release()
        third = await world.admit(user)
        await world.refused(user)
        second.release()
        third.release()
        assert world.places() == 0

    run(test)


def test_a_request_that_finds_no_place_is_no_request() -> None:
    async def test(world: World) -> None:
        user = User(max_parallel_requests=1, requests_per_minute=2)
        first = await world.admit(user)
        for _ in range(5):
            await world.refused(user)
        first.release()
        await world.admit(user)

    run(test)


def test_the_longest_wait_is_told() -> None:
    async def test(world: World) -> None:
        user = User(max_parallel_requests=1, requests_per_minute=1, tokens_per_minute=10)
        admission = await world.admit(user)
        world.clock.now += 5
        admission.settle(50, 0)
        refused = await world.refused(user)
        assert refused.retry_after == 60
        assert "tokens_per_minute" in refused.message

    run(test)


def test_ten_polite_tries_outlast_an_answer_of_several_minutes() -> None:
    """Claude Code gives up after ten tries."""

    async def test(world: World) -> None:
        user = User(max_parallel_requests=2)
        running = [await world.admit(user), await world.admit(user)]
        began, waits = world.clock.now, []
        for _ in range(10):
            waits.append((await world.refused(user)).retry_after)
            await world.spend_time(waits[-1])
        assert waits[:3] == [1, 1, 2]
        assert max(waits) <= limits.LONGEST_WAIT
        assert world.clock.now - began > 150
        running[0].release()
        await world.admit(user)

    run(test)


def test_where_places_come_free_often_the_wait_is_short() -> None:
    async def test(world: World) -> None:
        user = User(max_parallel_requests=1)
        admission = await world.admit(user)
        await world.spend_time(600)
        assert (await world.refused(user)).retry_after == 30
        admission.release()
        admission = await world.admit(user)
        assert (await world.refused(user)).retry_after == 1

    run(test)


def test_counting_tokens_has_places_of_its_own() -> None:
    async def test(world: World) -> None:
        user = User(max_parallel_requests=1)
        await world.admit(user)
        light = [await world.admit(user, light=True) for _ in range(limits.LIGHT)]
        await world.refused(user, light=True)
        light[0].release()
        await world.admit(user, light=True)

    run(test)


def test_places_of_a_dead_worker_come_back_and_those_of_a_living_one_stay() -> None:
    async def test(world: World) -> None:
        user = User(max_parallel_requests=2)
        await world.store.enter("alice", "answers", "of a worker that died", limits.Allowance.of(user.limits))
        mine = await world.admit(user)
        for _ in range(4):
            world.clock.now += limits.LEASE / 3
            await world.limits.renew()
        await world.admit(user)
        await world.refused(user)
        mine.release()

    run(test)


def test_a_request_that_is_lost_gives_its_place_back() -> None:
    async def test(world: World) -> None:
        user = User(max_parallel_requests=1)
        await world.admit(user)
        gc.collect()
        await world.spend_time(limits.LEASE)
        await world.admit(user)

    run(test)


@given(st.lists(st.sampled_from(["end", "error", "cancel", "cancel early", "twice"]), min_size=1, max_size=40))
@settings(deadline=None, max_examples=40)
def test_every_place_comes_back_however_a_request_ends(ends: list[str]) -> None:
    async def request(world: World, user: User, end: str, may_end: asyncio.Event) -> None:
        admission = await world.admit(user)
        try:
            await may_end.wait()
            if end == "error":
                raise OSError
        finally:
            admission.settle(10, 1)
            admission.release()
            if end == "twice":
                admission.release()

    async def test(world: World) -> None:
        user, may_end = User(max_parallel_requests=len(ends)), asyncio.Event()
        tasks = [asyncio.create_task(request(world, user, end, may_end)) for end in ends]
        for task, end in zip(tasks, ends):
            if end == "cancel early":
                task.cancel()
        await asyncio.sleep(0)
        assert world.places() == len([end for end in ends if end != "cancel early"])
        for task, end in zip(tasks, ends):
            if end == "cancel":
                task.cancel()
        may_end.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert run(test).places() == 0


# --- through an ASGI application ---------------------------------------------------------------------------------


def front(world: World, users: dict[str, User], running: dict[str, list[int]], may_end: asyncio.Event) -> Any:
    """A stand-in for the gateway: key, limits, an engine that answers when the test says so."""

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        user = users[dict(scope["headers"])[b"x-api-key"].decode()]
        try:
            admission = await world.admit(user)
        except Refused as refused:
            headers = [(b"retry-after", str(refused.retry_after).encode())]
            await send({"type": "http.response.start", "status": refused.status, "headers": headers})
            await send({"type": "http.response.body", "body": refused.message.encode()})
            return
        now = running[user.name]
        try:
            now.append(now[-1] + 1)
            await may_end.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": json.dumps({"usage": 11}).encode()})
            admission.settle(10, 1)
        finally:
            now.append(now[-1] - 1)
            admission.release()

    return application


async def ask(application: Any, key: str) -> tuple[int, int]:
    """One client's request: status and Retry-After."""
    seen: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        seen.append(message)
        await asyncio.sleep(0)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    await application({"type": "http", "headers": [(b"x-api-key", key.encode())]}, receive, send)
    headers = dict(seen[0]["headers"])
    return seen[0]["status"], int(headers.get(b"retry-after", b"0"))


def test_fifty_clients_at_once() -> None:
    """40 of one key that may run 8, and 10 of another: the first never runs more, the second is never refused, and who
    comes back as told is answered in the end."""

    async def test(world: World) -> None:
        users = {"a": User("alice", max_parallel_requests=8, requests_per_minute=30), "b": User("bob")}
        running: dict[str, list[int]] = {"alice": [0], "bob": [0]}
        may_end, answers = asyncio.Event(), {"a": 0, "b": 0}
        application = front(world, users, running, may_end)

        async def client(key: str) -> int:
            status, wait = await ask(application, key)
            answers[key] += status == 200
            return wait

        waiting = ["a"] * 40 + ["b"] * 10
        rounds = 0
        while waiting:
            rounds += 1
            may_end.clear()
            tasks = [asyncio.create_task(client(key)) for key in waiting]
            # All that are refused have been answered when nothing but the answers that run is left.
            while sum(not task.done() for task in tasks) > running["alice"][-1] + running["bob"][-1]:
                await asyncio.sleep(0)
            assert running["alice"][-1] <= 8
            may_end.set()
            waits = await asyncio.gather(*tasks)
            waiting = [key for key, wait in zip(waiting, waits) if wait]
            assert "b" not in waiting
            world.clock.now += max(waits)
            assert max(waits) <= 60
        assert answers == {"a": 40, "b": 10}
        assert max(running["alice"]) == 8
        # 8 in each of three rounds and 6 in the fourth are the 30 of the first minute.
        assert rounds == 6
        assert world.places() == 0
        assert world.store.tokens["bob"].total == 110

    run(test)


# --- the rest ----------------------------------------------------------------------------------------------------


def test_the_inventory_and_the_gateway_call_limits_alike() -> None:
    for name in litellm_config.LIMITS:
        assert limits.Allowance.of({name: 7}) != limits.Allowance.of({})


def test_somebody_looks_after_places_and_counters() -> None:
    class Counters:
        def __init__(self) -> None:
            self.saved = asyncio.Event()
            self.closed = False

        def count(self, *_: Any, **__: int) -> None:
            pass

        async def save(self) -> None:
            self.saved.set()
            raise OSError("the disk is full")

        def close(self) -> None:
            self.closed = True

    async def test() -> None:
        counters = Counters()
        made = limits.Limits(Refused, usage=counters, every=0.001)
        await made.admit(User(), 1, None)
        # Twice, so the first failure did not end it.
        for _ in range(2):
            await counters.saved.wait()
            counters.saved.clear()
        made.close()
        assert counters.closed

    asyncio.run(test())
