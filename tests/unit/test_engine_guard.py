"""The guard before an engine: which requests pass, and what a refused one sees. tests/hosts/site asks a real engine."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import ipaddress
import itertools
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "roles/vllm/files/opt/modelhost/vllm/share/guard/modelhost_engine_guard.py"
KEY, OLD, INNER = "sk-outward", "sk-old", "sk-inner"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("modelhost_engine_guard", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


guard = load()


class Engine:
    """An ASGI application that records what reaches it."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: dict[str, Any], _receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def scope(path: str = "/v1/models", method: str = "GET", *headers: tuple[str, str], **more: Any) -> dict[str, Any]:
    listed = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return {"type": "http", "path": path, "method": method, "headers": listed, "client": ("10.0.0.7", 5), **more}


def ask(
    request: dict[str, Any], body: Any = (), metrics: Any = (), keys: Any = (KEY,)
) -> tuple[Engine, list[Any], int]:
    """The engine, what was sent, and how often the body was asked for."""
    engine, sent, asked = Engine(), [], itertools.count()
    parts = iter(body)

    async def receive() -> dict[str, Any]:
        next(asked)
        return next(parts, {"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    digests = tuple(map(digest, keys))
    made = guard.Guard(engine, lambda: digests, INNER.encode(), map(ipaddress.ip_network, metrics))
    asyncio.run(made(request, receive, send))
    return engine, sent, next(asked)


BEARER = ("Authorization", f"Bearer {KEY}")
ROUTES = ["/v1/chat/completions", "/invocations", "/tokenize", "/metrics", "/ping", "/", "/docs"]
ROUTES += ["/health/", "/HEALTH", "//health", "/health/x", "/healthz", "/metrics/"]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "PURGE"]
GOOD = {
    "bearer": [BEARER],
    "x-api-key": [("x-api-key", KEY)],
    "both": [BEARER, ("x-api-key", KEY)],
    "scheme in lower case": [("authorization", f"bearer {KEY}")],
    "spaces": [("authorization", f"  Bearer   {KEY} ")],
}
BAD = {
    "none": [],
    "empty": [("authorization", ""), ("x-api-key", "")],
    "wrong": [("authorization", "Bearer sk-wrong")],
    "wrong x-api-key": [("x-api-key", "sk-wrong")],
    "no scheme": [("authorization", KEY)],
    "another scheme": [("authorization", f"Basic {KEY}")],
    "a beginning": [("authorization", f"Bearer {KEY[:-1]}")],
    "more": [("authorization", f"Bearer {KEY}x")],
    "a wrong one beside a right one": [BEARER, ("x-api-key", "sk-wrong")],
    "two, one of them wrong": [BEARER, ("authorization", "Bearer sk-wrong")],
    "the engine's inner key": [("authorization", f"Bearer {INNER}")],
    "the hash": [("authorization", f"Bearer {digest(KEY)}")],
    "no ASCII": [("authorization", "Bearer \xe4\xff")],
}


@pytest.mark.parametrize("headers", GOOD.values(), ids=GOOD)
def test_who_has_the_key_gets_in_and_the_engine_sees_its_own(headers: list[tuple[str, str]]) -> None:
    request = scope("/v1/messages", "POST", ("content-type", "application/json"), *headers)
    engine, sent, _asked = ask(request)
    assert sent[0]["status"] == 200
    (seen,) = engine.scopes
    assert seen["headers"] == [(b"content-type", b"application/json"), (b"authorization", f"Bearer {INNER}".encode())]
    assert {name: seen[name] for name in seen if name != "headers"} == {
        n: request[n] for n in request if n != "headers"
    }


@pytest.mark.parametrize("headers", BAD.values(), ids=BAD)
def test_nobody_else_gets_in(headers: list[tuple[str, str]]) -> None:
    for path, method in itertools.product(ROUTES, METHODS):
        engine, sent, _asked = ask(scope(path, method, *headers), metrics=["10.0.9.0/24"])
        assert engine.scopes == [], (path, method)
        assert sent[0]["status"] == 401
        answered = dict(sent[0]["headers"])
        assert answered[b"connection"] == b"close"
        text = b"".join(part["body"] for part in sent[1:])
        assert int(answered[b"content-length"]) == len(text)
        said = json.loads(text)
        # The Anthropic API's shape, and what OpenAI's clients read of theirs.
        assert (said["type"], said["error"]["type"]) == ("error", "authentication_error")
        assert said["error"]["code"] == "invalid_api_key"
        assert KEY not in text.decode()


def test_health_is_open_to_readers_alone() -> None:
    for method in METHODS:
        engine, sent, _asked = ask(scope("/health", method))
        assert (sent[0]["status"] == 200, len(engine.scopes)) == (
            (True, 1) if method in ("GET", "HEAD") else (False, 0)
        )


def test_an_empty_list_of_keys_opens_nothing() -> None:
    assert ask(scope("/v1/models", "GET", BEARER), keys=())[1][0]["status"] == 401


@pytest.mark.parametrize(
    ("client", "headers", "open_"),
    [
        (("10.0.9.3", 1), [], True),
        (("::ffff:10.0.9.3", 1), [], True),
        (("10.0.8.3", 1), [], False),
        (None, [], False),
        (("unix", 1), [], False),
        # uvicorn puts what this header says in the place of a local sender's address.
        (("10.0.9.3", 1), [("X-Forwarded-For", "10.0.9.3")], False),
    ],
)
def test_named_addresses_read_metrics_without_a_key(client: Any, headers: Any, open_: bool) -> None:
    metrics = ["10.0.9.0/24", "fd00::/64"]
    for method, good in (("GET", open_), ("HEAD", open_), ("POST", False)):
        request = scope("/metrics", method, *headers, client=client)
        assert (ask(request, metrics=metrics)[1][0]["status"] == 200) == good
    assert ask(scope("/v1/models", client=client), metrics=metrics)[1][0]["status"] == 401


def test_a_websocket_needs_the_key_too() -> None:
    plain = {**scope("/v1/realtime"), "type": "websocket"}
    plain.pop("method")
    engine, sent, _asked = ask(plain)
    assert (engine.scopes, sent) == ([], [{"type": "websocket.close", "code": 1008}])
    engine, sent, _asked = ask({**plain, "path": "/health"})
    assert engine.scopes == []
    engine, _sent, _asked = ask({**plain, "headers": [(b"authorization", f"Bearer {KEY}".encode())]})
    assert len(engine.scopes) == 1


def test_the_servers_own_messages_pass() -> None:
    assert len(ask({"type": "lifespan"})[0].scopes) == 1


def test_a_refused_body_is_thrown_away_within_bounds() -> None:
    part = {"type": "http.request", "body": b"x" * 65536, "more_body": True}
    _engine, sent, asked = ask(scope("/v1/messages", "POST"), body=itertools.repeat(part))
    assert asked == guard.LINGER_BYTES // 65536
    # The whole answer is out before the first byte of the body is asked for.
    assert [message.get("more_body", False) for message in sent] == [False, True, False]
    last = {**part, "more_body": False}
    assert ask(scope("/v1/messages", "POST"), body=[part, last])[2] == 2


def environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name in ("VLLM_API_KEY", "MODELHOST_ENGINE_KEYS", "MODELHOST_METRICS_CLIENTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def opens(made: Any, key: str) -> bool:
    found: bool = made.has_key(scope("/v1/models", "GET", ("x-api-key", key)))
    return found


def test_without_a_key_an_engine_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch)
    with pytest.raises(RuntimeError, match="VLLM_API_KEY is not set"):
        guard.EngineGuard(Engine())
    environment(monkeypatch, VLLM_API_KEY=KEY, MODELHOST_METRICS_CLIENTS="10.0.0.300")
    with pytest.raises(ValueError, match=r"10\.0\.0\.300"):
        guard.EngineGuard(Engine())


def test_the_environments_key_opens_where_there_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, VLLM_API_KEY=KEY, MODELHOST_METRICS_CLIENTS="10.0.0.7")
    made = guard.EngineGuard(Engine())
    assert opens(made, KEY)
    assert not opens(made, OLD)
    assert made.is_open(scope("/metrics"))


def test_keys_are_exchanged_while_the_engine_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment(monkeypatch, VLLM_API_KEY=INNER, MODELHOST_ENGINE_KEYS=str(tmp_path))
    made = guard.EngineGuard(Engine())
    assert not opens(made, KEY)

    def write(*keys: str) -> None:
        beside = tmp_path / "beside"
        beside.write_text("".join(f"{digest(key)}\n" for key in keys))
        os.replace(beside, tmp_path / "keys")

    for keys in ([OLD], [OLD, KEY], [KEY], []):
        write(*keys)
        assert [opens(made, key) for key in (OLD, KEY, INNER)] == [OLD in keys, KEY in keys, False]
    write(KEY)
    assert opens(made, KEY)
    (tmp_path / "keys").unlink()
    assert not opens(made, KEY)
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    assert not opens(made, KEY)
