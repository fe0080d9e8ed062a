"""What this deployment adds to LiteLLM: users' keys, models of a user, exact token counts.

LiteLLM calls two things here, by names in its configuration and its unit:

* ``user_api_key_auth`` (``general_settings.custom_auth``) answers who a key belongs to, and
  whether that user may have the model that is asked for;
* ``set_up`` (``LITELLM_WORKER_STARTUP_HOOKS``) puts ``Front`` before LiteLLM, which closes every
  route that is not offered and words errors for people, in the shape the client expects;
  and it sends ``count_tokens`` to the engine, which knows, instead of estimating.

Nothing of LiteLLM is imported before it is needed, so that the tests need no LiteLLM.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import hmac
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

LOG = logging.getLogger("modelhost.gateway")

#: Written by the role: hashes of the keys, and what each user may ask for.
KEY_FILE = os.environ.get("MODELHOST_KEY_HASHES", "/etc/modelhost/litellm/key_hashes.json")

#: All that a user's key opens. LiteLLM serves some hundred more routes (keys, users, models,
#: configuration, other vendors' APIs); none of them has a use here.
ROUTES = {
    "GET": re.compile(r"(/v1)?/models(/[^/]+)?"),
    "POST": re.compile(r"(/v1)?/(messages|messages/count_tokens|chat/completions|completions|responses|embeddings)"),
}

#: The same for people.
OFFERED = (
    "/v1/messages, /v1/messages/count_tokens, /v1/chat/completions, /v1/completions, /v1/responses,"
    " /v1/embeddings and /v1/models"
)

#: What needs no key: the two probes that call no engine.
PROBES = re.compile(r"/health/(liveliness|liveness|readiness)")

#: A model's name. No comma: LiteLLM would take "a,b" for two models, and "claude-x,b" also
#: fits the wildcard "claude-*".
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/\[\]-]{0,199}")

#: Fields of a request by which LiteLLM would use other models or servers than the checked one.
FOREIGN_FIELDS = frozenset(
    {
        "api_base",
        "api_key",
        "base_url",
        "content_policy_fallbacks",
        "context_window_fallbacks",
        "fallbacks",
        "model_list",
        "router_settings_override",
        "user_config",
    }
)


class Refused(Exception):
    """A request that is not let through."""

    def __init__(self, status: int, kind: str, message: str, param: str = "None") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.param = param


@dataclass(frozen=True)
class User:
    """Someone with a key."""

    name: str
    sha256: str
    models: tuple[str, ...]


@dataclass
class KeyStore:
    """The file of hashes, read again whenever it changes."""

    path: str
    _seen: tuple[int, int, int] | None = None
    _users: tuple[User, ...] = ()
    _known: tuple[str, ...] = ()
    _reported: str = field(default="", repr=False)

    def refresh(self) -> None:
        """Read the file if it is another one than last time; a bad file opens nothing."""
        try:
            status = os.stat(self.path)
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._seen:
                return
            with open(self.path, encoding="utf-8") as handle:
                content = json.load(handle)
            users = tuple(
                User(str(item["name"]), _digest(item["sha256"]), tuple(map(str, item["models"])))
                for item in content["users"]
            )
            known = tuple(map(str, content["models"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._seen, self._users, self._known = None, (), ()
            reason = "%s: %s" % (type(error).__name__, error)
            if reason != self._reported:
                LOG.error("%s cannot be used, so no key is accepted: %s", self.path, reason)
                self._reported = reason
            return
        self._seen, self._users, self._known, self._reported = stamp, users, known, ""
        LOG.info("%s: keys of %d users", self.path, len(users))

    def find(self, key: str) -> User | None:
        """The owner of a key. Compares with every entry, so that time tells nothing."""
        self.refresh()
        presented = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        owner = None
        for user in self._users:
            if hmac.compare_digest(presented, user.sha256):
                owner = user
        return owner

    @property
    def known(self) -> tuple[str, ...]:
        """Every model name of this gateway."""
        return self._known


def _digest(value: Any) -> str:
    text = str(value).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("an entry's sha256 is not 64 hexadecimal digits")
    return text


def fits(model: str, names: tuple[str, ...]) -> bool:
    """Is this name, or a wildcard that covers it, among the names?"""
    if not MODEL_NAME.fullmatch(model):
        return False
    # Claude Code marks a long window by a suffix; LiteLLM takes it off.
    bare = model[:-4] if model.lower().endswith("[1m]") else model
    return any(bare == name or ("*" in name and fnmatch.fnmatchcase(bare, name)) for name in names)


def _wanted(names: tuple[str, ...]) -> str:
    """The names that a person would set: not the aliases of another vendor's models."""
    own = [name for name in names if name.startswith("local-claude-")] or list(names)
    return ", ".join(sorted(own)) or "none"


def check_model(user: User, model: Any, known: tuple[str, ...]) -> None:
    """Refuse a model that does not exist or is not this user's."""
    if not isinstance(model, str) or not model:
        raise Refused(
            400,
            "invalid_request_error",
            "The request names no model. Set `model` to one of: %s." % _wanted(user.models),
            "model",
        )
    if fits(model, user.models):
        return
    shown = model[:80]
    if fits(model, known):
        raise Refused(
            403,
            "permission_error",
            "Your key is not for the model '%s'. It may use: %s." % (shown, _wanted(user.models)),
            "model",
        )
    raise Refused(
        404, "not_found_error", "There is no model '%s' here. You may use: %s." % (shown, _wanted(user.models)), "model"
    )


def check(store: KeyStore, key: str, method: str, path: str, query: Any, body: Any) -> User:
    """Who asks, if this request may pass; Refused if not."""
    if key[:7].lower() == "bearer ":
        key = key[7:].strip()
    user = store.find(key) if key else None
    if user is None:
        raise Refused(
            401,
            "authentication_error",
            "This gateway does not know the key that was sent. Send a user's key as"
            " 'Authorization: Bearer sk-...' or 'x-api-key: sk-...'; the administrator finds"
            " it in the gateway's key folder.",
        )
    path = path.rstrip("/") or "/"
    route = ROUTES.get("GET" if method == "HEAD" else method)
    if route is None or not route.fullmatch(path):
        message = "A user's key does not open %s %s. It opens %s." % (method, path[:80], OFFERED)
        raise Refused(403, "permission_error", message)
    if method in ("GET", "HEAD"):
        return user
    if "model" in (query or {}):
        raise Refused(400, "invalid_request_error", "Name the model in the body, not in the address.", "model")
    if not isinstance(body, dict):
        raise Refused(400, "invalid_request_error", "The request's body is not a JSON object.")
    foreign = sorted(FOREIGN_FIELDS.intersection(body))
    if foreign:
        raise Refused(
            400,
            "invalid_request_error",
            "The field '%s' is not accepted here; take it out of the request." % foreign[0],
            foreign[0],
        )
    check_model(user, body.get("model"), store.known)
    return user


STORE = KeyStore(KEY_FILE)


async def user_api_key_auth(request: Any, api_key: str) -> Any:
    """LiteLLM's `custom_auth`."""
    from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth

    body: Any = None
    if request.method == "POST":
        try:
            body = json.loads(await request.body())
        except ValueError:
            body = None
    try:
        user = check(STORE, api_key or "", request.method, request.url.path, request.query_params, body)
    except Refused as refusal:
        raise ProxyException(
            message=refusal.message, type=refusal.kind, param=refusal.param, code=refusal.status
        ) from None
    # LiteLLM gets a name for the log and the hash, never the key itself, and the list of
    # models once more: its own check runs after this one.
    return UserAPIKeyAuth(
        api_key=user.sha256,
        token=user.sha256,
        key_alias=user.name,
        user_id=user.name,
        user_role=LitellmUserRoles.INTERNAL_USER,
        models=list(user.models),
    )


# --- errors -------------------------------------------------------------------------------

#: Anthropic's name for an HTTP status.
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

#: How LiteLLM wraps what an engine answered.
_WRAPPED = re.compile(
    r"^(?:[\w.]+: )*Hosted_vllmException - (.*?)"
    r"(?:\n+(?:Deployment Info:|LiteLLM: model group).*)?$",
    re.DOTALL,
)
_UNREACHABLE = re.compile(
    r"Cannot connect to host|Connection error|Connect call failed|Name or service not known"
    r"|Server disconnected|payload is not completed|Connection reset",
    re.IGNORECASE,
)
_TOO_SLOW = re.compile(r"Timeout Error|Timeout on reading|Connection timed out|timed out", re.IGNORECASE)
_TOO_LONG = re.compile(r"maximum context length|longer than the maximum model length", re.IGNORECASE)
_LENGTHS = re.compile(r"maximum context length is (\d+) tokens.*?(?:contains at least|requested) (\d+)", re.DOTALL)

NO_ENGINE = (
    "The engine behind this model does not answer: it is starting, restarting or stopped."
    " Try again in a moment. Administrators: systemctl status 'vllm@*' on the engine's host."
)
TOO_SLOW = (
    "The engine did not answer in the time the gateway allows. Long prompts on slow engines need more:"
    " administrators raise litellm_request_timeout and litellm_stream_timeout (seconds)."
)


def plain(status: int, message: str) -> tuple[int, str]:
    """LiteLLM's wording of an engine's error -> status and message for a person.

    The engine's own sentence is kept; its address and LiteLLM's inner names are not.
    """
    wrapped = _WRAPPED.match(message.strip())
    inner = wrapped.group(1).strip() if wrapped else message.strip()
    if inner.startswith("{"):
        # LiteLLM may add remarks of its own behind the engine's JSON.
        with contextlib.suppress(ValueError, AttributeError):
            content, _ = json.JSONDecoder().raw_decode(inner)
            found = content.get("error", content)
            inner = str(found.get("message") or inner) if isinstance(found, dict) else str(found)
    # 429 is LiteLLM's word for "every replica of this model has just failed".
    if (status >= 500 and _UNREACHABLE.search(inner)) or inner.startswith("No deployments available"):
        return 503, NO_ENGINE
    if status in (408, 500, 504) and _TOO_SLOW.search(inner):
        return 504, TOO_SLOW
    if status == 400 and _TOO_LONG.search(inner) and "prompt is too long" not in inner.lower():
        # These words are how Claude Code knows that it has to compact.
        lengths = _LENGTHS.search(inner)
        inner = "prompt is too long: " + (
            "%s tokens > %s maximum" % (lengths.group(2), lengths.group(1)) if lengths else inner
        )
    return status, inner


def reword(status: int, raw: bytes, anthropic: bool) -> tuple[int, bytes]:
    """An error's status and body -> the same, plainly, in the client's shape."""
    try:
        content = json.loads(raw)
        error = content["error"]
        message, kind = str(error["message"]), error.get("type")
    except (ValueError, KeyError, TypeError):
        detail = None
        with contextlib.suppress(ValueError, AttributeError):
            detail = json.loads(raw).get("detail")
        message, kind, error = str(detail or "HTTP %d" % status), None, {}
    new_status, message = plain(status, message)
    if anthropic:
        kind = ANTHROPIC_TYPES.get(new_status, "api_error" if new_status >= 500 else "invalid_request_error")
        content = {"type": "error", "error": {"type": kind, "message": message}}
    else:
        if new_status != status or not kind:
            kind = ANTHROPIC_TYPES.get(new_status, "api_error")
        content = {"error": {"message": message, "type": kind, "param": error.get("param"), "code": str(new_status)}}
    return new_status, json.dumps(content, ensure_ascii=False).encode()


def reword_event(chunk: bytes, anthropic: bool) -> bytes:
    """A chunk of a stream; an error event in it is worded plainly."""
    if b'"error"' not in chunk:
        return chunk
    lines = []
    for line in chunk.split(b"\n"):
        if line.startswith(b"data: {"):
            try:
                content = json.loads(line[6:])
            except ValueError:
                content = None
            error = content.get("error") if isinstance(content, dict) else None
            # Only an event that is nothing but an error; never one of the model's own text.
            if (
                isinstance(error, dict)
                and set(content) <= {"type", "error"}
                and content.get("type", "error") == "error"
            ):
                _, message = plain(500, str(error.get("message", "")))
                content["error"] = {**error, "message": message}
                if anthropic:
                    content = {"type": "error", "error": {"type": "api_error", "message": message}}
                line = b"data: " + json.dumps(content, ensure_ascii=False).encode()
        lines.append(line)
    return b"\n".join(lines)


Send = Callable[[dict], Awaitable[None]]


class Front:
    """ASGI application before LiteLLM: offers the routes above and no others; words errors."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def __call__(self, scope: dict, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.inner(scope, receive, send)
            return
        if scope["type"] != "http":
            # No WebSocket is offered.
            await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"].rstrip("/") or "/"
        anthropic = "/messages" in path
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        route = ROUTES.get(method)
        open_probe = method == "GET" and PROBES.fullmatch(path)
        if not open_probe and (route is None or not route.fullmatch(path)):
            message = "There is no %s %s here. This gateway offers %s." % (scope["method"], path[:80], OFFERED)
            content = {"error": {"message": message, "type": "not_found_error"}}
            await _answer(send, *reword(404, json.dumps(content).encode(), anthropic))
            return
        # LiteLLM would compress errors, and then nobody could read them here; answers are small.
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
        await self.inner({**scope, "headers": headers}, receive, send if open_probe else _Reworder(send, anthropic))


class _Reworder:
    """Sends a response on; holds an error's body back until it is whole."""

    def __init__(self, send: Send, anthropic: bool) -> None:
        self.send = send
        self.anthropic = anthropic
        self.start: dict | None = None
        self.body = b""
        self.stream = False

    async def __call__(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message.get("headers", [])}
            kind = headers.get(b"content-type", b"")
            self.stream = kind.startswith(b"text/event-stream")
            if message["status"] >= 400 and kind.startswith(b"application/json") and b"content-encoding" not in headers:
                self.start = message
                return
        elif message["type"] == "http.response.body":
            if self.start is not None:
                self.body += message.get("body", b"")
                if not message.get("more_body"):
                    status, body = reword(self.start["status"], self.body, self.anthropic)
                    await _answer(self.send, status, body, self.start.get("headers", []))
                return
            if self.stream:
                message = {**message, "body": reword_event(message.get("body", b""), self.anthropic)}
        await self.send(message)


async def _answer(send: Send, status: int, body: bytes, headers: Any = ()) -> None:
    kept = [(name, value) for name, value in headers if name.lower() not in (b"content-length", b"content-type")]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*kept, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


# --- counting tokens ----------------------------------------------------------------------


def _make_counter() -> Any:
    """LiteLLM's interface for a counter, answered by vLLM's own /v1/messages/count_tokens."""
    import httpx
    from litellm.llms.base_llm.base_utils import BaseTokenCounter
    from litellm.types.utils import TokenCountResponse

    class EngineTokenCounter(BaseTokenCounter):
        """Asks the engine, whose template and tokenizer decide."""

        client: Any = None

        def should_use_token_counting_api(self, custom_llm_provider: str | None = None) -> bool:
            return custom_llm_provider == "hosted_vllm"

        async def count_tokens(
            self,
            model_to_use: str,
            messages: Any,
            contents: Any,
            deployment: Any = None,
            request_model: str = "",
            tools: Any = None,
            system: Any = None,
            messages_format: str = "openai",
            **_: Any,
        ) -> Any:
            """None leaves it to LiteLLM's estimate, for instance while the engine is down."""
            params = (deployment or {}).get("litellm_params", {})
            base = str(params.get("api_base") or "").rstrip("/").removesuffix("/v1")
            if messages_format != "anthropic" or not base or not messages:
                return None
            body = {"model": model_to_use, "messages": messages}
            if tools:
                body["tools"] = tools
            if system:
                body["system"] = system
            key = str(params.get("api_key") or "")
            if key.startswith("os.environ/"):
                key = os.environ.get(key[len("os.environ/") :], "")
            try:
                if EngineTokenCounter.client is None:
                    # No proxy from the environment: the engine is on this host or network.
                    EngineTokenCounter.client = httpx.AsyncClient(timeout=30, trust_env=False)
                answer = await EngineTokenCounter.client.post(
                    base + "/v1/messages/count_tokens", json=body, headers={"authorization": "Bearer " + key}
                )
                answer.raise_for_status()
                total = int(answer.json()["input_tokens"])
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                LOG.warning("count_tokens: the engine did not count (%s), so LiteLLM estimates", type(error).__name__)
                return None
            return TokenCountResponse(
                total_tokens=total, request_model=request_model, model_used=model_to_use, tokenizer_type="vllm"
            )

    return EngineTokenCounter()


def set_up() -> None:
    """Called by LiteLLM in each worker before it serves."""
    from litellm.llms.vllm.common_utils import VLLMModelInfo
    from litellm.proxy.proxy_server import app

    # Starlette builds its stack before this hook runs, so the front is put around what is there.
    if app.middleware_stack is None:
        app.middleware_stack = app.build_middleware_stack()
    app.middleware_stack = Front(app.middleware_stack)
    counter = _make_counter()
    VLLMModelInfo.get_token_counter = lambda _self: counter
    STORE.refresh()
