"""A stand-in for the gateway (or the engine) on loopback, for the tests of serving_checks and Claude Code.

It speaks just enough of both APIs to let a correct answer pass, and breaks one thing at a time on request
(`mutations`), so that every check can be seen failing. It understands the loopback model's script lines
(@call, @also, @say) and records the requests it gets. It proves nothing about a real gateway or engine.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from typing import Any, Optional

KEY = "sk-standin-key-0123456789"
MODEL = "local-claude-coder"

_STEP = re.compile(r"^\s*@(call|also|say|result)\s*(.*)$")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(part.get("text", "") for part in content if part.get("type") == "text")


def _is_tool_result(message: dict) -> bool:
    content = message.get("content")
    return message["role"] == "tool" or (
        isinstance(content, list) and any(part.get("type") == "tool_result" for part in content)
    )


def _results(messages: list[dict]) -> str:
    found: list[str] = []
    for message in messages:
        if message["role"] == "assistant":
            found = []
        elif message["role"] == "tool":
            found.append(_text(message["content"]))
        elif isinstance(message.get("content"), list):
            found += [_text(part.get("content")) for part in message["content"] if part.get("type") == "tool_result"]
    return "\n".join(found)


def _steps(text: str) -> list[dict]:
    """Turn script lines into steps, one step for each turn of the assistant."""
    steps: list[dict] = []
    for line in text.splitlines():
        match = _STEP.match(line)
        if not match:
            continue
        verb, rest = match.groups()
        if verb == "say":
            steps.append({"text": rest, "calls": []})
            continue
        if verb == "result":
            steps.append({"text": rest + " ", "calls": [], "result": True})
            continue
        name, _, arguments = rest.partition(" ")
        call = {"name": name, "input": json.loads(arguments or "{}")}
        if verb == "also" and steps:
            steps[-1]["calls"].append(call)
        else:
            steps.append({"text": "", "calls": [call]})
    return steps


def reply(body: dict) -> dict:
    """Work out the assistant's next turn: {"text": ..., "calls": [...]}."""
    turns_since = 0
    last = ""
    for message in reversed(body["messages"]):
        if message["role"] == "assistant":
            turns_since += 1
        elif message["role"] == "user" and not _is_tool_result(message):
            # Claude Code puts reminders of its own before what the person typed.
            last = re.sub(r"<system-reminder>.*?</system-reminder>\s*", "", _text(message.get("content")), flags=re.S)
            break
        elif message["role"] == "user" and _steps(_text(message.get("content"))):
            last = _text(message.get("content"))
            break
    steps = _steps(last)
    if steps and turns_since < len(steps):
        step = steps[turns_since]
        # The tools' results, as text.
        text = step["text"] + (_results(body["messages"]) if step.get("result") else "")
        return {"text": text, "calls": step["calls"]}
    if steps:
        return {"text": "done", "calls": []}
    if any(tool.get("name") == "Bash" for tool in body.get("tools") or []):
        return {"text": "loopback: It was told: " + last[-200:], "calls": []}
    if body.get("tools") and turns_since == 0:
        tool = body["tools"][0]
        name = tool.get("name") or tool["function"]["name"]
        cities = [c for c in ("Beijing", "Shanghai") if c in last] or ["Beijing"]
        return {"text": "", "calls": [{"name": name, "input": {"city": city}} for city in cities]}
    if turns_since:
        return {"text": "It is 21 degrees in Beijing.", "calls": []}
    return {"text": "echo: " + last[-200:], "calls": []}


class Standin:
    """`with Standin({"models_empty"}) as s:` serves on s.url."""

    def __init__(self, mutations: Optional[set] = None, port: int = 0, model: str = MODEL, delay: float = 0.0):
        self.mutations = set(mutations or ())
        self.model = model
        self.delay = delay
        self.requests: list[dict] = []
        self.prompts: list[str] = []
        self.release = threading.Event()
        outer = self

        class Handler(_Handler):
            standin = outer

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = "http://127.0.0.1:%d" % self.server.server_address[1]

    def __enter__(self) -> Standin:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()

    def cached(self, prompt: str) -> int:
        """Tokens (4 characters each) of the longest known prefix, in full blocks of 16."""
        best = 0
        for old in self.prompts:
            n = 0
            for a, b in zip(old, prompt):
                if a != b:
                    break
                n += 1
            best = max(best, n)
        self.prompts.append(prompt)
        return best // 64 * 16


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    standin: Standin

    def log_message(self, *_: Any) -> None:
        pass

    def has(self, name: str) -> bool:
        return name in self.standin.mutations

    def send(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def error(self, status: int, message: str) -> None:
        self.send(status, {"error": {"message": message, "type": "error", "code": str(status)}})

    def authorised(self) -> bool:
        bearer = self.headers.get("Authorization", "")
        if self.has("no_bearer") and bearer:
            bearer = ""
        x_api_key = "" if self.has("no_x_api_key") else self.headers.get("x-api-key", "")
        if self.has("wrong_key_accepted") or (self.has("engine_open") and self.path in ("/invocations", "/version")):
            return True
        return KEY in (bearer[7:] if bearer.startswith("Bearer ") else "", x_api_key)

    def refuse(self) -> None:
        self.error(400 if self.has("wrong_key_400") else 401, "Authentication Error: wrong key")

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.standin.requests.append({"path": self.path, "headers": dict(self.headers), "body": None})
        if path == "/health/liveliness":
            return self.send(500 if self.has("liveliness_500") else 200, "I'm alive!")
        if path == "/health/readiness":
            return self.send(503 if self.has("readiness_503") else 200, {"status": "connected"})
        if path == "/health":
            return self.send(503 if self.has("backend_503") else 200, {})
        if path in ("/v1/models", "/version") and not self.authorised():
            return self.refuse()
        if path == "/v1/models":
            names = [] if self.has("models_empty") else [self.standin.model]
            if self.has("models_not_json"):
                return self.send(200, b"<html>bad gateway</html>")
            return self.send(200, {"object": "list", "data": [{"id": n, "object": "model"} for n in names]})
        return self.error(404, "not found")

    def do_POST(self) -> None:
        path = self.path.split("?")[0]
        raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = json.loads(raw)
        self.standin.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
        if not self.authorised():
            return self.refuse()
        if self.has("hang"):
            self.standin.release.wait()
            return None
        if "api_base" in body and not self.has("foreign_field_accepted"):
            name = "a field" if self.has("foreign_field_unnamed") else "'api_base'"
            return self.error(400, name + " is not accepted here")
        if self.has("post_500"):
            return self.error(500, "engine core is dead, key was " + KEY)
        known = body.get("model") == self.standin.model
        if not known and not self.has("unknown_model_accepted"):
            if self.has("unknown_model_500"):
                return self.error(500, "no model %s" % body.get("model"))
            if self.has("unknown_model_unnamed"):
                return self.error(400, "no healthy deployments")
            if self.has("unknown_model_leaks"):
                return self.error(404, "no model %s at %s" % (body.get("model"), self.standin.url))
            return self.error(404, "The model `%s` does not exist." % body.get("model"))
        if path == "/v1/messages/count_tokens":
            if self.has("count_404"):
                return self.error(404, "not found")
            count = 0 if self.has("count_zero") else 7 if self.has("count_constant") else len(raw) // 4
            return self.send(200, {"input_tokens": count})
        if path not in ("/v1/messages", "/v1/chat/completions"):
            return self.error(404, "not found")
        turn = self.mutate(reply(body), body)
        if path == "/v1/messages":
            return self.messages(body, turn)
        return self.chat(body, turn)

    def mutate(self, turn: dict, body: dict) -> dict:
        results = sum(1 for m in body["messages"] if _is_tool_result(m))
        turn = {"text": turn["text"], "calls": [dict(c) for c in turn["calls"]]}
        if self.has("empty_answers") and not turn["calls"]:
            turn["text"] = ""
        if self.has("garbled_utf8"):
            turn["text"] = turn["text"].encode("utf-8").decode("latin-1")
        if self.has("tool_as_text") and turn["calls"]:
            turn = {"text": json.dumps(turn["calls"][0]), "calls": []}
        if self.has("tool_wrong_name"):
            for call in turn["calls"]:
                call["name"] = "get_wether"
        if self.has("tool_args_empty"):
            for call in turn["calls"]:
                call["input"] = {}
        if self.has("parallel_single"):
            turn["calls"] = turn["calls"][:1]
        if self.has("parallel_same"):
            turn["calls"] = turn["calls"][:1] * len(turn["calls"])
        if self.has("tool_result_ignored") and results:
            turn = {"text": "", "calls": [{"name": "get_weather", "input": {"city": "Beijing"}}]}
        return turn

    def arguments(self, call: dict) -> str:
        text = json.dumps(call["input"], ensure_ascii=False)
        return text[:-1] if self.has("tool_args_cut") else text

    # Server-sent events

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.has("slow_first_token"):
            time.sleep(1.5)  # clock: it is slow on purpose

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def event(self, payload: Any, name: Optional[str] = None) -> None:
        head = "event: %s\n" % name if name else ""
        text = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
        data = (head + "data: " + text + "\n\n").encode()
        # Cut inside a character, so that a reader that decodes chunk by chunk is found out.
        self.chunk(data[: len(data) // 2 + 1])
        self.chunk(data[len(data) // 2 + 1 :])

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    @staticmethod
    def pieces(text: str, size: int = 5) -> list[str]:
        return [text[i : i + size] for i in range(0, len(text), size)]

    # Anthropic

    def messages(self, body: dict, turn: dict) -> None:
        prompt = json.dumps([body.get("tools"), body.get("system"), body["messages"]])
        cached = 0 if self.has("no_cache") or self.has("usage_zero") else self.standin.cached(prompt)
        usage = {
            "input_tokens": 0 if self.has("usage_zero") else max(1, len(prompt) // 4 - cached),
            "output_tokens": 9,
            "cache_read_input_tokens": cached,
        }
        blocks: list[dict] = []
        if turn["text"]:
            blocks.append({"type": "text", "text": turn["text"]})
        for i, call in enumerate(turn["calls"]):
            use_id = "toolu_%d_%d" % (len(body["messages"]), 0 if self.has("same_ids") else i)
            blocks.append({"type": "tool_use", "id": use_id, **call})
        stop = "tool_use" if turn["calls"] and not self.has("stop_reason_wrong") else "end_turn"
        message = {
            # Claude Code merges assistant messages that share an id, so each gets its own.
            "id": "msg_%d" % len(self.standin.requests), "type": "message", "role": "assistant", "model": body["model"],
            "content": blocks, "stop_reason": stop, "stop_sequence": None, "usage": usage,
        }  # fmt: skip
        if not body.get("stream"):
            if self.has("tool_args_cut"):
                for block in blocks:
                    if block["type"] == "tool_use":
                        block["input"] = json.dumps(block["input"])[:-1]
            return self.send(200, message)
        self.start_stream()
        started = {**message, "content": [], "stop_reason": None}
        self.event({"type": "message_start", "message": started}, "message_start")
        for index, block in enumerate(blocks):
            if block["type"] == "text":
                empty: dict = {"type": "text", "text": ""}
                deltas: list[dict] = [{"type": "text_delta", "text": p} for p in self.pieces(block["text"])]
            else:
                empty = {**block, "input": {}}
                cut = self.arguments({"input": block["input"]})
                deltas = [{"type": "input_json_delta", "partial_json": p} for p in self.pieces(cut)]
            self.event({"type": "content_block_start", "index": index, "content_block": empty}, "content_block_start")
            for delta in deltas:
                self.event({"type": "content_block_delta", "index": index, "delta": delta}, "content_block_delta")
                if self.has("stream_error"):
                    error = {"type": "error", "error": {"type": "api_error", "message": "EngineDeadError"}}
                    self.event(error, "error")
                    return self.end_stream()
            if not self.has("stream_no_block_stop"):
                self.event({"type": "content_block_stop", "index": index}, "content_block_stop")
        if not self.has("stream_cut"):
            delta = {"stop_reason": stop, "stop_sequence": None}
            self.event({"type": "message_delta", "delta": delta, "usage": usage}, "message_delta")
            self.event({"type": "message_stop"}, "message_stop")
        return self.end_stream()

    # OpenAI

    def chat(self, body: dict, turn: dict) -> None:
        calls: list[dict] = [
            {
                "id": "call_%d_%d" % (len(body["messages"]), 0 if self.has("same_ids") else i),
                "type": "function",
                "function": {"name": c["name"], "arguments": self.arguments(c)},
            }
            for i, c in enumerate(turn["calls"])
        ]
        stop = "tool_calls" if calls and not self.has("stop_reason_wrong") else "stop"
        usage = {"prompt_tokens": 0 if self.has("usage_zero") else 11, "completion_tokens": 9, "total_tokens": 20}
        head = {"id": "chatcmpl-%d" % len(self.standin.requests), "created": 1, "model": body["model"]}
        if not body.get("stream"):
            message: dict = {"role": "assistant", "content": turn["text"] or None}
            if calls:
                message["tool_calls"] = calls
            choice = {"index": 0, "message": message, "finish_reason": stop}
            return self.send(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        self.start_stream()
        deltas: list[dict] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": p} for p in self.pieces(turn["text"])]
        for i, call in enumerate(calls):
            first = {**call, "index": i, "function": {"name": call["function"]["name"], "arguments": ""}}
            deltas.append({"tool_calls": [first]})
            for piece in self.pieces(call["function"]["arguments"]):
                deltas.append({"tool_calls": [{"index": i, "function": {"arguments": piece}}]})
        head["object"] = "chat.completion.chunk"
        for delta in deltas:
            self.event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            if self.has("stream_error"):
                self.event({"error": {"message": "EngineDeadError", "code": 500}})
                return self.end_stream()
        if not self.has("stream_cut"):
            self.event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": stop}]})
            self.event({**head, "choices": [], "usage": usage})
            self.event("[DONE]")
        return self.end_stream()


if __name__ == "__main__":
    import sys

    with Standin(port=int(sys.argv[1])) as standin:
        print(standin.url, flush=True)
        seen = 0
        while True:
            time.sleep(0.2)  # clock: between two looks
            while seen < len(standin.requests):
                print(json.dumps(standin.requests[seen]), flush=True)
                seen += 1
