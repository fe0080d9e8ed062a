"""The real `openai` and `anthropic` SDKs on this machine against the host's gateway, as a user's program calls it."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from patience import HANGS

MODEL = "local-claude-coder"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["city"],
}
OPENAI_TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": SCHEMA},
}
ANTHROPIC_TOOL: Any = {"name": "get_weather", "description": "Weather of a city", "input_schema": SCHEMA}
WANTED = {"city": "北京", "unit": "celsius"}
# The loopback model follows such lines; the Chinese city goes through template, engine, parser and gateway.
CALL = "@call get_weather " + json.dumps(WANTED, ensure_ascii=False)
SAY = "@say 今天北京晴，25 度。"
TEXT = "今天北京晴，25 度。"


@pytest.fixture
def openai_client(gateway_url: str, user_key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway_url}/v1", api_key=user_key, timeout=HANGS, max_retries=0)


@pytest.fixture
def anthropic_client(gateway_url: str, user_key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=gateway_url, auth_token=user_key, api_key=None, timeout=HANGS, max_retries=0)


def test_openai_chinese(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": SAY}])
    assert answer.choices[0].message.content == TEXT


def test_openai_chinese_streamed(openai_client: openai.OpenAI) -> None:
    stream = openai_client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": SAY}], stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == TEXT


@pytest.mark.parametrize("stream", [False, True])
def test_openai_tool_call_and_result(openai_client: openai.OpenAI, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": f"{CALL}\n{SAY}"}]
    identity, name, arguments = "", "", ""
    if stream:
        for chunk in openai_client.chat.completions.create(
            model=MODEL, messages=messages, tools=[OPENAI_TOOL], stream=True
        ):
            for part in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
                assert part.function is not None
                identity = part.id or identity
                name = part.function.name or name
                arguments += part.function.arguments or ""
    else:
        answer = openai_client.chat.completions.create(model=MODEL, messages=messages, tools=[OPENAI_TOOL])
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        identity, name, arguments = call.id, call.function.name, call.function.arguments
    assert (name, json.loads(arguments)) == ("get_weather", WANTED)
    messages += [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}],
        },
        {"role": "tool", "tool_call_id": identity, "content": '{"temperature": 25, "sky": "晴"}'},
    ]
    final = openai_client.chat.completions.create(model=MODEL, messages=messages, tools=[OPENAI_TOOL])
    assert final.choices[0].message.content == TEXT


def test_anthropic_chinese(anthropic_client: anthropic.Anthropic) -> None:
    answer = anthropic_client.messages.create(model=MODEL, max_tokens=512, messages=[{"role": "user", "content": SAY}])
    assert [block.text for block in answer.content if block.type == "text"] == [TEXT]


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_tool_call_and_result(anthropic_client: anthropic.Anthropic, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": f"{CALL}\n{SAY}"}]
    request: dict[str, Any] = {"model": MODEL, "max_tokens": 512, "tools": [ANTHROPIC_TOOL]}
    if stream:
        with anthropic_client.messages.stream(messages=messages, **request) as running:
            answer = running.get_final_message()
    else:
        answer = anthropic_client.messages.create(messages=messages, **request)
    assert answer.stop_reason == "tool_use"
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert (call.name, call.input) == ("get_weather", WANTED)
    messages += [
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in answer.content]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": '{"temperature": 25, "sky": "晴"}'}],
        },
    ]
    final = anthropic_client.messages.create(messages=messages, **request)
    assert "".join(block.text for block in final.content if block.type == "text") == TEXT


def test_anthropic_api_key_header(gateway_url: str, user_key: str) -> None:
    """Programs that know ANTHROPIC_API_KEY only send x-api-key."""
    client = anthropic.Anthropic(base_url=gateway_url, api_key=user_key, timeout=HANGS, max_retries=0)
    answer = client.messages.create(model=MODEL, max_tokens=64, messages=[{"role": "user", "content": "@say ok"}])
    assert [block.text for block in answer.content if block.type == "text"] == ["ok"]


@pytest.mark.parametrize(
    "model", ["claude-sonnet-4-5", "claude-3-5-sonnet-20240620", "opus", "sonnet", "haiku", "loopback"]
)
def test_aliases_reach_the_default_instance(anthropic_client: anthropic.Anthropic, model: str) -> None:
    answer = anthropic_client.messages.create(
        model=model, max_tokens=64, messages=[{"role": "user", "content": "@say ok"}]
    )
    assert [block.text for block in answer.content if block.type == "text"] == ["ok"]


def test_unknown_model_is_a_clear_error(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        openai_client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hello"}])
    assert 400 <= raised.value.status_code < 500
    assert "no-such-model" in str(raised.value)
    assert "127.0.0.1" not in str(raised.value)


def test_count_tokens(anthropic_client: anthropic.Anthropic) -> None:
    counted = anthropic_client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "hello " * 50}])
    assert counted.input_tokens >= 50
