"""The routes that a user's key opens. LiteLLM serves some hundred more; none of them has a use here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from . import fields
from .errors import bad_request
from .shapes import Fields

#: The same for people.
OFFERED = (
    "/v1/messages, /v1/messages/count_tokens, /v1/chat/completions, /v1/completions, /v1/responses,"
    " /v1/embeddings and /v1/models"
)

#: What needs no key: the two probes that call no engine.
PROBES = re.compile(r"/health/(liveliness|liveness|readiness)")

_MODELS = re.compile(r"(?:/v1)?/models(?:/(?P<model>[^/]+(?:/[^/]+)?))?")


@dataclass(frozen=True)
class Route:
    """Where a request goes on to."""

    path: str
    fields: Fields | None = None
    anthropic: bool = False
    #: Of /v1/models/<id>.
    model: str = ""


POSTS = {
    "/v1/messages": Route("/v1/messages", fields.MESSAGES, anthropic=True),
    "/v1/messages/count_tokens": Route("/v1/messages/count_tokens", fields.COUNT_TOKENS, anthropic=True),
    "/v1/chat/completions": Route("/v1/chat/completions", fields.CHAT),
    "/v1/completions": Route("/v1/completions", fields.COMPLETIONS),
    "/v1/responses": Route("/v1/responses", fields.RESPONSES),
    "/v1/embeddings": Route("/v1/embeddings", fields.EMBEDDINGS),
}


def find(method: str, path: str) -> Route | None:
    """The route of a request, if there is one. The /v1 may be missing."""
    path = path.rstrip("/")
    if method in ("GET", "HEAD"):
        found = _MODELS.fullmatch(path)
        return Route("/v1/models", model=found.group("model") or "") if found else None
    if method == "POST":
        return POSTS.get(path if path.startswith("/v1/") else "/v1" + path)
    return None


def is_anthropic(path: str, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether errors have Anthropic's shape."""
    return "/messages" in path or (
        "/models" in path and any(name.lower() == b"anthropic-version" for name, _ in headers)
    )


def check_amounts(route: Route, body: dict[str, Any]) -> None:
    """Bound what one request asks for several times over, and refuse what would not be read alike by all behind."""
    if not isinstance(body.get("stream"), (bool, type(None))):
        # LiteLLM and the engine take "true" and 1 each in its own way; the answer would end in an error and a log.
        raise bad_request("`stream` is neither true nor false.", "stream")
    messages = body.get("messages", [])
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise bad_request("`messages` is not a list of objects.", "messages")
    for name in fields.REPEATED:
        value = body.get(name)
        if isinstance(value, (list, dict)) and len(value) > fields.MAX_REPEATED:
            raise bad_request("`%s` has more than %d entries." % (name, fields.MAX_REPEATED), name)
    choices = 1
    for name in ("n", "best_of"):
        value = body.get(name)
        if value is None or name not in (route.fields.names if route.fields else {}):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= fields.MAX_CHOICES:
            raise bad_request(
                "`%s` is not a whole number from 1 to %d. Send several requests for more." % (name, fields.MAX_CHOICES),
                name,
            )
        choices = max(choices, value)
    if route.path == "/v1/completions" and _in_tokens(body.get("prompt")):
        raise bad_request("`prompt` is written in numbers of tokens. Send it as text.", "prompt")
    if route.path == "/v1/completions" and choices * _texts(body.get("prompt")) > fields.MAX_CHOICES:
        raise bad_request(
            "The request asks for more than %d answers (prompts times `n`). Send several requests."
            % fields.MAX_CHOICES,
            "prompt",
        )
    if route.path == "/v1/embeddings" and _texts(body.get("input")) > fields.MAX_INPUTS:
        raise bad_request("`input` holds more than %d texts. Send several requests." % fields.MAX_INPUTS, "input")


def ask_for_usage(route: Route, body: dict[str, Any]) -> bool:
    """Have the engine name the tokens of a stream too; True if the client did not ask for it, and must not see it."""
    if route.path not in ("/v1/chat/completions", "/v1/completions") or body.get("stream") is not True:
        return False
    options = body.get("stream_options")
    options = options if isinstance(options, dict) else {}
    body["stream_options"] = {**options, "include_usage": True}
    return options.get("include_usage") is not True


def _texts(value: Any) -> int:
    """How many texts a prompt is: a list of numbers is one text, in tokens."""
    if not isinstance(value, list):
        return 1
    return sum(1 for item in value if not isinstance(item, int)) or 1


def _in_tokens(value: Any) -> bool:
    """LiteLLM fails at such a prompt with 500, and repeats all of it in the message."""
    return isinstance(value, list) and any(isinstance(item, (int, list)) for item in value)


def max_tokens(body: dict[str, Any]) -> int | None:
    """The longest answer that a request allows, if it says so."""
    named = [body.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    return max((value for value in named if isinstance(value, int) and not isinstance(value, bool)), default=None)
