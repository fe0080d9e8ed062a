"""What people use still does all it did: both SDKs, through LiteLLM as it runs."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from conftest import KEYS, Gateway
from patience import HANGS

MODEL = "local-claude-big"


@pytest.fixture
def claude(gateway: Gateway) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key=KEYS["alice"], base_url=f"http://127.0.0.1:{gateway.port}", max_retries=0, timeout=HANGS
    )


@pytest.fixture
def openai_client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(
        api_key=KEYS["alice"], base_url=f"http://127.0.0.1:{gateway.port}/v1", max_retries=0, timeout=HANGS
    )


def test_the_anthropic_sdk(claude: anthropic.Anthropic, gateway: Gateway) -> None:
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert claude.messages.create(model=MODEL, max_tokens=5, messages=messages).content[0].type == "text"
    with claude.messages.stream(model=MODEL, max_tokens=5, messages=messages) as stream:
        assert stream.get_final_text() == "hi"
    beta = claude.beta.messages.create(
        model=MODEL, max_tokens=5, messages=messages, betas=["context-management-2025-06-27"]
    )
    assert beta.usage.output_tokens == 7
    assert claude.messages.count_tokens(model=MODEL, messages=messages).input_tokens == 42
    assert claude.models.retrieve(MODEL).id == MODEL
    assert MODEL in {entry.id for entry in claude.models.list()}
    assert {asked.body["model"] for asked in gateway.asked} == {"big"}


def test_errors_reach_the_sdks_as_their_own(claude: anthropic.Anthropic, openai_client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="none", max_tokens=5, messages=messages)
    with pytest.raises(anthropic.BadRequestError, match="api_base"):
        claude.messages.create(model=MODEL, max_tokens=5, messages=messages, extra_body={"api_base": "x"})
    with pytest.raises(anthropic.AuthenticationError, match="does not know the key"):
        claude.with_options(api_key="sk-wrong").messages.create(
            model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "x" * 200_000}]
        )
    with pytest.raises(openai.BadRequestError, match="whole number"):
        openai_client.chat.completions.create(model=MODEL, messages=messages, n=5)


@pytest.mark.parametrize("asked_for", [False, True])
def test_the_openai_sdk(openai_client: openai.OpenAI, gateway: Gateway, asked_for: bool) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    answer = openai_client.chat.completions.create(
        model=MODEL,
        messages=messages,
        n=1,
        seed=3,
        extra_body={"top_k": 4, "chat_template_kwargs": {"enable_thinking": False}},
    )
    assert answer.choices[0].message.content == "hi"
    sent = gateway.big.asked[0].body
    assert (sent["top_k"], sent["seed"], sent["chat_template_kwargs"]) == (4, 3, {"enable_thinking": False})
    more: Any = {"stream_options": {"include_usage": True}} if asked_for else {}
    chunks = list(openai_client.chat.completions.create(model=MODEL, messages=messages, stream=True, **more))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == 'a "usage"'
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    # The engine names the tokens for the user's limits; the client sees them where it has asked.
    assert gateway.big.asked[-1].body["stream_options"]["include_usage"] is True
    assert any(chunk.usage for chunk in chunks) is asked_for
    assert openai_client.completions.create(model=MODEL, prompt="hi").choices[0].text == "hi"
    assert openai_client.responses.create(model=MODEL, input="hi").output_text == "hi"
    assert openai_client.embeddings.create(model=MODEL, input="hi", encoding_format="float").data[0].embedding == [0.5]
    assert openai_client.models.retrieve(MODEL).id == MODEL


def test_a_request_of_codex(gateway: Gateway) -> None:
    """Fields as the Codex CLI sends them; the hosted tools and its own notes go, the rest stays."""
    content: dict[str, Any] = {
        "model": MODEL, "instructions": "You are", "store": False, "stream": False, "include": [],
        "parallel_tool_calls": False, "tool_choice": "auto", "prompt_cache_key": "k", "client_metadata": {"a": "b"},
        "reasoning": {"effort": "high", "summary": "auto"}, "text": {"verbosity": "low"},
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "function_call", "name": "shell", "arguments": "{}", "call_id": "1"},
            {"type": "function_call_output", "call_id": "1", "output": "ok"},
        ],
        "tools": [
            {"type": "function", "name": "shell", "description": "d", "strict": False,
             "parameters": {"type": "object", "properties": {"timeout": {"type": "number"}}}},
            {"type": "mcp", "server_label": "x", "server_url": "http://127.0.0.1:9"},
        ],
    }  # fmt: skip
    reply = gateway.send("/v1/responses", content, headers={"session_id": "0123456789", "originator": "codex_cli_rs"})
    assert reply.status == 200, reply.raw
    (asked,) = gateway.asked
    assert asked.body["input"] == content["input"]
    assert asked.body["tools"] == content["tools"][:1]
    assert "client_metadata" not in asked.body
    assert "127.0.0.1:9" not in json.dumps(asked.body)
