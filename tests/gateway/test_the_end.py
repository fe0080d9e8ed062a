"""The last file of the suite: at its end the gateway is told to stop."""

from __future__ import annotations

import json
import signal

from conftest import KEYS, Gateway
from patience import HANGS, wait_until
from test_limits import counted, is_over
from test_refusals import request_for


def test_answers_at_the_same_time_and_the_end(gateway: Gateway) -> None:
    """SIGTERM in the middle of a stream: what was used until then is written down."""
    path = "/v1/messages"
    raw = json.dumps({**request_for(path, "@hang after headers"), "stream": True}).encode()
    with gateway.connect() as client:
        client.sendall(
            b"POST %s HTTP/1.1\r\nhost: x\r\nx-api-key: %s\r\n" % (path.encode(), KEYS["single"].encode())
            + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(raw), raw)
        )
        answer = client.makefile("rb")
        wait_until(lambda: b'"content_block_delta"' in answer.readline(), "the stream runs", pause=0)
        assert is_over(gateway.send(path, request_for(path), user="single"), "max_parallel_requests")
        gateway.process.send_signal(signal.SIGTERM)
        gateway.process.wait(HANGS)
    ended = counted(gateway, "single")
    assert (ended["requests"], ended["refused"], ended["prompt_tokens"]) == (1, 1, 5)
