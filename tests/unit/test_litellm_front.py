"""A request's way in: headers, body, fields, limits, hang-ups; and the choice among replicas. No LiteLLM needed."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import pytest
from gateway_world import ALICE, BOB, ask, content, parts, refusal, user_of
from modelhost_gateway import body, errors, fields, front, headers, journal, keys, metering, replicas, routes, turns


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key_hashes.json"
    path.write_text(json.dumps(content()))
    return path


@pytest.fixture
def store(key_file: Path) -> Any:
    return keys.KeyStore(str(key_file))


# --- headers and bodies ---


def test_what_goes_on_is_written_anew_and_names_no_key(store: Any) -> None:
    sent = ask(
        store,
        ALICE,
        raw=b'{"model": "model-a", "model": "model-b", "messages": [], "new": 1}',
        more=[
            (b"host", b"evil"),
            (b"x-litellm-num-retries", b"9"),
            (b"anthropic-beta", b"a"),
            (b"Anthropic-Beta", b"b"),
        ],
        query=b"beta=true",
    )
    assert sent.inner is not None
    scope, raw = sent.inner
    assert raw == b'{"model":"model-b","messages":[]}'
    assert dict(scope["headers"]) == {
        b"anthropic-beta": b"a,b",
        b"content-length": b"%d" % len(raw),
        b"content-type": b"application/json",
        b"host": b"gateway",
    }
    assert scope["query_string"] == b""
    assert sent.headers == {b"content-type": b"application/json"}


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ([(b"content-encoding", b"gzip")], 415),
        ([(b"content-type", b"text/plain")], 415),
        ([(b"content-type", b"application/json; charset=utf-16")], 415),
        ([(b"content-type", b"multipart/form-data; boundary=x")], 415),
        ([(b"content-length", b"3"), (b"content-length", b"4")], 400),
        ([(b"content-length", b"-1")], 400),
        ([(b"content-length", b"3"), (b"transfer-encoding", b"chunked")], 400),
        ([(b"content-length", b"99999999999")], 413),
        ([(b"x-api-key", BOB.encode())], 401),
        ([(b"x-api-key", ALICE.encode()), (b"x-api-key", ALICE.encode())], 400),
    ],
)
def test_headers_that_do_not_fit_are_refused_before_the_body(store: Any, more: Any, status: int) -> None:
    sent = refusal(store, ALICE, more=more)
    assert (sent.status, sent.taken) == (status, 0)


def test_the_same_key_in_both_headers_is_fine(store: Any) -> None:
    assert user_of(ask(store, "Bearer " + ALICE, more=[(b"x-api-key", ALICE.encode())])) == "alice"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"model": NaN}', "NaN is no number"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b'{"a":' + b"[" * 150 + b"]" * 150 + b"}", "nested deeper"),
        (b'{"a":' + b"[" * 200_000, "nested deeper"),
        (b'{"a":[' + b"{}," * 600_000 + b"1]}", "too many parts"),
        (b'{"a":' + b"9" * 5000 + b"}", "not JSON"),
    ],
    ids=str,
)
def test_bodies_out_of_bounds_are_refused(store: Any, raw: bytes, words: str) -> None:
    assert words in refusal(store, ALICE, raw=raw).message


def test_chunks_are_counted() -> None:
    async def endless() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    with pytest.raises(errors.Refused) as caught:
        asyncio.run(body.Bodies(1000, 60).read(None, endless))
    assert caught.value.status == 413


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(errors.Refused) as caught:
        asyncio.run(body.Bodies(1000, 0.01).read(10, never))
    assert caught.value.status == 408


@pytest.mark.parametrize("known", [False, True])
def test_what_a_refused_client_still_sends_is_thrown_away_for_a_while(known: bool) -> None:
    taken = 0

    async def endless() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    asyncio.run(body.Bodies(1 << 20, 60).discard(endless, known))
    assert taken * 1000 < (5 << 20 if known else 2 << 20)


@pytest.mark.parametrize("held", [{"others": 7999}, {"one": 3999}])
def test_bodies_together_and_of_one_user_are_bounded(held: dict[str, int]) -> None:
    reader = body.Bodies(1000, 60)
    reader.held.update(held)

    async def part() -> dict[str, Any]:
        return {"type": "http.request", "body": b"xx"}

    with pytest.raises(errors.Refused) as caught:
        asyncio.run(reader.read(2, part, "one"))
    assert (caught.value.status, caught.value.retry_after) == (503, 2)
    assert reader.held == held
    assert asyncio.run(reader.read(2, part, "another")) == b"xx" if "one" in held else True
    assert reader.held == held


def test_one_users_bodies_take_turns_with_everybody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pauses, seen = [0.0], [], []

    async def look_at(own: turns.Turns, user: str, seconds: float) -> None:
        async with own.of(user):
            seen.append(user)
            clock[0] += seconds

    async def test() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_later", lambda delay, call: pauses.append((delay, call)))
        own = turns.Turns()
        waiting = [asyncio.create_task(look_at(own, user, took)) for user, took in (("a", 3), ("a", 2), ("b", 1))]
        for _ in range(5):
            await asyncio.sleep(0)
        assert seen == ["a", "b"], "the second body of one user waits, that of another does not"
        assert [delay for delay, _call in pauses] == [3, 1], "for as long as the first one took"
        pauses.pop(0)[1]()
        await asyncio.gather(*waiting)
        assert seen == ["a", "b", "a"]
        while pauses:
            pauses.pop()[1]()
        gc.collect()
        assert not own._locks, "nobody is remembered"

    monkeypatch.setattr(turns.time, "thread_time", lambda: clock[0])
    asyncio.run(test())


def test_a_refused_body_gives_its_turn_back(store: Any) -> None:
    assert refusal(store, ALICE, raw=b"[").status == 400
    own = turns.Turns()

    async def test() -> None:
        for _ in range(2):
            with pytest.raises(errors.Refused):
                async with own.of("a"):
                    body.parse(b"[")

    asyncio.run(test())


def test_a_prompt_of_200_000_tokens_passes(store: Any) -> None:
    text = 'if (a[0] == b[1]) { return f(x, y, "z"); }\n' * 20_000
    content = {"model": "model-b", "messages": [{"role": "user", "content": text}]}
    assert ask(store, ALICE, content=content).body == content
    tokens = {"model": "model-b", "input": list(range(200_000))}
    assert ask(store, ALICE, path="/v1/embeddings", content=tokens).body == tokens


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2], [3]]])
def test_a_completion_of_tokens_is_refused_before_litellm_fails_at_it(store: Any, prompt: Any) -> None:
    content = {"model": "model-b", "prompt": prompt}
    assert "Send it as text" in refusal(store, ALICE, path="/v1/completions", content=content).message


def test_lines_of_the_journal_are_bounded_and_not_forged(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    lines = journal.Journal(lambda: now[0])
    for _ in range(500):
        lines.line("refused", "%s", "x\n10:00 forged\u2028line")
    assert len(caplog.records) == journal.LINES
    assert all("\n" not in record.getMessage() and "\u2028" not in record.getMessage() for record in caplog.records)
    now[0] = 100
    lines.line("refused", "%s", "y")
    assert "480 more" in caplog.records[-2].getMessage()


@pytest.mark.parametrize(("day", "status"), [("2020-01-31", 401), ("2999-01-01", 200)])
def test_a_key_expires(store: Any, key_file: Path, day: str, status: int) -> None:
    changed = content()
    changed["users"][0]["expires"] = day
    key_file.write_text(json.dumps(changed))
    sent = ask(store, ALICE)
    assert sent.status == status
    assert status == 200 or day in sent.message


# --- fields ---


@pytest.mark.parametrize("path", list(routes.POSTS))
@pytest.mark.parametrize("name", ["api_base", "custom_llm_provider", "extra_body", "aws_region_name", "num_retries",
                                  "gigachat_auth_url", "fallbacks", "chat_template", "litellm_metadata"])  # fmt: skip
def test_fields_that_lead_elsewhere_are_refused_by_name(store: Any, path: str, name: str) -> None:
    sent = refusal(store, BOB, path=path, content={"model": "model-b", name: ["model-a"]})
    assert sent.status == 400
    assert name in sent.message


def test_unknown_fields_are_taken_out_counted_and_logged_once(store: Any, caplog: pytest.LogCaptureFixture) -> None:
    content = {"model": "model-b", "messages": [{"role": "user", "content": "x", "new_thing": 1}], "ne\nw": {"a": 1}}
    for _ in range(2):
        assert ask(store, ALICE, content=content).body == {
            "model": "model-b",
            "messages": [{"role": "user", "content": "x"}],
        }
    assert sum("new_thing" in record.getMessage() for record in caplog.records) == 2  # one for each front
    assert all("\n" not in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/v1/chat/completions", {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}),
        ("/v1/chat/completions", {"type": "image_url", "image_url": "file:///etc/passwd"}),
        ("/v1/chat/completions", {"type": "video_url", "video_url": {"url": "HTTPS://x"}}),
        ("/v1/chat/completions", {"type": "file", "file": {"file_data": "http://x"}}),
        ("/v1/messages", {"type": "image", "source": {"type": "url", "url": "http://x"}}),
        ("/v1/messages", {"type": "tool_result", "tool_use_id": "t",
                          "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}),
        ("/v1/responses", {"type": "input_image", "image_url": "http://x"}),
    ],
)  # fmt: skip
def test_media_are_not_fetched(store: Any, path: str, part: Any) -> None:
    messages = [{"role": "user", "content": [part]}]
    sent = refusal(store, ALICE, path=path, content={"model": "model-b", "messages": messages, "input": messages})
    assert sent.status == 400
    assert "data:" in sent.message


def test_media_with_their_content_pass(store: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    content = {"model": "model-b", "messages": [{"role": "user", "content": [part]}]}
    assert ask(store, ALICE, path="/v1/chat/completions", content=content).body == content


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/chat/completions", {"n": 5}),
        ("/v1/chat/completions", {"n": "1500"}),
        ("/v1/chat/completions", {"n": 1500.0}),
        ("/v1/chat/completions", {"n": True}),
        ("/v1/completions", {"best_of": 16}),
        ("/v1/completions", {"prompt": ["a"] * 5}),
        ("/v1/completions", {"prompt": ["a"] * 3, "n": 2}),
        ("/v1/embeddings", {"input": ["a"] * 2049}),
    ],
)
def test_what_multiplies_a_request_is_bounded(store: Any, path: str, more: dict[str, Any]) -> None:
    assert refusal(store, ALICE, path=path, content={"model": "model-b", **more}).status == 400


def test_a_request_of_claude_code_stays_as_it_is(store: Any) -> None:
    cache = {"type": "ephemeral", "ttl": "1h"}
    tool = {"name": "Bash", "description": "d", "input_schema": {"type": "object", "properties": {"api_base": {}}}}
    content = {
        "model": "model-b",
        "max_tokens": 32000,
        "stream": True,
        "system": [{"type": "text", "text": "You are", "cache_control": cache}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": cache}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "tool_use", "id": "1", "name": "Bash", "input": {"timeout": 1, "headers": {"a": "b"}}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "is_error": False,
                                          "content": [{"type": "tool_reference", "tool_name": "Read"}]}]},
            {"role": "system", "content": [
                {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "Read"}}]},
        ],
        "tools": [{**tool, "defer_loading": True, "cache_control": cache, "eager_input_streaming": True}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "metadata": {"user_id": '{"device_id":"x","session_id":"y"}'},
        "thinking": {"type": "adaptive", "display": "summarized"},
        "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"a": []}}},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"},
                                         {"type": "clear_tool_uses_20250919",
                                          "trigger": {"type": "input_tokens", "value": 1}}]},
        "temperature": 1,
        "stop_sequences": ["a"],
    }  # fmt: skip
    assert ask(store, ALICE, content=content).body == content


# --- limits, hang-ups, replicas ---


class Gate:
    """Limits that write down what they are told."""

    def __init__(self, refuse: bool = False) -> None:
        self.refuse = refuse
        self.told: list[Any] = []

    async def admit(self, user: Any, body_bytes: int, max_tokens: int | None, **more: Any) -> Any:
        if self.refuse:
            raise errors.Refused(429, "rate_limit_error", "Too many.", retry_after=7)
        self.told.append(("admit", user.name, body_bytes > 0, max_tokens, more))
        return self

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.told.append(("settle", prompt_tokens, completion_tokens))

    def release(self) -> None:
        self.told.append("release")


def test_limits_hear_of_a_request_from_start_to_end(store: Any) -> None:
    gate = Gate()
    stream = [
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":3,"cache_read_input',
        b'_tokens":4}}}\n\ndata: {"type":"message_delta","usage":{"output_tokens":5}}\n\n',
    ]
    content = {"model": "model-b", "messages": [], "max_tokens": 9}
    ask(store, ALICE, content=content, limits=gate, answer=parts(200, b"text/event-stream", *stream))
    assert gate.told == [
        ("admit", "alice", True, 9, {"model": "model-b", "light": False}),
        ("settle", 7, 0),
        ("settle", 7, 5),
        "release",
    ]


def test_limits_hear_of_the_end_also_after_an_error(store: Any) -> None:
    async def fails(send: Any) -> None:
        raise RuntimeError

    gate = Gate()
    ask(store, ALICE, limits=gate, answer=fails)
    assert gate.told[-1] == "release"


def test_a_refusal_of_limits_says_when_to_come_back(store: Any) -> None:
    sent = refusal(store, ALICE, limits=Gate(refuse=True))
    assert (sent.status, sent.headers[b"retry-after"]) == (429, b"7")
    assert b"connection" not in sent.headers


@pytest.mark.parametrize("raw", [b"[" * 5000, b'{"usage": 3}', b'{"usage": {"prompt_tokens": true}}', b"\xff"])
def test_a_meter_bears_anything(raw: bytes) -> None:
    told: list[Any] = []
    for stream in (True, False):
        metering.Meter(lambda *tokens: told.append(tokens), stream).feed(
            b"data: " + raw + b"\n" if stream else raw, True
        )
    assert set(told) <= {(0, 0)}


@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_leaves_ends_the_work(store: Any, started: bool) -> None:
    events: list[str] = []
    left = asyncio.Event

    async def run() -> None:
        leave = left()

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            if started:
                await send({"type": "http.response.start", "status": 200,
                            "headers": [(b"content-type", b"text/event-stream")]})  # fmt: skip
            leave.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                events.append("stopped")
                raise

        data = json.dumps({"model": "model-b", "messages": []}).encode()
        pieces = [{"type": "http.request", "body": data}]

        async def receive() -> dict[str, Any]:
            if pieces:
                return pieces.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            events.append(message["type"])

        head = [(b"x-api-key", ALICE.encode()), (b"content-type", b"application/json"), (b"content-length", b"2")]
        scope = {"type": "http", "method": "POST", "path": "/v1/messages", "headers": head, "query_string": b""}
        gate = Gate()
        await front.Front(inner, store, gate)(scope, receive, send)
        assert gate.told[-1] == "release"

    asyncio.run(run())
    assert events == (["http.response.start"] if started else []) + ["stopped"]


class Answered(Exception):
    """What LiteLLM makes of an error: its own class, with what was at the beginning as its cause."""

    def __init__(self, status_code: int, module: str | None = "httpx") -> None:
        super().__init__(status_code)
        self.status_code = status_code
        inner = type("Inner", (Exception,), {"__module__": module or "builtins"})()
        self.__cause__ = RuntimeError()
        self.__cause__.__context__ = inner


def test_only_engines_that_fail_are_passed_over_and_never_all() -> None:
    now = [0.0]
    chosen = replicas.Replicas(lambda: now[0])
    deployments: list[Any] = [
        {"model_info": {"id": "%s/coder/%s" % (host, name), "modelhost_cooldown": 5}}
        for name in ("opus", "local-claude-coder")
        for host in ("h1", "h2")
    ]
    opus = deployments[:2]
    for status in (400, 401, 404, 408, 413, 429):
        chosen.failed(opus[0]["model_info"], Answered(status))
    for own in (ValueError(), Answered(500, None), Answered(500, "httpxy")):
        chosen.failed(opus[0]["model_info"], own)
    assert chosen.standing(opus) == opus
    chosen.failed(opus[0]["model_info"], Answered(500))
    assert chosen.standing(opus) == [opus[1]]
    assert chosen.standing(deployments[2:]) == [deployments[3]]  # the same engine by another name
    now[0] = 1
    chosen.failed(opus[1]["model_info"], Answered(503))
    assert chosen.standing(opus) == [opus[0]]  # another try goes to the other one
    assert chosen.standing(opus[1:]) == opus[1:]
    chosen.failed(opus[0]["model_info"], Answered(503))
    assert chosen.standing(opus) == opus
    assert chosen.standing([]) == []
    now[0] = 7
    assert chosen.standing(opus) == opus


def test_lists_are_data_that_hold_together() -> None:
    assert headers.handed_on([(b"X-Claude-Code-Session-Id", b"1"), (b"cookie", b"2")], None) == [
        (b"x-claude-code-session-id", b"1"),
        (b"host", b"gateway"),
    ]
    assert fields.MAX_CHOICES >= 1


def test_usage_that_was_not_asked_for_is_for_the_meter_alone(store: Any) -> None:
    stream = [
        b'data: {"choices": [{"delta": {"content": "\\"usage\\""}}]}\n\ndata: {"choi',
        b'ces": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}\n\n',
        b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}\n\n',
        b"data: [DONE]\n\n",
    ]
    gate = Gate()
    request = {"model": "model-b", "messages": [], "stream": True, "stream_options": {"include_obfuscation": False}}
    sent = ask(
        store,
        ALICE,
        path="/v1/chat/completions",
        content=request,
        limits=gate,
        answer=parts(200, b"text/event-stream", *stream),
    )
    assert sent.body["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert sent.raw == (
        b'data: {"choices": [{"delta": {"content": "\\"usage\\""}}]}\n\n'
        b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    )
    assert ("settle", 3, 4) in gate.told
