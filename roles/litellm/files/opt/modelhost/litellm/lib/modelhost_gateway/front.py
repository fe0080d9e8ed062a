"""The order of a request's way in: key, headers, body, fields, model, limits; and only then whoever answers.

Nothing here knows LiteLLM: `inner` is any ASGI application, and gets a request that is written anew from what was
checked.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import body, headers, routes
from .admission import Limits, NoLimits
from .answer import Answer, Send
from .errors import Refused, bad_request
from .journal import Journal
from .keys import KeyStore, User, check_model, owner
from .shapes import Seen, Walk
from .turns import Turns

LOG = logging.getLogger("modelhost.gateway")

#: Where `inner` finds the user in the scope. No header and no body leads there.
USER = "modelhost.user"

#: Seconds that `inner` has to stop after the client has left.
STOP_SECONDS = 30


@dataclass(frozen=True)
class Request:
    """A request that was let in."""

    user: User
    route: routes.Route
    headers: headers.Headers
    raw: bytes = b""
    model: str = ""
    max_tokens: int | None = None
    hide_usage: bool = False


@dataclass
class Entry:
    """How far a request has come."""

    #: The key was good.
    known: bool = False
    #: There is no body, or all of it was taken.
    taken: bool = False


class Front:
    """ASGI application before the one that answers."""

    def __init__(
        self,
        inner: Any,
        store: KeyStore,
        limits: Limits | None = None,
        max_bytes: int = 32 << 20,
        body_seconds: float = 120,
    ) -> None:
        self.inner = inner
        self.store = store
        self.limits: Limits = limits or NoLimits()
        self.bodies = body.Bodies(max_bytes, body_seconds)
        self.turns = Turns()
        self.seen = Seen()
        self.journal = Journal()

    async def __call__(self, scope: dict, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.inner(scope, receive, send)
            return
        if scope["type"] != "http":
            # No WebSocket is offered.
            await send({"type": "websocket.close", "code": 1008})
            return
        path, method = scope["path"].rstrip("/"), scope["method"]
        answer = Answer(send, routes.is_anthropic(path, scope["headers"]))
        entry = Entry(taken=method in ("GET", "HEAD"))
        try:
            if entry.taken and routes.PROBES.fullmatch(path):
                probe = {**scope, "method": "GET", "query_string": b"", "headers": headers.handed_on((), None)}
                await self.inner(probe, _nothing, answer)
                return
            request = await self.let_in(scope, receive, entry)
            await self.hand_on(request, scope, receive, answer)
        except Refused as refusal:
            self.journal.line(
                "refused with %d" % refusal.status, "%s %s from %s: %s", method, path, _client(scope), refusal.message
            )
            rest = None if entry.taken else partial(self.bodies.discard, receive, entry.known)
            await answer.refuse(refusal, rest)
        except body.ClientGone:
            return
        except Exception as error:
            # LiteLLM's own errors come as answers; this is what neither it nor we have thought of.
            LOG.error("%s %s: %s: %s", method, ascii(path[:200]), type(error).__name__, ascii(str(error)[:500]))
            await answer.broken()

    async def let_in(self, scope: dict, receive: Any, entry: Entry) -> Request:
        """The request, checked; Refused if it may not pass."""
        path, method = scope["path"], scope["method"]
        route = routes.find(method, path)
        if route is None:
            message = "There is no %s %s here. This gateway offers %s." % (
                ascii(method[:20])[1:-1],
                ascii(path[:80])[1:-1],
                routes.OFFERED,
            )
            raise Refused(404, "not_found_error", message)
        found = headers.single(scope["headers"])
        # Before anything of the body is read: it costs nothing to be turned away.
        user = owner(self.store, headers.key(found))
        entry.known = True
        if route.fields is None:
            if route.model:
                check_model(user, route.model, self.store.known)
            return Request(user, route, headers.handed_on(scope["headers"], None))
        if b"model=" in scope.get("query_string", b""):
            raise bad_request("Name the model in the body, not in the address.", "model")
        length = headers.body_length(found)
        sent = await self.bodies.read(length, receive, user.name)
        entry.taken = True
        async with self.turns.of(user.name):
            content = Walk(route.path, self.seen).top(body.parse(sent), route.fields)
            check_model(user, content.get("model"), self.store.known)
            routes.check_amounts(route, content)
            hide_usage = routes.ask_for_usage(route, content)
            raw = body.written(content)
        return Request(
            user,
            route,
            headers.handed_on(scope["headers"], len(raw)),
            raw,
            content["model"],
            routes.max_tokens(content),
            hide_usage,
        )

    async def hand_on(self, request: Request, scope: dict, receive: Any, answer: Answer) -> None:
        """Give the request to whoever answers it, as long as the client is there."""
        scope = {
            **scope,
            "path": request.route.path,
            "raw_path": request.route.path.encode(),
            "query_string": b"",
            "headers": request.headers,
            USER: request.user,
        }
        if request.route.fields is None:
            answer.pick = request.route.model
            await self.inner(scope, _nothing, answer)
            return
        admission = await self.limits.admit(
            request.user,
            len(request.raw),
            request.max_tokens,
            model=request.model,
            light=request.route.path.endswith("count_tokens"),
        )
        try:
            answer.meter = admission.settle
            answer.hide_usage = request.hide_usage
            await self.attend(scope, request.raw, receive, answer)
        finally:
            admission.release()

    async def attend(self, scope: dict, raw: bytes, receive: Any, answer: Answer) -> None:
        """Run `inner` until it has answered or the client has left; then nothing works for it any longer."""
        gone = asyncio.Event()
        given = False

        async def given_on() -> dict:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": raw, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        work = asyncio.create_task(self.inner(scope, given_on, answer))
        watcher = asyncio.create_task(watch())
        try:
            await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not answer.done:
                work.cancel()
                await asyncio.wait((work,), timeout=STOP_SECONDS)
                return
            await work
        finally:
            watcher.cancel()
            if not work.done():
                work.cancel()


async def _nothing() -> dict:
    return {"type": "http.request", "body": b"", "more_body": False}


def _client(scope: dict) -> str:
    return str((scope.get("client") or ["somebody"])[0])
