"""What is added to LiteLLM: keys, models of a user, routes and wording of errors. No LiteLLM needed."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "roles/litellm/files/modelhost_gateway.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("modelhost_gateway", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["modelhost_gateway"] = module  # dataclasses look themselves up here
    spec.loader.exec_module(module)
    return module


gateway = load()

ALICE, BOB = "sk-" + "a" * 40, "sk-" + "b" * 40
ALL = ["local-claude-a", "model-a", "opus", "claude-*", "local-claude-b", "model-b"]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def content() -> dict[str, Any]:
    return {
        "models": ALL,
        "users": [
            {"name": "alice", "sha256": sha256(ALICE), "models": ALL},
            {"name": "bob", "sha256": sha256(BOB), "models": ["local-claude-b", "model-b"]},
        ],
    }


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key_hashes.json"
    path.write_text(json.dumps(content()))
    return path


@pytest.fixture
def store(key_file: Path) -> Any:
    return gateway.KeyStore(str(key_file))


def ask(store: Any, key: str, model: Any = "local-claude-b", path: str = "/v1/messages", **more: Any) -> Any:
    body = more.pop("body", {"model": model, "messages": []})
    return gateway.check(store, key, more.pop("method", "POST"), path, more.pop("query", {}), body)


def refusal(*arguments: Any, **options: Any) -> Any:
    with pytest.raises(gateway.Refused) as caught:
        ask(*arguments, **options)
    return caught.value


def test_a_key_opens_the_models_of_its_user(store: Any) -> None:
    assert ask(store, ALICE, "claude-sonnet-4-5").name == "alice"
    assert ask(store, "Bearer " + BOB).name == "bob"


@pytest.mark.parametrize(
    "key", ["", "sk-wrong", ALICE[:-1], ALICE + "x", ALICE.upper(), "Bearer ", "sk-ключ", "\udc80"]
)
def test_a_wrong_key_is_turned_away(store: Any, key: str) -> None:
    assert refusal(store, key).status == 401


@pytest.mark.parametrize("model", ["local-claude-a", "model-a", "opus", "claude-opus-4-1"])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions", "/v1/messages/count_tokens", "/v1/responses"])
def test_a_user_does_not_reach_other_models(store: Any, model: str, path: str) -> None:
    refused = refusal(store, BOB, model, path)
    assert refused.status == 403
    assert "local-claude-b" in refused.message


@pytest.mark.parametrize(
    "model", ["claude-x,local-claude-a", "claude-x, local-claude-b", "claude-\n", "", None, ["opus"], "*", "claude-*"]
)
def test_odd_names_are_no_way_round(store: Any, model: Any) -> None:
    assert refusal(store, ALICE, model).status in (400, 404)


def test_an_unknown_model_is_answered_with_what_there_is(store: Any) -> None:
    refused = refusal(store, ALICE, "gpt-9")
    assert refused.status == 404
    assert "gpt-9" in refused.message
    assert "local-claude-a, local-claude-b" in refused.message
    assert "http" not in refused.message


def test_the_suffix_for_a_long_window_is_no_other_model(store: Any) -> None:
    assert ask(store, ALICE, "opus[1m]").name == "alice"


@pytest.mark.parametrize("field", sorted(gateway.FOREIGN_FIELDS))
def test_fields_that_lead_elsewhere_are_refused(store: Any, field: str) -> None:
    refused = refusal(store, BOB, body={"model": "model-b", field: ["model-a"]})
    assert refused.status == 400
    assert field in refused.message


def test_a_model_in_the_address_is_refused(store: Any) -> None:
    assert refusal(store, BOB, query={"model": "model-a"}).status == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/key/generate"),
        ("GET", "/model/info"),
        ("POST", "/model/new"),
        ("GET", "/health"),
        ("DELETE", "/v1/messages"),
        ("POST", "/anthropic/v1/messages"),
        ("POST", "/v1/messages/../../key/generate"),
        ("GET", "/metrics"),
        ("POST", "/engines/model-a/chat/completions"),
    ],
)
def test_a_key_opens_no_other_route(store: Any, method: str, path: str) -> None:
    assert refusal(store, ALICE, method=method, path=path).status == 403


def test_the_list_of_models_needs_no_body(store: Any) -> None:
    assert ask(store, BOB, method="GET", path="/v1/models", body=None).models == ("local-claude-b", "model-b")


def test_a_change_of_the_file_works_at_once(store: Any, key_file: Path) -> None:
    assert ask(store, BOB).name == "bob"
    changed = content()
    changed["users"].pop()
    key_file.write_text(json.dumps(changed))
    assert refusal(store, BOB).status == 401
    assert ask(store, ALICE).name == "alice"


def test_a_replaced_file_of_the_same_size_and_time_is_read(store: Any, key_file: Path) -> None:
    before = key_file.stat()
    assert ask(store, BOB).name == "bob"
    other = key_file.with_name("new")
    other.write_text(json.dumps(content()).replace(sha256(BOB), sha256("sk-other")))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(key_file)
    assert refusal(store, BOB).status == 401


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "{",
        "[]",
        '{"users": []}',
        '{"models": [], "users": [{"name": "x"}]}',
        '{"models": [], "users": [{"name": "x", "sha256": "", "models": []}]}',
    ],
)
def test_a_bad_file_opens_nothing_and_is_logged_once(
    store: Any, key_file: Path, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(store, ALICE).name == "alice"
    key_file.write_text(bad)
    for _ in range(3):
        assert refusal(store, ALICE).status == 401
        assert refusal(store, "").status == 401
    assert len(caplog.records) == 1
    assert ALICE not in caplog.text
    key_file.write_text(json.dumps(content()))
    assert ask(store, ALICE).name == "alice"


def test_a_missing_file_opens_nothing(tmp_path: Path) -> None:
    assert refusal(gateway.KeyStore(str(tmp_path / "none")), ALICE).status == 401


def test_every_entry_is_compared(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compare(one: str, other: str) -> bool:
        seen.append(other)
        return one == other

    monkeypatch.setattr(gateway.hmac, "compare_digest", compare)
    assert store.find(ALICE).name == "alice"
    assert len(seen) == 2


# --- errors ---

REFUSED = (
    "litellm.InternalServerError: InternalServerError: Hosted_vllmException - Cannot connect to host"
    " 10.1.2.3:18002 ssl:<ssl.SSLContext object at 0x7f> [Connect call failed ('10.1.2.3', 18002)]\n\n"
    "LiteLLM: model group 'opus' failed with the error above. No fallback was attempted."
)
# As LiteLLM 1.109.1 hands on what vLLM 0.32.0 says.
OVERFLOW = (
    "litellm.ContextWindowExceededError: litellm.BadRequestError: ContextWindowExceededError:"
    " Hosted_vllmException - "
    + json.dumps(
        {
            "type": "error",
            "error": {
                "type": "BadRequestError",
                "message": "This model's maximum context length is 131072 tokens. However, your prompt contains at"
                " least 131073 input tokens, which exceeds this limit even without any output tokens.",
            },
        }
    )
    + "\nmodel=opus. context_window_fallbacks=None."
    + "\n\nLiteLLM: model group 'opus' failed with the error above. No fallback was attempted."
)


def test_an_engine_that_is_away_is_said_plainly() -> None:
    status, message = gateway.plain(500, REFUSED)
    assert status == 503
    assert "does not answer" in message
    assert "10.1.2.3" not in message


def test_replicas_that_are_all_away_are_said_alike() -> None:
    message = "No deployments available for selected model, Try again in 5 seconds. ['h1/a/x']"
    assert gateway.plain(429, message) == (503, gateway.NO_ENGINE)


def test_a_slow_engine_names_the_variables() -> None:
    status, message = gateway.plain(408, "litellm.Timeout: Timeout Error: Hosted_vllmException - Connection timed out.")
    assert status == 504
    assert "litellm_request_timeout" in message


def test_too_long_a_prompt_is_said_in_words_that_clients_know() -> None:
    status, message = gateway.plain(400, OVERFLOW)
    assert status == 400
    assert message == "prompt is too long: 131073 tokens > 131072 maximum"


def test_messages_of_others_stay() -> None:
    assert gateway.plain(400, "max_tokens is required") == (400, "max_tokens is required")


@pytest.mark.parametrize("anthropic", [True, False])
@pytest.mark.parametrize(
    "raw",
    [
        b'{"error":{"message":"no","type":"x","param":null,"code":"401"}}',
        b'{"detail":"no"}',
        b'{"type":"error","error":{"type":"x","message":"no"}}',
    ],
)
def test_errors_come_in_the_shape_of_the_client(raw: bytes, anthropic: bool) -> None:
    status, body = gateway.reword(401, raw, anthropic)
    error = json.loads(body)
    assert status == 401
    assert error["error"]["message"] == "no"
    assert (error.get("type") == "error") is anthropic
    if anthropic:
        assert error["error"]["type"] == "authentication_error"


def test_an_error_within_a_stream_is_worded_and_text_is_left_alone() -> None:
    cut = (
        b'event: error\ndata: {"type": "error", "error": {"type": "api_error",'
        b' "message": "Response payload is not completed"}}\n\n'
    )
    assert b"does not answer" in gateway.reword_event(cut, True)
    text = (
        b'data: {"type":"content_block_delta","delta":{"text":'
        b'"{\\"error\\": {\\"message\\": \\"Connection error\\"}}"}}\n\n'
    )
    assert gateway.reword_event(text, True) == text


def drive(app: Any, method: str, path: str) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}"}

    asyncio.run(app({"type": "http", "method": method, "path": path, "headers": []}, receive, send))
    return sent


def inner(status: int, kind: bytes, *parts: bytes) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", kind), (b"content-length", b"3"), (b"retry-after", b"1")],
            }
        )
        for index, part in enumerate(parts):
            await send({"type": "http.response.body", "body": part, "more_body": index + 1 < len(parts)})

    return app


@pytest.mark.parametrize("path", ["/", "/ui", "/ui/", "/docs", "/openapi.json", "/key/generate", "/metrics", "/health"])
def test_the_front_offers_nothing_else(path: str) -> None:
    sent = drive(gateway.Front(inner(200, b"text/plain", b"no")), "GET", path)
    assert sent[0]["status"] == 404
    assert "/v1/messages" in json.loads(sent[1]["body"])["error"]["message"]


@pytest.mark.parametrize("path", ["/health/readiness", "/health/liveliness", "/v1/models"])
def test_the_front_lets_pass(path: str) -> None:
    sent = drive(gateway.Front(inner(200, b"text/plain", b"yes")), "GET", path)
    assert sent[0]["status"] == 200
    assert sent[1]["body"] == b"yes"


def test_the_front_rewords_an_error_that_comes_in_parts() -> None:
    raw = json.dumps({"error": {"message": REFUSED, "type": None}}).encode()
    sent = drive(gateway.Front(inner(500, b"application/json", raw[:50], raw[50:])), "POST", "/v1/messages")
    assert sent[0]["status"] == 503
    assert dict(sent[0]["headers"])[b"retry-after"] == b"1"
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(sent[1]["body"])).encode()
    assert json.loads(sent[1]["body"])["type"] == "error"


def test_the_front_streams_without_holding_back() -> None:
    front = gateway.Front(inner(200, b"text/event-stream", b"data: 1\n\n", b"data: 2\n\n"))
    sent = drive(front, "POST", "/v1/messages")
    assert [message.get("body") for message in sent] == [None, b"data: 1\n\n", b"data: 2\n\n"]
