"""Limits of users through the running gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Gateway
from patience import wait_until
from test_refusals import ROUTES, request_for


def counted(gateway: Gateway, user: str) -> dict[str, Any]:
    """What stands in the file of counters."""
    try:
        found: dict[str, Any] = json.loads(gateway.usage.read_text())["users"].get(user, {})
    except FileNotFoundError:
        return {}
    return found


def is_over(reply: Any, limit: str) -> bool:
    """Whether this is a good refusal because of this limit."""
    return reply.status == 429 and limit in reply.message and 1 <= int(reply.headers["retry-after"]) <= 60


def test_requests_and_tokens_of_a_minute(gateway: Gateway) -> None:
    for _ in range(2):
        assert gateway.send("/v1/messages", request_for("/v1/messages"), user="twice").status == 200
    gateway.clear()
    for path in ROUTES:
        reply = gateway.send(path, request_for(path), user="twice")
        assert is_over(reply, "requests_per_minute"), (path, reply.raw)
        assert (reply.json.get("type") == "error") is path.startswith("/v1/messages")
        assert reply.json["error"]["type"] == "rate_limit_error"
    assert not gateway.asked
    assert gateway.send("/v1/messages", request_for("/v1/messages"), user="bob").status == 200
    # Streamed or not: the stand-ins name twelve tokens for each answer.
    path = "/v1/chat/completions"
    assert gateway.send(path, {**request_for(path), "stream": True}, user="tokens").status == 200
    assert gateway.send("/v1/messages", request_for("/v1/messages"), user="tokens").status == 200
    assert is_over(gateway.send(path, request_for(path), user="tokens"), "tokens_per_minute")
    wait_until(
        lambda: (
            [
                *(counted(gateway, "tokens").get(name) for name in ("requests", "prompt_tokens", "completion_tokens")),
                counted(gateway, "twice").get("refused"),
            ]
            == [2, 10, 14, len(ROUTES)]
        ),
        lambda: gateway.usage.read_text(),
    )


@pytest.mark.parametrize("stream", ["true", 1, []])
def test_no_stream_that_is_read_in_two_ways(gateway: Gateway, stream: Any) -> None:
    """LiteLLM would read the engine's stream as a whole, show it in an error, write it down and count no tokens."""
    for path in ROUTES:
        if not path.endswith(("count_tokens", "embeddings")):
            assert gateway.send(path, {**request_for(path), "stream": stream}).status == 400
    assert not gateway.asked
