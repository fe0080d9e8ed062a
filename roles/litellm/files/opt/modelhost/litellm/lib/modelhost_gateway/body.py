"""A request's body: read within bounds of size and time, parsed within bounds of shape."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

from .errors import Refused, bad_request

#: Nesting of a request. Real ones, schemas of tools included, stay far below.
MAX_DEPTH = 100
#: Commas, brackets and braces of a request, wherever they stand. Each value that json makes costs some 60 bytes, and
#: each is announced by one of them: so this bounds the memory. A prompt of 200,000 tokens has less, whatever it is of.
MAX_MARKS = 500_000
#: Without a key: what is thrown away at most, so that a person with a wrong key reads why, and for how long.
DISCARD_BYTES, DISCARD_SECONDS = 1 << 20, 1.0
#: Bodies that are being read at one time, in units of the largest one that is allowed; and those of one user, who may
#: send them slowly.
MAX_TOGETHER, MAX_OF_ONE = 8, 4


class Bodies:
    """Reads the bodies of all requests of this process."""

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self.max_bytes = max_bytes
        self.seconds = seconds
        #: Bytes that are held, by user.
        self.held: Counter[str] = Counter()

    async def read(self, length: int | None, receive: Any, user: str = "") -> bytes:
        """The whole body; refused as soon as a bound is passed, without reading on."""
        if length is not None and length > self.max_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise ClientGone
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self.max_bytes:
                        raise self._too_large()
                    if (
                        self.held.total() + len(part) > MAX_TOGETHER * self.max_bytes
                        or self.held[user] + len(part) > MAX_OF_ONE * self.max_bytes
                    ):
                        raise Refused(
                            503,
                            "overloaded_error",
                            "The gateway is reading too many large requests at the moment. Try again in a moment.",
                            retry_after=2,
                        )
                    self.held[user] += len(part)
                    parts.append(part)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise bad_request(
                "The request's body did not arrive within %d seconds. Administrators of slow networks raise"
                " litellm_body_timeout." % self.seconds,
                status=408,
            ) from None
        finally:
            self.held[user] -= sum(map(len, parts))
            # Those who send nothing are not remembered.
            self.held += Counter()

    async def discard(self, receive: Any, known: bool) -> None:
        """Throw away what a refused client is still sending, for a while.

        It has its answer already; but a client whose connection is cut while it sends may not look at the answer.
        """
        left = 4 * self.max_bytes if known else DISCARD_BYTES
        try:
            async with asyncio.timeout(self.seconds if known else DISCARD_SECONDS):
                while left > 0:
                    message = await receive()
                    if message["type"] != "http.request" or not message.get("more_body"):
                        return
                    left -= len(message.get("body", b""))
        except TimeoutError:
            return

    def _too_large(self) -> Refused:
        return bad_request(
            "The request is larger than the %d bytes that this gateway takes. Send fewer or smaller pictures;"
            " administrators raise litellm_max_request_bytes." % self.max_bytes,
            status=413,
        )


class ClientGone(Exception):
    """Nobody is there to be answered."""


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body; refused before it can cost more than its share."""
    if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_MARKS:
        raise bad_request("The request's body has too many parts: more than %d commas and brackets." % MAX_MARKS)
    try:
        content = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise bad_request("The request's body is not UTF-8.") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        # Only what json says itself; it never repeats the text.
        raise bad_request("The request's body is not JSON: %s." % str(error)[:120]) from None
    if not isinstance(content, dict):
        raise bad_request("The request's body is not a JSON object.")
    level: list[Any] = [content]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return content
    raise _too_deep()


def _no_number(word: str) -> Any:
    raise ValueError("%s is no number" % word)


def _too_deep() -> Refused:
    return bad_request("The request's body is nested deeper than %d levels." % MAX_DEPTH)


def written(content: dict[str, Any]) -> bytes:
    """The bytes that go on: made anew, so that everyone behind reads what was checked."""
    try:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")
    except ValueError:
        raise bad_request("The request's body has a number that is too large, such as 1e999.") from None
