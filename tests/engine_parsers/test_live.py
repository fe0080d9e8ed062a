"""Our parser in a running engine: what models wrote, said again by the loopback model, on both APIs, streamed and not.

    vllm serve LOOPBACK_MODEL --enforce-eager --kv-cache-memory-bytes 134217728 --enable-auto-tool-choice \
        --tool-parser-plugin catalog/parsers/json_tool_calls.py --tool-call-parser qwen2_5_coder …
    PARSER_URL=http://127.0.0.1:8000 pytest tests/engine_parsers/test_live.py

PARSER_MODEL is the served name (default: loopback), PARSER_KEY the engine's key.
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

import pytest
from patience import HANGS

from . import checks

URL = os.environ.get("PARSER_URL", "").rstrip("/")
MODEL = os.environ.get("PARSER_MODEL", "loopback")

pytestmark = pytest.mark.skipif(not URL, reason="PARSER_URL is not set: no engine to ask")

CASES = [case for case in checks.quotations() + checks.made_up() if case["output"].strip()]
ANY = {"type": "object"}


def post(path: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ.get("PARSER_KEY", "")}
    return urllib.request.urlopen(
        urllib.request.Request(URL + path, json.dumps({"model": MODEL, "max_tokens": 4000, **body}).encode(), headers),
        timeout=HANGS,
    )


def events(response: Any) -> list[dict[str, Any]]:
    lines = [line[6:] for line in response if line.startswith(b"data: ") and line.strip() != b"data: [DONE]"]
    return [json.loads(line) for line in lines]


def script(output: str) -> str:
    """The loopback model's words for this output."""
    return "@say " + output.replace("\n", "\n@+ ")


def openai(output: str, tools: list[str], stream: bool, **more: Any) -> tuple[str, list[Any], Any]:
    described = [{"type": "function", "function": {"name": name, "parameters": ANY}} for name in tools]
    messages = [{"role": "user", "content": script(output)}]
    body = {"messages": messages, "tools": described, "stream": stream, **more}
    with post("/v1/chat/completions", body) as response:
        if not stream:
            choice = json.load(response)["choices"][0]
            calls = [call["function"] for call in choice["message"].get("tool_calls") or []]
            said, reason = choice["message"]["content"] or "", choice["finish_reason"]
            return said, [(call["name"], json.loads(call["arguments"])) for call in calls], reason
        said, reason = "", None
        streamed: list[list[str]] = []
        for event in events(response):
            for choice in event["choices"]:
                said += choice["delta"].get("content") or ""
                reason = choice.get("finish_reason") or reason
                for call in choice["delta"].get("tool_calls") or []:
                    if call["index"] == len(streamed):
                        streamed.append([call["function"]["name"], ""])
                    streamed[call["index"]][1] += call["function"].get("arguments") or ""
    return said, [(name, json.loads(arguments)) for name, arguments in streamed], reason


def anthropic(output: str, tools: list[str], stream: bool, **more: Any) -> tuple[str, list[Any], Any]:
    described = [{"name": name, "input_schema": ANY} for name in tools]
    messages = [{"role": "user", "content": script(output)}]
    with post("/v1/messages", {"messages": messages, "tools": described, "stream": stream, **more}) as response:
        if not stream:
            reply = json.load(response)
            said = "".join(block["text"] for block in reply["content"] if block["type"] == "text")
            calls = [(block["name"], block["input"]) for block in reply["content"] if block["type"] == "tool_use"]
            return said, calls, reply["stop_reason"]
        said, reason, streamed = "", None, []
        for event in events(response):
            assert event["type"] != "error", event
            if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
                streamed.append([event["content_block"]["name"], ""])
            elif event["type"] == "content_block_delta":
                said += event["delta"].get("text", "")
                if "partial_json" in event["delta"]:
                    streamed[-1][1] += event["delta"]["partial_json"]
            elif event["type"] == "message_delta":
                reason = event["delta"]["stop_reason"]
    return said, [(name, json.loads(arguments or "{}")) for name, arguments in streamed], reason


@pytest.mark.parametrize("ask", [openai, anthropic])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("expected", CASES, ids=[case["form"] for case in CASES])
def test_live(expected: dict[str, Any], stream: bool, ask: Any) -> None:
    said, calls, reason = ask(expected["output"], expected["tools"], stream)
    assert calls == [(call["name"], call["arguments"]) for call in expected["calls"]]
    assert said == (expected["content"] or "")
    assert reason == (("tool_calls", "tool_use") if calls else ("stop", "end_turn"))[ask is anthropic]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_forced_calls(stream: bool) -> None:
    forced = f"<tool_call>\n{checks.BASH}\n</tool_call>"
    for choice in ("required", {"type": "function", "function": {"name": "Bash"}}):
        assert openai(forced, checks.TOOLS, stream, tool_choice=choice)[:2] == ("", [checks.LS])
    for kind in ({"type": "any"}, {"type": "tool", "name": "Bash"}):
        assert anthropic(forced, checks.TOOLS, stream, tool_choice=kind) == ("", [checks.LS], "tool_use")
    # A model that would rather talk is not allowed to.
    said = openai("I would rather not.", checks.TOOLS, stream, tool_choice="required", max_tokens=200)[0]
    assert "rather" not in said
