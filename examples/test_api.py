#!/usr/bin/env python3
"""Check a deployment from any machine with Python 3.9: models, chat, and the weather tool over both APIs.

    ANTHROPIC_BASE_URL=http://gateway:4000 ANTHROPIC_AUTH_TOKEN=sk-... python3 test_api.py [MODEL]
    python3 test_api.py --url http://gateway:4000 --key-file FILE [MODEL]

Without MODEL it asks ANTHROPIC_MODEL, or the first local-claude-* that is listed. Nothing but the standard library is
needed. Exit status: 0 all OK, 1 something FAILED, 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any, Callable, Optional

QUESTION = "北京今天天气怎么样？请调用 get_weather 工具。"
HELLO = [{"role": "user", "content": "用一句话介绍你自己。"}]
RESULT = "北京：晴，21 摄氏度，微风"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "城市名"}},
    "required": ["city"],
}
ABOUT = {"name": "get_weather", "description": "查询城市的天气"}


class Failed(Exception):
    """The answer is not what it should be."""


class Api:
    """One deployment."""

    def __init__(self, url: str, key: str, timeout: float) -> None:
        self.url, self.key, self.timeout = url.rstrip("/"), key, timeout
        self.model = ""

    def ask(self, path: str, body: Optional[dict] = None, key: Optional[str] = None) -> tuple[int, str]:
        headers = {
            "Authorization": "Bearer " + (key or self.key),
            "Content-Type": "application/json",
            "anthropic-version": "2023-06-01",
        }
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return answer.status, answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode("utf-8", "replace")
        except OSError as error:
            raise Failed(f"{self.url}{path}: {error}") from error

    def post(self, path: str, **body: Any) -> Any:
        status, text = self.ask(path, {"model": self.model, **body})
        if status != 200:
            raise Failed(f"HTTP {status}: {text[:1000]}")
        return text if body.get("stream") else json.loads(text)

    # Each check returns what to show.

    def models(self) -> str:
        status, text = self.ask("/v1/models")
        if status != 200:
            raise Failed(f"HTTP {status}: {text[:1000]}")
        names = [entry["id"] for entry in json.loads(text)["data"]]
        if not names:
            raise Failed("none is listed")
        local = [name for name in names if name.startswith("local-claude-")]
        self.model = self.model or (local or names)[0]
        return f"{len(names)} listed; asking {self.model}"

    def chat(self) -> str:
        answer = self.post("/v1/chat/completions", messages=HELLO, max_tokens=1024)
        text = answer["choices"][0]["message"].get("content") or ""
        return require(text, answer)

    def messages(self) -> str:
        answer = self.post("/v1/messages", messages=HELLO, max_tokens=1024)
        return require("".join(block.get("text", "") for block in answer["content"]), answer)

    def chat_stream(self) -> str:
        text = self.post("/v1/chat/completions", messages=HELLO, max_tokens=1024, stream=True)
        if "data: [DONE]" not in text:
            raise Failed("the stream ended without [DONE]: " + text[-500:])
        return f"{text.count('data:')} events"

    def messages_stream(self) -> str:
        text = self.post("/v1/messages", messages=HELLO, max_tokens=1024, stream=True)
        if "message_stop" not in text:
            raise Failed("the stream ended without message_stop: " + text[-500:])
        return f"{text.count('data:')} events"

    def chat_tool(self) -> str:
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        tools = [{"type": "function", "function": {**ABOUT, "parameters": SCHEMA}}]
        answer = self.post("/v1/chat/completions", messages=messages, tools=tools, max_tokens=1024)
        message = answer["choices"][0]["message"]
        calls = message.get("tool_calls")
        if not calls:
            raise Failed("no tool call: " + json.dumps(answer, ensure_ascii=False)[:1000])
        arguments = json.loads(calls[0]["function"]["arguments"])
        messages += [message] + [{"role": "tool", "tool_call_id": call["id"], "content": RESULT} for call in calls]
        final = self.post("/v1/chat/completions", messages=messages, tools=tools, max_tokens=1024)
        text = require(final["choices"][0]["message"].get("content") or "", final)
        return f"{calls[0]['function']['name']}({arguments['city']}) -> {text}"

    def messages_tool(self) -> str:
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        tools = [{**ABOUT, "input_schema": SCHEMA}]
        answer = self.post("/v1/messages", messages=messages, tools=tools, max_tokens=1024)
        calls = [block for block in answer["content"] if block["type"] == "tool_use"]
        if not calls:
            raise Failed("no tool call: " + json.dumps(answer, ensure_ascii=False)[:1000])
        back = [block for block in answer["content"] if block["type"] in ("text", "tool_use")]
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": RESULT} for call in calls]
        messages += [{"role": "assistant", "content": back}, {"role": "user", "content": results}]
        final = self.post("/v1/messages", messages=messages, tools=tools, max_tokens=1024)
        text = require("".join(block.get("text", "") for block in final["content"]), final)
        return f"{calls[0]['name']}({calls[0]['input']['city']}) -> {text}"

    def count_tokens(self) -> str:
        count = self.post("/v1/messages/count_tokens", messages=HELLO)["input_tokens"]
        if count <= 0:
            raise Failed(f"input_tokens is {count}")
        return f"{count} tokens"

    def wrong_key(self) -> str:
        status, text = self.ask("/v1/messages", {"model": self.model, "messages": HELLO, "max_tokens": 8}, "sk-wrong")
        if status != 401:
            raise Failed(f"HTTP {status} instead of 401: {text[:500]}")
        return "HTTP 401"


def require(text: str, answer: Any) -> str:
    if not text.strip():
        raise Failed("no text: " + json.dumps(answer, ensure_ascii=False)[:1000])
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:80] + "..."


def main() -> int:
    parser = argparse.ArgumentParser(description="Check a deployment.")
    parser.add_argument("model", nargs="?", default=os.environ.get("ANTHROPIC_MODEL", ""))
    parser.add_argument("--url", default=os.environ.get("ANTHROPIC_BASE_URL"), help="without /v1")
    parser.add_argument("--key-file", help="file with the key; else ANTHROPIC_AUTH_TOKEN or ANTHROPIC_API_KEY")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one request")
    options = parser.parse_args()
    key = os.environ.get("ANTHROPIC_AUTH_TOKEN") or os.environ.get("ANTHROPIC_API_KEY") or ""
    if options.key_file:
        with open(options.key_file, encoding="utf-8") as handle:
            key = handle.read().strip()
    if not options.url or not key:
        parser.error("say where (--url or ANTHROPIC_BASE_URL) and with which key (--key-file or ANTHROPIC_AUTH_TOKEN)")

    api = Api(options.url, key, options.timeout)
    api.model = options.model
    checks: list[tuple[str, Callable[[], str]]] = [
        ("list of models", api.models),
        ("chat completions", api.chat),
        ("messages", api.messages),
        ("chat completions, streamed", api.chat_stream),
        ("messages, streamed", api.messages_stream),
        ("weather tool, chat completions", api.chat_tool),
        ("weather tool, messages", api.messages_tool),
        ("count_tokens", api.count_tokens),
        ("wrong key is refused", api.wrong_key),
    ]
    failed = 0
    for name, check in checks:
        try:
            print(f"OK      {name}: {check()}", flush=True)
        except Failed as reason:
            failed += 1
            print(f"FAILED  {name}: {reason}", flush=True)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            failed += 1
            print(f"FAILED  {name}: unexpected answer ({error.__class__.__name__}: {error})", flush=True)
        if failed and check == api.models and not api.model:
            break
    print("All OK." if not failed else f"{failed} FAILED.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
