"""What the security review could do, and what happens now. Names are those of its findings."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
from conftest import BODY_TIMEOUT, KEYS, MAX_BYTES, Gateway
from patience import HANGS, wait_until

CHAT = {"model": "local-claude-big", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
ROUTES = [
    "/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions", "/v1/completions", "/v1/responses",
    "/v1/embeddings",
]  # fmt: skip


def request_for(path: str, text: str = "hi", model: str = "local-claude-big") -> dict[str, Any]:
    """A small good request."""
    if path == "/v1/completions":
        return {"model": model, "prompt": text, "max_tokens": 5}
    if path in ("/v1/responses", "/v1/embeddings"):
        return {"model": model, "input": text}
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 5}


@pytest.mark.parametrize("path", ROUTES)
def test_a_good_request_reaches_its_engine_with_the_engines_key(gateway: Gateway, path: str) -> None:
    reply = gateway.send(path, request_for(path))
    assert reply.status == 200, reply.raw
    assert [asked.headers["authorization"] for asked in gateway.big.asked] == ["Bearer sk-engine-h1"]
    assert [asked.path for asked in gateway.asked] == [path]
    assert KEYS["alice"] not in json.dumps([asked.headers for asked in gateway.asked])


@pytest.mark.parametrize("path", ROUTES)
def test_1_no_other_provider(gateway: Gateway, path: str) -> None:
    steal = f"http://127.0.0.1:{gateway.stranger.port}/steal"
    more = {"custom_llm_provider": "gigachat", "gigachat_auth_url": steal}
    reply = gateway.send(path, {**request_for(path), **more})
    assert reply.status == 400
    assert "custom_llm_provider" in reply.message
    assert not gateway.asked
    assert not gateway.stranger.connections


def bomb() -> bytes:
    return gzip.compress(b'{"f":"' + os.urandom(1000).hex().encode() + b'","a":[' + b"{}," * (14 << 20) + b"{}]}", 9)


HOSTILE = """
import gzip, socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
bomb = sys.stdin.buffer.read()
kinds = [
    (b"content-length: %d\\r\\ncontent-encoding: gzip" % len(bomb), bomb),
    (b"content-length: 31457280", b'{"a":[' + b"{}," * 20000),
    (b"transfer-encoding: chunked", b"186a0\\r\\n" + b"[" * 100000 + b"\\r\\n"),
    (b"content-length: 104857600", b'{"a":"' + b"x" * 60000),
    (b"content-length: 2\\r\\nauthorization: Bearer sk-" + b"x" * 40, b"{}"),
]
seen = set()
for index in range(count):
    head, body = kinds[index % len(kinds)]
    with socket.create_connection(("127.0.0.1", port)) as client:
        try:
            client.sendall(b"POST /v1/messages HTTP/1.1\\r\\nhost: x\\r\\ncontent-type: application/json\\r\\n" + head
                           + b"\\r\\n\\r\\n" + body)
            seen.add(client.recv(12))
        except ConnectionError:
            seen.add(b"cut")
print(sorted(seen))
"""


def test_3_a_thousand_hostile_requests_without_a_key(gateway: Gateway) -> None:
    """Memory stays, and a user's slowest answers stay within twice of what they are without them."""
    import time

    def slowest(count: int = 40) -> float:
        times = []
        for _ in range(count):
            began = time.perf_counter()
            assert gateway.send("/v1/messages", request_for("/v1/messages")).status == 200
            times.append(time.perf_counter() - began)
        return sorted(times)[int(count * 0.99)]

    slowest(20)
    before = gateway.resident()
    packed = bomb()
    # Whatever else this machine does makes times longer, never shorter: one round in which they hold is enough.
    quiet, attacked = [], []
    for _ in range(8):
        quiet.append(slowest())
        hostile = subprocess.Popen(
            ["nice", sys.executable, "-c", HOSTILE, str(gateway.port), "334"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        said: list[bytes] = []
        ends = threading.Thread(target=lambda h=hostile, s=said: s.append(h.communicate(packed)[0]))
        ends.start()
        attacked.append(slowest())
        ends.join()
        assert b"HTTP/1.1 401" in said[0]
        assert b"HTTP/1.1 500" not in said[0]
        held = [during < 2 * alone + 0.02 for alone, during in zip(quiet, attacked, strict=True)]
        if len(held) >= 3 and any(held):
            break
    assert gateway.resident() - before < 100
    assert any(held), (quiet, attacked)


def test_3_with_a_key_it_costs_little_too(gateway: Gateway) -> None:
    before = gateway.resident()
    for raw, headers, status in (
        (bomb(), {"content-encoding": "gzip"}, 415),
        (b'{"a":[' + b"{}," * (1 << 20) + b"1]}", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"a":"' + b"x" * MAX_BYTES + b'"}', {}, 413),
    ):
        reply = gateway.send("/v1/messages", raw=raw, headers=headers)
        assert reply.status == status
        assert reply.json["type"] == "error"
    assert gateway.resident() - before < 100


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_4_a_users_own_errors_take_no_engine_away(gateway: Gateway, path: str) -> None:
    for word in ("@401", "@404"):
        for _ in range(3):
            gateway.send(path, request_for(path, word, "local-claude-coder"))
    # LiteLLM's own code fails at these, with a 500 and without asking an engine.
    for content in (5, [1]):
        strange = {"model": "local-claude-coder", "max_tokens": 5, "messages": [{"role": "user", "content": content}]}
        gateway.send("/v1/chat/completions", strange)
    gateway.clear()
    for _ in range(30):
        assert gateway.send(path, request_for(path, model="local-claude-coder")).status == 200
    assert all(engine.asked for engine in gateway.coder)
    for more in ({"cooldown_time": 20}, {"allowed_fails": 0}):
        assert gateway.send(path, {**request_for(path), **more}).status == 400


@pytest.mark.parametrize("more", [{"n": 1500}, {"best_of": 1500}, {"prompt": ["a"] * 100}])
def test_5_one_request_is_one_request(gateway: Gateway, more: dict[str, Any]) -> None:
    assert gateway.send("/v1/completions", {**request_for("/v1/completions"), **more}).status == 400
    assert not gateway.asked


@pytest.mark.parametrize("more", [{"num_retries": 40}, {"max_retries": 40}, {"timeout": 0.001}])
def test_6_retries_and_times_are_not_the_clients(gateway: Gateway, more: dict[str, Any]) -> None:
    path = "/v1/chat/completions"
    assert gateway.send(path, {**request_for(path, "@500"), **more}).status == 400
    headers = {"x-litellm-num-retries": "40", "x-litellm-timeout": "0.001", "x-litellm-stream-timeout": "0.001"}
    assert gateway.send(path, request_for(path, "@500"), headers=headers).status == 500
    assert len(gateway.asked) == 3  # two replicas somewhere mean two more tries


GENERATING = ["/v1/messages", "/v1/chat/completions", "/v1/completions", "/v1/responses"]


@pytest.mark.parametrize(
    ("path", "words", "stream"),
    [
        *((path, "@hang before headers", stream) for path in GENERATING for stream in (False, True)),
        *((path, "@hang after headers", True) for path in GENERATING[:2]),
    ],
)
def test_6_the_engine_stops_when_the_client_leaves(gateway: Gateway, path: str, words: str, stream: bool) -> None:
    raw = json.dumps({**request_for(path, words), "stream": stream}).encode()
    with gateway.connect() as client:
        client.sendall(
            b"POST %s HTTP/1.1\r\nhost: x\r\nx-api-key: %s\r\n" % (path.encode(), KEYS["alice"].encode())
            + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(raw), raw)
        )
        if "after" in words:
            client.recv(1)
        else:
            wait_until(lambda: gateway.big.asked, "the engine was asked", pause=0.01)
    # The default of every time-out in between is half an hour.
    assert gateway.big.asked[0].gone.wait(HANGS)
    assert len(gateway.asked) == 1


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", ["extra_headers", "headers", "provider_specific_header"])
def test_7_headers_towards_the_engine_are_not_the_clients(gateway: Gateway, path: str, name: str) -> None:
    mine = {"Authorization": "Bearer mine", "Host": "neighbour"}
    assert gateway.send(path, {**request_for(path), name: mine}).status == 400
    assert not gateway.asked


@pytest.mark.parametrize("user", ["alice", None])
@pytest.mark.parametrize(
    "more",
    [
        {"api_base": "http://x"}, {"base_url": "http://x"}, {"user_config": {}}, {"model_list": []},
        {"extra_body": {"api_base": "x"}}, {"litellm_metadata": {"api_base": "x"}}, {"input_cost_per_token": 1},
        {"aws_access_key_id": "os.environ/HOME"},
    ],
)  # fmt: skip
def test_11_refusals_have_the_clients_shape(gateway: Gateway, user: str | None, more: dict[str, Any]) -> None:
    written = gateway.journal.stat().st_size
    for path, anthropic in (("/v1/messages", True), ("/v1/chat/completions", False)):
        reply = gateway.send(path, {**CHAT, **more}, user=user)
        assert reply.status == (400 if user else 401)
        assert (reply.json.get("type") == "error") is anthropic
        if user:
            assert next(iter(more)) in reply.message
    assert gateway.journal.stat().st_size - written < 2000


@pytest.mark.parametrize("path", GENERATING)
def test_11_what_is_no_number_or_too_much_goes_no_further(gateway: Gateway, path: str) -> None:
    stops = "stop_sequences" if path == "/v1/messages" else "stop"
    for more in ('"temperature": 1e999', '"temperature": NaN', '"%s": %s' % (stops, json.dumps(["x"] * 1025))):
        reply = gateway.send(path, raw=(json.dumps(request_for(path))[:-1] + "," + more + "}").encode())
        assert reply.status == 400, reply.raw
    assert not gateway.asked


def test_11_forms_and_empty_bodies_are_answered_in_shape(gateway: Gateway) -> None:
    for raw, kind in ((b"model=big", "application/x-www-form-urlencoded"), (b"", "application/json")):
        reply = gateway.send("/v1/messages", raw=raw, headers={"content-type": kind})
        assert reply.status in (400, 415)
        assert reply.json["type"] == "error"


def test_13_no_line_of_the_journal_is_forged(gateway: Gateway) -> None:
    forged = "x\n10:00:00 - LiteLLM Proxy:INFO: forged line\u2028\x1b[2J"
    for content in ({**CHAT, "model": forged}, {**CHAT, forged: 1}, {**CHAT, "messages": [{forged: 1}]}):
        gateway.send("/v1/messages", content)
    gateway.send("/v1/models/x%0Aforged", method="GET")
    lines = gateway.journal.read_text()
    assert not [line for line in lines.splitlines() if line.startswith(("10:00:00", "forged"))]
    assert "\x1b[2J" not in lines


def test_13_prompts_are_not_written_down(gateway: Gateway) -> None:
    reply = gateway.send(
        "/v1/chat/completions", {**request_for("/v1/chat/completions", "S3CRET"), "litellm_request_debug": True}
    )
    assert reply.status == 400
    gateway.send("/v1/chat/completions", request_for("/v1/chat/completions", "S3CRET @500"))
    assert "S3CRET" not in gateway.journal.read_text()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/mess", b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-a"])
def test_15_a_client_that_sends_nothing_is_cut_off(gateway: Gateway, sent: bytes) -> None:
    with gateway.connect() as client:
        client.sendall(sent)
        assert client.recv(1) == b""


def test_15_a_body_that_does_not_come_is_answered(gateway: Gateway) -> None:
    with gateway.connect() as client:
        client.sendall(
            b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: %s\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\n\r\n{" % KEYS["alice"].encode()
        )
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"%d seconds" % BODY_TIMEOUT in answer


def test_16_headers_name_no_host_and_no_version(gateway: Gateway) -> None:
    allowed = {"date", "content-length", "content-type", "x-litellm-call-id", "transfer-encoding", "cache-control"}
    for path in ROUTES:
        reply = gateway.send(path, request_for(path), headers={"Origin": "http://elsewhere", "Host": "evil"})
        assert set(reply.headers) <= allowed, path
    for path in ("/v1/models", "/v1/models/", "/health/readiness"):
        reply = gateway.send(path, method="GET", headers={"Origin": "http://elsewhere"})
        assert reply.status == 200
        assert set(reply.headers) <= allowed
    assert gateway.send("/v1/messages", method="OPTIONS", headers={"Origin": "http://x"}).status == 404


def test_17_one_of_the_own_models(gateway: Gateway) -> None:
    listed = gateway.send("/v1/models", method="GET").json["data"]
    for entry in listed:
        for path in ("/v1/models/", "/models/"):
            reply = gateway.send(path + entry["id"], method="GET")
            assert (reply.status, reply.json) == (200, entry)
    assert gateway.send("/v1/models/claude-opus-9", method="GET").json["id"] == "claude-opus-9"
    assert gateway.send("/v1/models/local-claude-coder", method="GET", user="bob").status == 403
    assert gateway.send("/v1/models/none", method="GET").status == 404
    assert gateway.send("/v1/models/m-big", method="GET", user=None).status == 401


def test_nothing_opens_litellm_but_the_front(gateway: Gateway) -> None:
    for user in ("sk-master-of-nothing", "sk-engine-h1", "sk-x"):
        assert gateway.send("/v1/models", method="GET", user=user).status == 401
    for name in ("x-litellm-api-key", "api-key", "x-goog-api-key", "ocp-apim-subscription-key"):
        assert gateway.send("/v1/messages", CHAT, user=None, headers={name: KEYS["alice"]}).status == 401
    assert not gateway.asked


def test_two_requests_in_one_are_not_read_as_two(gateway: Gateway) -> None:
    """A body that holds a request stays a body, and one that is refused unread ends the connection."""
    inside = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-api-key: %s\r\n\r\n" % KEYS["alice"].encode()
    with gateway.connect() as client:
        client.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(inside) + inside)
        answer = client.makefile("rb").read()
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 401")


def test_a_dead_replica_is_passed_over(gateway: Gateway) -> None:
    """Comes last: the pause is longer than the suite."""
    dead, alive = gateway.coder
    dead.stop()
    try:
        for path in ("/v1/messages", "/v1/chat/completions"):
            for _ in range(10):
                assert gateway.send(path, request_for(path, model="local-claude-coder")).status == 200
        dead.start()
        gateway.clear()
        for _ in range(20):
            assert gateway.send("/v1/messages", request_for("/v1/messages", model="opus")).status == 200
        assert (len(dead.asked), len(alive.asked)) == (0, 20)
        # Now this one fails too, and another try goes to the one that was passed over.
        alive.stop()
        assert gateway.send("/v1/messages", request_for("/v1/messages", model="opus")).status == 200
        assert len(dead.asked) == 1
    finally:
        for engine in gateway.coder:
            engine.stop()
            engine.start()


def test_sockets_of_refused_clients_are_closed(gateway: Gateway) -> None:
    with gateway.connect() as client:
        client.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        client.settimeout(60)
        answer = b""
        while part := client.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in answer.lower()
    assert isinstance(client, socket.socket)
