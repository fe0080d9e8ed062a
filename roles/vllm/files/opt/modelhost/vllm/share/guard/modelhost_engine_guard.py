# MIT licence (see LICENSE)
"""Stands before an engine and wants its key for every route and every method, WebSockets included.

vLLM's own check covers a few prefixes of paths; what lies beside them (`/invocations`, `/tokenize`) answers anybody.
`Guard` knows nothing of vLLM and wraps any ASGI application; `EngineGuard`, which `vllm serve --middleware` takes,
reads what it needs from the environment:

* VLLM_API_KEY: the engine's key;
* MODELHOST_ENGINE_KEYS: a folder with a file `keys`, in each line the SHA-256 of a key that opens the engine. It is
  read again whenever it changes: keys are exchanged without a restart. Where it is set, VLLM_API_KEY opens nothing;
* MODELHOST_METRICS_CLIENTS: addresses and networks, separated by spaces, that may read /metrics without a key.

Runs in the engine's Python. Standard library only.
"""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import os

#: Answers without a key: whoever watches the engine asks this and learns nothing else by it.
OPEN = "/health"
METRICS = "/metrics"
READING = ("GET", "HEAD")
#: What of a refused request's body is thrown away before the connection is closed. A client that still writes when it
#: is closed would see an error of its network instead of the answer.
LINGER_BYTES, LINGER_SECONDS = 1 << 20, 2
#: In the shape of OpenAI's API and of Anthropic's at once.
REFUSAL = json.dumps(
    {
        "type": "error",
        "error": {
            "type": "authentication_error",
            "code": "invalid_api_key",
            "param": None,
            "message": "This engine wants its key, as `Authorization: Bearer …` or as `x-api-key`.",
        },
    },
    ensure_ascii=False,
).encode()
HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(REFUSAL)).encode()),
    (b"www-authenticate", b"Bearer"),
    (b"connection", b"close"),
]


def digest(key):
    """A key as it is compared: SHA-256, in hex digits."""
    return hashlib.sha256(key).hexdigest()


class KeysFile:
    """The digests of a file, read again whenever it changes. A missing or broken file opens nothing."""

    def __init__(self, path):
        self.path, self.seen, self.digests = path, None, ()

    def __call__(self):
        try:
            found = os.stat(self.path)
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self.seen:
                with open(self.path, encoding="ascii") as handle:
                    self.digests = tuple(handle.read().split())
                self.seen = seen
        except (OSError, ValueError):
            self.seen, self.digests = None, ()
        return self.digests


def credentials(headers):
    """Every key that a request brings, in either header; another scheme than Bearer counts as a wrong key."""
    found = []
    for name, value in headers:
        name = name.lower()
        if name == b"x-api-key":
            found.append(value.strip())
        elif name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            found.append(key.strip() if scheme.lower() == b"bearer" else b"")
    return found


class Guard:
    """An ASGI application that lets through to another who has the key.

    accepted: gives the digests of the keys that open; inner: the key that the application itself asks for, which takes
    the place of what came (None: nothing does); metrics: networks from which /metrics is read without a key.
    """

    def __init__(self, app, accepted, inner=None, metrics=()):
        self.app, self.accepted, self.inner, self.metrics = app, accepted, inner, tuple(metrics)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or self.is_open(scope):
            await self.app(scope, receive, send)
        elif self.has_key(scope):
            await self.app(self.passed_on(scope), receive, send)
        elif scope["type"] == "websocket":
            # Before the handshake: servers answer 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.refuse(receive, send)

    def is_open(self, scope):
        """Whether this needs no key: /health for everybody, /metrics for the clients that are named."""
        if scope["type"] != "http" or scope["method"] not in READING:
            return False
        return scope["path"] == OPEN or (scope["path"] == METRICS and self.is_metrics_client(scope))

    def is_metrics_client(self, scope):
        """Whether the connection comes from a named address. Servers believe X-Forwarded-For of a local sender, so
        nothing that carries it is taken for its address."""
        if not self.metrics or not scope.get("client"):
            return False
        if any(name.lower() == b"x-forwarded-for" for name, _value in scope["headers"]):
            return False
        try:
            address = ipaddress.ip_address(scope["client"][0])
        except ValueError:
            return False
        # A client of IPv4 at a socket for both.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self.metrics)

    def has_key(self, scope):
        """Whether the request brings a key, and no other. Takes as long for a wrong key as for a right one."""
        found, digests = credentials(scope.get("headers") or []), self.accepted()
        right = [False] * len(found)
        for at, key in enumerate(found):
            for accepted in digests:
                right[at] |= hmac.compare_digest(digest(key).encode(), accepted.encode())
        return bool(right) and all(right)

    def passed_on(self, scope):
        """The request as the application sees it: with its own key, in the one header that it knows."""
        if self.inner is None:
            return scope
        headers = [item for item in scope["headers"] if item[0].lower() not in (b"authorization", b"x-api-key")]
        return {**scope, "headers": [*headers, (b"authorization", b"Bearer " + self.inner)]}

    async def refuse(self, receive, send):
        """401. Nothing of the body is kept or looked at."""
        await send({"type": "http.response.start", "status": 401, "headers": HEADERS})
        await send({"type": "http.response.body", "body": REFUSAL, "more_body": True})
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.discard(receive), LINGER_SECONDS)
        await send({"type": "http.response.body", "body": b""})

    async def discard(self, receive):
        """Let a client finish what it was writing, within bounds."""
        left = LINGER_BYTES
        while left > 0:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body"):
                return
            left -= len(message.get("body", b""))


class EngineGuard(Guard):
    """The guard as `vllm serve --middleware modelhost_engine_guard.EngineGuard` makes it."""

    def __init__(self, app):
        key = os.environ.get("VLLM_API_KEY", "").encode()
        folder = os.environ.get("MODELHOST_ENGINE_KEYS", "")
        if not key:
            raise RuntimeError("VLLM_API_KEY is not set: an engine does not serve without a key")
        digests = (digest(key),)
        accepted = KeysFile(os.path.join(folder, "keys")) if folder else lambda: digests
        networks = map(ipaddress.ip_network, os.environ.get("MODELHOST_METRICS_CLIENTS", "").split())
        super().__init__(app, accepted, key, networks)
