# MIT licence (see LICENSE)
"""huggingface_hub's client with our patience: it never waits for ever, leaves retries to us, tells pages from files."""

from __future__ import annotations

import contextlib
import re
import threading

import httpx2
from huggingface_hub import constants, set_client_factory

from .sources import SourceError, clean

#: Answers after which asking again may help.
LATER = (408, 429, 500, 502, 503, 504)
#: Seconds: the longest wait that a server may ask for.
LONGEST = 600.0
#: Bytes of a download that are handled at once: at most this much of a file comes twice after an interruption.
CHUNK = 1 << 17

_expected = threading.local()


@contextlib.contextmanager
def expecting(size: int):
    """Within this, what this thread fetches is a file of so many bytes."""
    _expected.size = size
    try:
        yield
    finally:
        _expected.size = None


def total(response) -> int | None:
    """Bytes of the whole file, as far as an answer tells."""
    if response.status_code == 206:
        found = re.match(r"bytes \d+-\d+/(\d+)$", response.headers.get("content-range", ""))
        return int(found.group(1)) if found else None
    length = response.headers.get("content-length", "")
    return int(length) if length.isdigit() and "content-encoding" not in response.headers else None


def complaint(response, size: int | None) -> SourceError | None:
    """What is wrong with an answer before any of its body is read."""
    url = clean(response.url)
    if response.status_code in LATER:
        after = response.headers.get("retry-after", "")
        error = SourceError("%s answers with %d" % (url, response.status_code), False)
        error.after = min(float(after), LONGEST) if after.isdigit() else 0.0
        return error
    if size is None or response.status_code not in (200, 206):
        return None
    if response.headers.get("content-type", "").startswith("text/html"):
        return SourceError("%s answers with a page in place of the file" % url, False)
    told = total(response)
    if told not in (None, size):
        return SourceError("%s is said to have %d bytes instead of %d" % (url, told, size), False)
    return None


class Client(httpx2.Client):
    """The client that huggingface_hub uses for everything."""

    def send(self, request, **kwargs):
        """As of httpx2.Client; what may be gone in a moment raises SourceError, which the library passes on to us."""
        if not any((request.extensions.get("timeout") or {}).values()):
            # The library asks for lists of files without any limit.
            request.extensions["timeout"] = httpx2.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT).as_dict()
        try:
            response = super().send(request, **kwargs)
        except httpx2.TransportError as error:
            text = "%s: %s" % (type(error).__name__, clean(error) or clean(request.url))
            if "CERTIFICATE_VERIFY_FAILED" in text:
                text += "; a private authority's certificate belongs into host_base_extra_ca_certificates"
                raise SourceError(text, True) from error
            raise SourceError(text, False) from error
        error = complaint(response, getattr(_expected, "size", None) if request.method == "GET" else None)
        if error:
            response.close()
            raise error
        return response


def use() -> None:
    """Have huggingface_hub use it."""
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    set_client_factory(lambda: Client(follow_redirects=True, timeout=None))
