"""Time-outs of the real client as events: they come when a hub keeps it waiting, never because a machine is slow."""

from __future__ import annotations

import select
import ssl
from typing import Any

import httpcore2
import pytest
from httpcore2._backends.sync import SyncStream
from hub.server import Hub
from patience import HANGS

REAL = SyncStream.read


def read_without_clock(monkeypatch: pytest.MonkeyPatch, patient: bool = False) -> None:
    """From now on each read of httpx2 ends in ReadTimeout as soon as a hub of this process keeps it waiting.

    What the hub sent before is read first. A read without any time-out fails there: it would wait for ever.
    `patient`: reads wait until the hub goes on.
    """

    def read(stream: SyncStream, max_bytes: int, timeout: float | None = None) -> bytes:
        ours: Any = stream.get_extra_info("socket")
        # What TLS has read already shows no more at the socket.
        while not patient and not isinstance(ours, ssl.SSLSocket) and not select.select([ours], [], [], 0.01)[0]:
            if ours.getsockname() in Hub.standing and not select.select([ours], [], [], 0)[0]:
                assert timeout is not None, "this request has no time-out"
                raise httpcore2.ReadTimeout("the hub keeps it waiting")
        return REAL(stream, max_bytes, HANGS)

    monkeypatch.setattr(SyncStream, "read", read)
