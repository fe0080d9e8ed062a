"""Headers: the key, what a body needs, what goes on, and what comes back."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import Refused, bad_request

Headers = list[tuple[bytes, bytes]]

#: A second one of these, or one beside another, can be read in two ways.
SINGLE = frozenset(
    {b"authorization", b"content-encoding", b"content-length", b"content-type", b"transfer-encoding", b"x-api-key"}
)

#: Request headers that are handed on. The sessions' names are by what clients can be kept on one engine.
HANDED_ON = frozenset(
    {
        b"accept",
        b"anthropic-beta",
        b"anthropic-version",
        b"conversation_id",
        b"session-id",
        b"session_id",
        b"thread-id",
        b"user-agent",
        b"x-session-id",
    }
)
HANDED_ON_PREFIX = b"x-claude-code-"
MAX_VALUE = 4096

#: Response headers that a client gets. All others name hosts, versions or LiteLLM's inner things.
GIVEN_BACK = frozenset(
    {b"cache-control", b"content-length", b"content-type", b"retry-after", b"x-litellm-call-id", b"x-request-id"}
)


def single(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers that may be there once, each once; refused otherwise."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        name = name.lower()
        if name in SINGLE:
            if name in found:
                raise bad_request("The request has more than one header %s." % name.decode("ascii"))
            found[name] = value.strip()
    return found


def key(found: dict[bytes, bytes]) -> str | None:
    """The key that was sent, by either header."""
    bearer = found.get(b"authorization", b"").decode("latin-1")
    # Nothing may follow: a client without a token writes the word all the same.
    if bearer[:7].lower() in ("bearer", "bearer "):
        bearer = bearer[7:].strip()
    other = found.get(b"x-api-key", b"").decode("latin-1")
    if bearer and other and bearer != other:
        raise Refused(
            401,
            "authentication_error",
            "The request has two different keys, in Authorization and in x-api-key. Send one of them.",
        )
    return bearer or other or None


def body_length(found: dict[bytes, bytes]) -> int | None:
    """What the headers say about a body; refused where they do not fit one that this gateway reads."""
    if b"content-encoding" in found and found[b"content-encoding"].lower() != b"identity":
        raise bad_request(
            "This gateway takes no compressed bodies. Send the request without Content-Encoding.", status=415
        )
    kind, _, parameters = found.get(b"content-type", b"").decode("latin-1").partition(";")
    charset = parameters.replace(" ", "").replace('"', "").lower()
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise bad_request("This gateway takes Content-Type: application/json, in UTF-8, and nothing else.", status=415)
    length = found.get(b"content-length")
    if b"transfer-encoding" in found:
        if length is not None:
            raise bad_request("The request has both Content-Length and Transfer-Encoding.")
        if found[b"transfer-encoding"].lower() != b"chunked":
            raise bad_request("This gateway takes no Transfer-Encoding but chunked.")
        return None
    if length is None or not length.isdigit() or len(length) > 15:
        raise bad_request("The request's body needs a Content-Length, or Transfer-Encoding: chunked.", status=400)
    return int(length)


def handed_on(headers: Iterable[tuple[bytes, bytes]], size: int | None) -> Headers:
    """What LiteLLM and the engine may see. Never the key, never the client's Host."""
    kept: dict[bytes, bytes] = {}
    for name, value in headers:
        name = name.lower()
        known = name in HANDED_ON or name.startswith(HANDED_ON_PREFIX)
        if known and len(value) <= MAX_VALUE and value.isascii():
            # Several anthropic-beta headers mean one list.
            kept[name] = kept[name] + b"," + value if name == b"anthropic-beta" and name in kept else value
    kept[b"host"] = b"gateway"
    if size is not None:
        kept[b"content-type"] = b"application/json"
        kept[b"content-length"] = b"%d" % size
    return list(kept.items())


def given_back(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """What a client may see of an answer's headers."""
    return [(name, value) for name, value in headers if name.lower() in GIVEN_BACK]
