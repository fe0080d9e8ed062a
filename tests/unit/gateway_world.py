"""What the tests of `modelhost_gateway` share: two users, and one request through the front."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/litellm/files/opt/modelhost/litellm/lib"))

from modelhost_gateway import front

ALICE, BOB = "sk-" + "a" * 40, "sk-" + "b" * 40
ALL = ["local-claude-a", "model-a", "opus", "claude-*", "local-claude-b", "model-b"]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def content() -> dict[str, Any]:
    return {
        "models": ALL,
        "users": [
            {"name": "alice", "sha256": sha256(ALICE), "models": ALL},
            {"name": "bob", "sha256": sha256(BOB), "models": ["local-claude-b", "model-b"]},
        ],
    }


@dataclass
class Sent:
    """What came out of the front."""

    status: int
    headers: dict[bytes, bytes]
    raw: bytes
    #: What the application behind was given: scope and body; None if it was not asked.
    inner: tuple[dict[str, Any], bytes] | None
    #: How many pieces of the body were taken before the answer.
    taken: int

    @property
    def message(self) -> str:
        return str(json.loads(self.raw)["error"]["message"])

    @property
    def body(self) -> dict[str, Any]:
        assert self.inner is not None
        found = json.loads(self.inner[1])
        assert isinstance(found, dict)
        return found


def echo(seen: list[Any], answer: Any = None) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, (await receive())["body"]))
        if answer:
            await answer(send)
            return
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/json"), (b"server", b"x"), (b"x-litellm-version", b"1")],
            }
        )
        await send({"type": "http.response.body", "body": b"{}"})

    return app


def ask(
    store: Any,
    key: str | None,
    model: Any = "local-claude-b",
    path: str = "/v1/messages",
    method: str = "POST",
    content: Any = None,
    more: list[tuple[bytes, bytes]] | None = None,
    raw: bytes | None = None,
    answer: Any = None,
    query: bytes = b"",
    **options: Any,
) -> Sent:
    """Send one request through the front."""
    data = raw if raw is not None else json.dumps(content or {"model": model, "messages": []}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    if key is not None:
        head.append((b"authorization", key.encode("utf-8", "surrogatepass")))
    head = [item for item in head if item[0] not in {name for name, _ in more or ()}] + (more or [])
    seen: list[Any] = []
    taken = before = 0
    out: list[dict[str, Any]] = []

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            nonlocal taken
            taken += 1
            if taken == 1:
                return {"type": "http.request", "body": data}
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            nonlocal before
            if not out:
                before = taken
            out.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": head, "query_string": query}
        await front.Front(echo(seen, answer), store, **options)(scope, receive, send)

    asyncio.run(run())
    return Sent(
        out[0]["status"],
        dict(out[0]["headers"]),
        b"".join(item.get("body", b"") for item in out[1:]),
        seen[0] if seen else None,
        before,
    )


def user_of(sent: Sent) -> str:
    assert sent.inner is not None, sent.raw
    return str(sent.inner[0][front.USER].name)


def refusal(*arguments: Any, **options: Any) -> Sent:
    sent = ask(*arguments, **options)
    assert sent.inner is None
    assert sent.status >= 400
    return sent


def parts(status: int, kind: bytes, *pieces: bytes) -> Any:
    async def answer(send: Any) -> None:
        head = [(b"content-type", kind), (b"content-length", b"3"), (b"retry-after", b"1")]
        await send({"type": "http.response.start", "status": status, "headers": head})
        for index, piece in enumerate(pieces):
            await send({"type": "http.response.body", "body": piece, "more_body": index + 1 < len(pieces)})

    return answer
