"""The way out: what a client sees of an answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from .errors import BROKEN, Refused, reword, reword_event, shaped
from .headers import given_back
from .metering import Meter, WithoutUsage

Send = Callable[[dict], Awaitable[None]]


class Answer:
    """Sends a response on: without the headers that concern nobody, with errors in the client's shape."""

    def __init__(self, send: Send, anthropic: bool) -> None:
        self.send = send
        self.anthropic = anthropic
        self.started = False
        self.done = False
        self.meter: Callable[[int, int], None] | None = None
        #: The usage in the stream is for the meter alone.
        self.hide_usage = False
        #: Asked for one of the listed models: the list comes, and this stays of it.
        self.pick = ""
        self._held: dict | None = None
        self._body = b""
        self._stream = False
        self._meter: Meter | None = None
        self._filter: WithoutUsage | None = None

    async def __call__(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body":
            await self._part(message.get("body", b""), bool(message.get("more_body")))

    async def _start(self, message: dict) -> None:
        headers = {name.lower(): value for name, value in message.get("headers", [])}
        kind = headers.get(b"content-type", b"")
        if message["status"] >= 400 or (self.pick and message["status"] == 200):
            self._held = message
            return
        self._stream = kind.startswith(b"text/event-stream")
        if self.meter and kind.startswith((b"text/event-stream", b"application/json")):
            self._meter = Meter(self.meter, self._stream)
        if self.hide_usage and self._stream:
            self._filter = WithoutUsage()
        self.started = True
        await self.send({**message, "headers": given_back(message.get("headers", []))})

    async def _part(self, part: bytes, more: bool) -> None:
        if self._held is not None:
            self._body += part
            if not more:
                status, body = self._whole(self._held["status"])
                await self._finish(status, body, given_back(self._held.get("headers", [])))
            return
        if self._meter:
            self._meter.feed(part, not more)
        if self._filter:
            part = self._filter.feed(part, not more)
            if not part and more:
                return
        if self._stream:
            part = reword_event(part, self.anthropic)
        self.done = not more
        await self.send({"type": "http.response.body", "body": part, "more_body": more})

    def _whole(self, status: int) -> tuple[int, bytes]:
        if status >= 400:
            return reword(status, self._body, self.anthropic)
        for entry in json.loads(self._body)["data"]:
            if entry["id"] == self.pick:
                return 200, json.dumps(entry).encode()
        # A name that only a wildcard covers is on no list, and works all the same.
        return 200, json.dumps({"id": self.pick, "object": "model", "created": 0, "owned_by": "modelhost"}).encode()

    async def refuse(self, refusal: Refused, discard: Callable[[], Awaitable[None]] | None) -> None:
        """Answer with a refusal. discard: throws away what the client still sends, if the body was not taken."""
        body = shaped(refusal.status, refusal.message, self.anthropic, refusal.kind, refusal.param)
        headers = [(b"retry-after", b"%d" % refusal.retry_after)] if refusal.retry_after is not None else []
        if discard:
            headers.append((b"connection", b"close"))
        await self._finish(refusal.status, body, headers, discard)

    async def broken(self) -> None:
        """Answer for something that went wrong on our side, as far as an answer is still possible."""
        if self.done:
            return
        if not self.started:
            await self._finish(500, shaped(500, BROKEN, self.anthropic), [])
            return
        if self._stream:
            event = b"event: error\n" if self.anthropic else b""
            event += b"data: " + shaped(500, BROKEN, self.anthropic) + b"\n\n"
            await self.send({"type": "http.response.body", "body": event, "more_body": False})
            self.done = True

    async def _finish(
        self,
        status: int,
        body: bytes,
        headers: list[tuple[bytes, bytes]],
        discard: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        own = (b"content-length", b"content-type")
        kept: list[Any] = [(name, value) for name, value in headers if name.lower() not in own]
        kept += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        self.started = self.done = True
        await self.send({"type": "http.response.start", "status": status, "headers": kept})
        await self.send({"type": "http.response.body", "body": body, "more_body": discard is not None})
        if discard:
            await discard()
            await self.send({"type": "http.response.body", "body": b""})
