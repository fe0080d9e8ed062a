"""Requests of real clients, as they were sent (recorded/, shortened): what of each reaches the engine.

A file names under `changed` what does not arrive as it was sent. So a list of the gateway that is too short for a new
client, and a new LiteLLM that takes something out by itself, both fail here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Gateway

FILES = sorted((Path(__file__).parent / "recorded").glob("*.json"))
RECORDED = [
    pytest.param(request, id=f"{file.stem}: {request['what']}")
    for file in FILES
    for request in json.loads(file.read_text())["requests"]
]
#: Requests go to the model of this suite, whatever the client had chosen.
MODEL = "local-claude-big"


def changes(sent: Any, arrived: Any, path: str = "") -> set[str]:
    """Where the two differ; items of one list have one name, so that a file stays short."""
    if isinstance(sent, dict) and isinstance(arrived, dict):
        found: set[str] = set()
        for name in sent.keys() | arrived.keys():
            below = f"{path}.{name}" if path else name
            if name not in arrived:
                found.add("-" + below)
            elif name not in sent:
                found.add("+" + below)
            else:
                found |= changes(sent[name], arrived[name], below)
        return found
    if isinstance(sent, list) and isinstance(arrived, list) and len(sent) == len(arrived):
        return set().union(*(changes(*pair, path + "[]") for pair in zip(sent, arrived)))
    # 1 and True are not the same to an engine.
    return set() if json.dumps(sent) == json.dumps(arrived) else {"~" + path}


def test_every_client_is_there() -> None:
    clients = {file.stem.rpartition("-")[0] for file in FILES}
    assert clients >= {"claude-code", "codex", "opencode", "qwen-code"}


@pytest.mark.parametrize("request_", RECORDED)
def test_what_a_client_sends_reaches_the_engine(gateway: Gateway, request_: dict[str, Any]) -> None:
    sent = {**request_["body"], "model": MODEL}
    reply = gateway.send(request_["path"], sent, headers=request_["headers"])
    assert reply.status == 200, reply.raw
    (asked,) = gateway.asked
    assert changes({**sent, "model": "big"}, asked.body) == set(request_["changed"])
