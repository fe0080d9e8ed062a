"""An engine that records what it is asked. Words in a request make it fail or hang."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from dataclasses import dataclass, field
from typing import Any

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
ANSWERS: dict[str, Any] = {
    "/v1/messages/count_tokens": {"input_tokens": 42},
    "/v1/messages": {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
        "stop_sequence": None, "content": [{"type": "text", "text": "hi"}],
        "usage": {"input_tokens": 5, "output_tokens": 7},
    },
    "/v1/chat/completions": {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    },
    "/v1/completions": {
        "id": "c", "object": "text_completion", "created": 1, "model": "m", "usage": USAGE,
        "choices": [{"index": 0, "text": "hi", "finish_reason": "stop", "logprobs": None}],
    },
    "/v1/responses": {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed", "tools": [],
        "parallel_tool_calls": True, "tool_choice": "auto", "temperature": 1.0, "top_p": 1.0,
        "output": [{"type": "message", "id": "m", "role": "assistant", "status": "completed",
                    "content": [{"type": "output_text", "text": "hi", "annotations": []}]}],
        "usage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12,
                  "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}},
    },
    "/v1/embeddings": {
        "object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    },
}  # fmt: skip
CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
STREAMS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": 'a "usage"'}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ],
    "/v1/messages": [
        {"type": "message_start", "message": {**ANSWERS["/v1/messages"], "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
         "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ],
    "/v1/responses": [
        {"type": "response.created", "sequence_number": 0,
         "response": {**ANSWERS["/v1/responses"], "status": "in_progress", "output": []}},
        {"type": "response.completed", "sequence_number": 1, "response": ANSWERS["/v1/responses"]},
    ],
}  # fmt: skip


@dataclass
class Asked:
    """One request that came."""

    path: str
    headers: dict[str, str]
    body: Any
    #: Set when the other side closed the connection while the answer was pending.
    gone: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Serves in a thread of its own until it is stopped."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.connections = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.start()

    def start(self) -> None:
        """Listen; on the same port as before if it was stopped."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Close the port and all connections."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)

    async def _stop(self) -> None:
        assert self._server
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._answer(reader, writer):
                pass
        self._open.discard(writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        path = head.split(" ")[1]
        asked = Asked(path, headers, json.loads(raw) if raw else None)
        # LiteLLM asks each engine for its models now and then.
        if not head.startswith("GET "):
            self.asked.append(asked)
        text = raw.decode()
        for word, status in (("@500", 500), ("@401", 401), ("@404", 404)):
            if word in text:
                self._whole(writer, status, {"error": {"message": "broken", "type": "x"}})
                return True
        if "@hang" in text:
            if asked.body.get("stream") and "@hang after headers" in text:
                # More than one: LiteLLM holds the first back until it has seen another, or until its first ping.
                self._events(writer, STREAMS[asked.path][:3])
            await reader.read(1)
            asked.gone.set()
            return False
        if asked.body and asked.body.get("stream") and path in STREAMS:
            self._stream(writer, asked)
            await writer.drain()
            return True
        self._whole(writer, 200, ANSWERS.get(path, {"recorded": path}))
        await writer.drain()
        return True

    def _stream(self, writer: asyncio.StreamWriter, asked: Asked) -> None:
        events = list(STREAMS[asked.path])
        if (asked.body.get("stream_options") or {}).get("include_usage"):
            events.append({"choices": [], "usage": USAGE})
        self._events(writer, events)
        if not asked.path.endswith("messages"):
            writer.write(b"e\r\ndata: [DONE]\n\n\r\n")
        writer.write(b"0\r\n\r\n")

    def _events(self, writer: asyncio.StreamWriter, events: list[dict[str, Any]]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in events:
            name = b"event: %s\n" % event["type"].encode() if "type" in event else b""
            line = name + b"data: %s\n\n" % json.dumps(event if name else {**CHUNK, **event}).encode()
            writer.write(b"%x\r\n%s\r\n" % (len(line), line))

    def _whole(self, writer: asyncio.StreamWriter, status: int, content: Any) -> None:
        raw = json.dumps(content).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\nserver: engine\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (status, len(raw), raw)
        )
