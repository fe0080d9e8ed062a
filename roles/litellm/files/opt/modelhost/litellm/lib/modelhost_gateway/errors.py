"""Errors: refusals of our own, and LiteLLM's wording turned into words for people."""

from __future__ import annotations

import contextlib
import json
import re

#: Anthropic's name for an HTTP status.
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

#: How LiteLLM wraps what an engine answered.
_WRAPPED = re.compile(
    r"^(?:Invalid request format: )?(?:[\w.]+: )*(?:Hosted_vllm|OpenAI)Exception - (?:Error code: \d+ - )?(.*?)"
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
BROKEN = "The gateway failed at this request. Administrators find why in its journal: journalctl -u 'litellm@*'."


class Refused(Exception):
    """A request that is not let through."""

    def __init__(
        self, status: int, kind: str, message: str, param: str | None = None, *, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.param = param
        #: Seconds until another try can help.
        self.retry_after = retry_after


def bad_request(message: str, param: str | None = None, status: int = 400) -> Refused:
    """The request itself is wrong."""
    return Refused(status, ANTHROPIC_TYPES[status], message, param)


def shaped(status: int, message: str, anthropic: bool, kind: str | None = None, param: str | None = None) -> bytes:
    """An error's body as the client's own API words it."""
    standard = ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    if anthropic:
        content: dict = {"type": "error", "error": {"type": standard, "message": message}}
    else:
        content = {"error": {"message": message, "type": kind or standard, "param": param, "code": str(status)}}
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


def plain(status: int, message: str) -> tuple[int, str]:
    """LiteLLM's wording of an engine's error -> status and message for a person.

    The engine's own sentence is kept; its address and LiteLLM's inner names are not.
    """
    wrapped = _WRAPPED.match(message.strip())
    inner = wrapped.group(1).strip() if wrapped else message.strip()
    if inner.startswith("{"):
        # LiteLLM may add remarks of its own behind the engine's JSON.
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
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
    kind = param = None
    try:
        content = json.loads(raw)
        error = content["error"]
        message, kind, param = str(error["message"]), error.get("type"), error.get("param")
    except (ValueError, KeyError, TypeError, RecursionError):
        detail = None
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            detail = json.loads(raw).get("detail")
        # A bare text comes from LiteLLM's last resort, and helps nobody.
        message = str(detail or (BROKEN if status >= 500 else "HTTP %d" % status))
    new_status, message = plain(status, message)
    if new_status != status:
        kind = None
    return new_status, shaped(new_status, message, anthropic, kind, param)


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
