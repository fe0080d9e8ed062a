"""Reads from an answer on its way what the engine says it used."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

#: An answer that is not streamed is read up to this size; the longest text of a model is far below.
MAX_WHOLE = 16 << 20
#: The longest line of a stream that is waited for.
MAX_LINE = 1 << 20


class Meter:
    """Is given the body of a good answer piece by piece, and tells `settle` the tokens."""

    def __init__(self, settle: Callable[[int, int], None], stream: bool) -> None:
        self.settle = settle
        self.stream = stream
        self.held = b""
        self.told = (0, 0)

    def feed(self, part: bytes, last: bool) -> None:
        """The next piece of the body."""
        if len(self.held) + len(part) > (MAX_LINE if self.stream else MAX_WHOLE):
            # Not a stream of events, or not one of ours: nothing is held for it.
            self.held = b""
            return
        self.held += part
        if self.stream:
            *lines, self.held = self.held.split(b"\n")
            for line in lines:
                if line.startswith(b"data:") and b'"usage"' in line:
                    self.read(line[5:])
        elif last:
            self.read(self.held)

    def read(self, raw: bytes) -> None:
        try:
            content = json.loads(raw)
        except (ValueError, RecursionError):
            return
        for place in (content, _below(content, "message"), _below(content, "response")):
            usage = _below(place, "usage")
            if usage:
                prompt = _number(usage, "prompt_tokens", "input_tokens")
                # Anthropic counts apart what came from the cache; it was a prompt all the same.
                prompt += _number(usage, "cache_read_input_tokens") + _number(usage, "cache_creation_input_tokens")
                completion = _number(usage, "completion_tokens", "output_tokens")
                self.told = (max(self.told[0], prompt), max(self.told[1], completion))
                self.settle(*self.told)


class WithoutUsage:
    """Takes out of a stream of chat completions the usage that the client has not asked for."""

    def __init__(self) -> None:
        self.held = b""

    def feed(self, part: bytes, last: bool) -> bytes:
        """The next piece of the stream -> what the client gets of it."""
        *events, self.held = (self.held + part).split(b"\n\n")
        if last or len(self.held) > MAX_LINE:
            rest, self.held = self.held, b""
        else:
            rest = b""
        return b"".join(map(self._event, events)) + rest

    def _event(self, event: bytes) -> bytes:
        if event.startswith(b"data: {") and b'"usage"' in event:
            try:
                content = json.loads(event[6:])
            except (ValueError, RecursionError):
                content = {}
            if content.pop("usage", None):
                if not any(_says_something(choice) for choice in content.get("choices") or ()):
                    return b""
                event = b"data: " + json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
        return event + b"\n\n"


def _says_something(choice: Any) -> bool:
    """Whether a choice of a chunk holds more than an empty frame."""
    if not isinstance(choice, dict):
        return True
    delta = choice.get("delta")
    said = delta.values() if isinstance(delta, dict) else (choice.get("text"),)
    return bool(choice.get("finish_reason") or any(said))


def _below(content: Any, name: str) -> dict[str, Any]:
    found = content.get(name) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _number(usage: dict[str, Any], *names: str) -> int:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0
