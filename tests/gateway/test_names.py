"""Every name that LiteLLM's own code knows, as a field, further down, and as a header: none of them does anything.

The lists of the gateway are held against the public definitions in tests/unit/test_litellm_fields.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import KEYS, PYTHON, Gateway
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modelhost_gateway import routes, shapes
from test_refusals import ROUTES, request_for

#: Names in one request. A request with all of them would say less about which one got through.
BATCH = 300
EXAMPLES = 400 if os.environ.get("MODELHOST_TEST_ALL") else 40


@pytest.fixture(scope="session")
def names() -> dict[str, list[str]]:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    script = Path(__file__).with_name("names.py")
    printed = subprocess.run([PYTHON, script], env=environment, check=True, stdout=subprocess.PIPE).stdout
    found: dict[str, list[str]] = json.loads(printed)
    # So many that the search itself cannot have failed unseen.
    assert len(found["fields"]) > 1000
    assert len(found["headers"]) > 100
    return found


def is_refused(name: str, path: str) -> bool:
    allowed = routes.POSTS[path].fields
    assert allowed
    if name in allowed.names:
        return False
    return bool(name in shapes.REFUSED | shapes.REFUSED_AT_TOP or shapes.REFUSED_PATTERN.fullmatch(name))


def batches(items: list[str]) -> list[list[str]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def spread(path: str, more: dict[str, Any]) -> dict[str, Any]:
    """A good request with these fields at its top and wherever an object can stand."""
    content = request_for(path)
    base = dict(content)
    for name in ("metadata", "stream_options", "response_format", "output_config", "thinking", "text", "reasoning",
                 "context_management", "cache_control"):  # fmt: skip
        base[name] = dict(more)
    if "messages" in content:
        base["messages"] = [{"role": "user", "content": [{"type": "text", "text": "hi", **more}], **more}]
    if path == "/v1/responses":
        part = {"type": "input_text", "text": "hi", **more}
        base["input"] = [{"type": "message", "role": "user", "content": [part], **more}]
    return {**more, **base}


@pytest.mark.parametrize("path", ROUTES)
def test_no_name_gets_through_as_a_field(gateway: Gateway, names: dict[str, list[str]], path: str) -> None:
    mark = f"http://127.0.0.1:{gateway.stranger.port}/mark"
    reply = gateway.send(path, request_for(path))
    assert reply.status == 200
    plain = gateway.big.asked[-1].body
    before = gateway.contacted()
    allowed = routes.POSTS[path].fields
    assert allowed
    for batch in batches([name for name in names["fields"] if name not in allowed.names]):
        at_top = [name for name in batch if not is_refused(name, path)]
        below = [name for name in at_top if name not in EVERYWHERE]
        gateway.clear()
        reply = gateway.send(path, {**dict.fromkeys(at_top, mark), **spread(path, dict.fromkeys(below, mark))})
        assert reply.status == 200, reply.raw
        (asked,) = gateway.asked
        assert mark not in json.dumps(asked.body)
        assert set(asked.body) - set(plain) <= set(allowed.names)
        assert asked.headers["authorization"] == "Bearer sk-engine-h1"
    assert not gateway.stranger.connections
    assert gateway.contacted() == before


#: Fields that stand on some list somewhere: a mark in them may stay, and is no order there.
EVERYWHERE = frozenset(
    name
    for route in routes.POSTS.values()
    for shape in [route.fields]
    for name in (shapes.all_names(shape) if shape else ())
)


@pytest.mark.parametrize("path", ROUTES)
def test_every_plain_field_on_a_list_does_its_work(gateway: Gateway, path: str) -> None:
    """It gets to the engine, or LiteLLM keeps it for itself; it breaks nothing."""
    allowed = routes.POSTS[path].fields
    assert allowed
    plain = [name for name, shape in allowed.names.items() if shape is shapes.SCALARS]
    for name in set(plain) - set(request_for(path)) - {"stream"}:
        reply = gateway.send(path, {**request_for(path), name: 1})
        assert reply.status in (200, 400), (name, reply.raw)


@pytest.mark.parametrize("path", ROUTES)
def test_names_that_lead_elsewhere_are_refused(gateway: Gateway, names: dict[str, list[str]], path: str) -> None:
    mark = f"http://127.0.0.1:{gateway.stranger.port}/mark"
    refused = [name for name in names["fields"] if is_refused(name, path)]
    assert len(refused) > 100
    # Each of them on one route; on the others a sample, since it is the same code.
    for name in refused if path == "/v1/chat/completions" else refused[::10]:
        reply = gateway.send(path, {**request_for(path), name: mark})
        assert reply.status == 400, name
        assert name in reply.message
    assert not gateway.asked
    assert not gateway.stranger.connections


@pytest.mark.parametrize("path", ROUTES)
def test_no_name_gets_through_as_a_header(gateway: Gateway, names: dict[str, list[str]], path: str) -> None:
    mark = f"http://127.0.0.1:{gateway.stranger.port}/mark"
    gateway.send(path, request_for(path))
    plain = gateway.big.asked[-1]
    before = gateway.contacted()
    words = {name.lower().replace("_", "-") for name in names["fields"] if "." not in name}
    words |= {"x-litellm-" + word for word in words} | set(names["headers"])
    words -= {"accept", "anthropic-beta", "anthropic-version", "authorization", "connection", "content-encoding",
              "content-length", "content-type", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade",
              "user-agent", "x-api-key"}  # fmt: skip
    for batch in batches(sorted(word for word in words if word.rstrip("-.") == word)):
        gateway.clear()
        reply = gateway.send(path, request_for(path), headers=dict.fromkeys(batch, mark))
        assert reply.status == 200, reply.raw
        (asked,) = gateway.asked
        assert asked.body == plain.body
        assert set(asked.headers) == set(plain.headers)
        assert mark not in json.dumps(asked.headers)
    assert not gateway.stranger.connections
    assert gateway.contacted() == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_sent_is_answered_in_shape(gateway: Gateway, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(ROUTES))
    shape = routes.POSTS[path].fields
    assert shape
    gateway.clear()
    content = {
        **request_for(path),
        **data.draw(st.dictionaries(st.sampled_from(sorted(shape.names)) | st.text(max_size=20), JSON, max_size=5)),
    }
    content.pop("stream", None)
    reply = gateway.send(path, content)
    if reply.status >= 400:
        error = reply.json["error"]
        assert (reply.json.get("type") == "error") is path.startswith("/v1/messages")
        assert isinstance(error["message"], str)
    for asked in gateway.asked:
        assert set(asked.body) <= set(shape.names) | set(LITELLMS_OWN)
        assert asked.headers["authorization"].startswith("Bearer sk-engine-")


#: What LiteLLM adds by itself to what goes to an engine.
LITELLMS_OWN = ("model", "stream", "encoding_format")


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    raw=st.binary(max_size=200),
    kind=st.sampled_from(["application/json", "text/plain", "application/json; charset=x"]),
    encoding=st.sampled_from([None, "gzip", "br", "zstd", "identity, gzip"]),
    user=st.sampled_from([*KEYS, None, "sk-x"]),
)
def test_bytes_of_any_kind_are_answered_in_shape(
    gateway: Gateway, raw: bytes, kind: str, encoding: str | None, user: str | None
) -> None:
    headers = {"content-type": kind, **({"content-encoding": encoding} if encoding else {})}
    reply = gateway.send("/v1/messages", raw=raw, headers=headers, user=user)
    assert reply.status in ((400, 415) if user in KEYS else (401,))
    assert reply.json["type"] == "error"
    assert not gateway.asked
