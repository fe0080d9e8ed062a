"""Users' keys and models, routes, and the wording of errors. No LiteLLM needed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from gateway_world import ALICE, BOB, ask, content, parts, refusal, sha256, user_of
from modelhost_gateway import errors, keys


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key_hashes.json"
    path.write_text(json.dumps(content()))
    return path


@pytest.fixture
def store(key_file: Path) -> Any:
    return keys.KeyStore(str(key_file))


def test_a_key_opens_the_models_of_its_user(store: Any) -> None:
    assert user_of(ask(store, ALICE, "claude-sonnet-4-5")) == "alice"
    assert user_of(ask(store, "Bearer " + BOB)) == "bob"


@pytest.mark.parametrize(
    "key", ["", "sk-wrong", ALICE[:-1], ALICE + "x", ALICE.upper(), "Bearer ", "sk-ключ", "\udc80"]
)
def test_a_wrong_key_is_turned_away(store: Any, key: str) -> None:
    sent = refusal(store, key)
    assert sent.status == 401
    assert sent.taken == 0
    assert sent.headers[b"connection"] == b"close"


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
    assert user_of(ask(store, ALICE, "opus[1m]")) == "alice"


def test_a_model_in_the_address_is_refused(store: Any) -> None:
    assert refusal(store, BOB, query=b"beta=true&model=model-a").status == 400


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
    sent = refusal(store, ALICE, method=method, path=path)
    assert sent.status == 404
    assert "/v1/messages" in sent.message
    assert sent.taken == 0


def test_a_change_of_the_file_works_at_once(store: Any, key_file: Path) -> None:
    assert user_of(ask(store, BOB)) == "bob"
    changed = content()
    changed["users"].pop()
    key_file.write_text(json.dumps(changed))
    assert refusal(store, BOB).status == 401
    assert user_of(ask(store, ALICE)) == "alice"


def test_a_replaced_file_of_the_same_size_and_time_is_read(store: Any, key_file: Path) -> None:
    before = key_file.stat()
    assert user_of(ask(store, BOB)) == "bob"
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
    assert user_of(ask(store, ALICE)) == "alice"
    key_file.write_text(bad)
    for _ in range(3):
        assert refusal(store, ALICE).status == 401
        assert refusal(store, "").status == 401
    assert sum("cannot be used" in record.getMessage() for record in caplog.records) == 1
    assert ALICE not in caplog.text
    key_file.write_text(json.dumps(content()))
    assert user_of(ask(store, ALICE)) == "alice"


def test_a_missing_file_opens_nothing(tmp_path: Path) -> None:
    assert refusal(keys.KeyStore(str(tmp_path / "none")), ALICE).status == 401


def test_every_entry_is_compared(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compare(one: str, other: str) -> bool:
        seen.append(other)
        return one == other

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
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
    status, message = errors.plain(500, REFUSED)
    assert status == 503
    assert "does not answer" in message
    assert "10.1.2.3" not in message


def test_replicas_that_are_all_away_are_said_alike() -> None:
    message = "No deployments available for selected model, Try again in 5 seconds. ['h1/a/x']"
    assert errors.plain(429, message) == (503, errors.NO_ENGINE)


def test_a_slow_engine_names_the_variables() -> None:
    for wrapped in (
        "litellm.InternalServerError: InternalServerError: OpenAIException - Error code: 500 - broken\n\nLiteLLM: model"
        " group 'x' failed with the error above.",
        "Invalid request format: litellm.APIConnectionError: APIConnectionError: Hosted_vllmException - broken",
    ):
        assert errors.plain(500, wrapped) == (500, "broken")
    status, message = errors.plain(408, "litellm.Timeout: Timeout Error: Hosted_vllmException - Connection timed out.")
    assert status == 504
    assert "litellm_request_timeout" in message


def test_too_long_a_prompt_is_said_in_words_that_clients_know() -> None:
    status, message = errors.plain(400, OVERFLOW)
    assert status == 400
    assert message == "prompt is too long: 131073 tokens > 131072 maximum"


def test_messages_of_others_stay() -> None:
    assert errors.plain(400, "max_tokens is required") == (400, "max_tokens is required")


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
    status, body = errors.reword(401, raw, anthropic)
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
    assert b"does not answer" in errors.reword_event(cut, True)
    text = (
        b'data: {"type":"content_block_delta","delta":{"text":'
        b'"{\\"error\\": {\\"message\\": \\"Connection error\\"}}"}}\n\n'
    )
    assert errors.reword_event(text, True) == text


@pytest.mark.parametrize("path", ["/", "/ui", "/ui/", "/docs", "/openapi.json", "/key/generate", "/metrics", "/health"])
def test_nothing_else_is_offered(store: Any, path: str) -> None:
    assert refusal(store, None, method="GET", path=path).status == 404


@pytest.mark.parametrize("path", ["/health/readiness", "/health/liveliness"])
def test_probes_need_no_key(store: Any, path: str) -> None:
    assert ask(store, None, method="GET", path=path).status == 200


def test_an_error_that_comes_in_parts_is_worded(store: Any) -> None:
    raw = json.dumps({"error": {"message": REFUSED, "type": None}}).encode()
    sent = ask(store, ALICE, answer=parts(500, b"application/json", raw[:50], raw[50:]))
    assert sent.status == 503
    assert sent.headers[b"retry-after"] == b"1"
    assert sent.headers[b"content-length"] == str(len(sent.raw)).encode()
    assert json.loads(sent.raw)["type"] == "error"


def test_a_bare_text_is_worded_too(store: Any) -> None:
    sent = ask(store, ALICE, answer=parts(500, b"text/plain", b"Internal Server Error"))
    assert sent.status == 500
    assert sent.message == errors.BROKEN


def test_an_exception_is_answered_in_the_clients_shape(store: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(send: Any) -> None:
        raise ModuleNotFoundError("No module named 'prisma'\nforged")

    sent = ask(store, ALICE, path="/v1/chat/completions", answer=fails)
    assert sent.status == 500
    assert sent.message == errors.BROKEN
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]


def test_a_stream_is_not_held_back(store: Any) -> None:
    sent = ask(store, ALICE, answer=parts(200, b"text/event-stream", b"data: 1\n\n", b"data: 2\n\n"))
    assert sent.raw == b"data: 1\n\ndata: 2\n\n"
