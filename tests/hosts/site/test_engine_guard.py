"""Nothing of the running engine answers without its key: every route that it lists is asked, by every method."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

#: Asks on the host, in one process: `journalctl` says what the engine serves. Paths with a hole get a word there.
WALK = r"""
import http.client, json, sys

def ask(method, path, headers):
    # One connection for each: a refusal closes it.
    connection = http.client.HTTPConnection("127.0.0.1", 8000)
    body = b"{}" if method in ("POST", "PUT", "PATCH") else None
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    text = answer.read().decode("utf-8", "replace")
    connection.close()
    return answer.status, text

asked = json.load(sys.stdin)
print(json.dumps([[method, path, how, *ask(method, path, headers)]
                  for how, headers in asked["headers"].items() for method, path in asked["routes"]]))
"""
WRONG = {
    "none": {},
    "wrong": {"Authorization": "Bearer sk-wrong"},
    "wrong x-api-key": {"x-api-key": "sk-wrong"},
    "forged address": {"X-Forwarded-For": "127.0.0.1"},
}
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def walk(container: str, routes: list[tuple[str, str]], headers: dict[str, dict[str, str]]) -> list[list[Any]]:
    """Method, path, kind of headers, status and text of each answer."""
    done = subprocess.run(
        ["docker", "exec", "-i", container, "python3", "-c", WALK],
        input=json.dumps({"routes": routes, "headers": headers}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[list[Any]] = json.loads(done.stdout)
    return found


def listed(host: Any) -> list[tuple[str, str]]:
    """What the engine says at its start that it serves, and what lies beside it."""
    journal = host.check_output("journalctl --no-pager -o cat -u vllm@coder.service")
    routes = re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", journal)
    found = {
        (method.strip(), re.sub(r"{[^}]*}", "x", path)) for path, methods in routes for method in methods.split(",")
    }
    paths = {path for _method, path in found} | {"/metrics", "/", "/docs", "/openapi.json", "/nothing", "/health/"}
    assert {"/invocations", "/tokenize", "/v1/messages", "/health"} <= paths, journal[-4000:]
    return sorted(found | {(method, path) for path in paths for method in ("GET", "HEAD", "POST", "OPTIONS", "DELETE")})


def test_no_route_answers_without_the_key(host: Any, container: str) -> None:
    routes = listed(host)
    answers = walk(container, routes, WRONG)
    assert len(answers) == len(routes) * len(WRONG)
    assert len({path for _method, path in routes}) > 20
    # (HEAD /health has no handler: vLLM itself answers 405.)
    let_in = {(method, path, status) for method, path, _how, status, _text in answers if status != 401}
    assert let_in <= {("GET", "/health", 200), ("HEAD", "/health", 405), ("HEAD", "/health", 200)}
    assert ("GET", "/health", 200) in let_in


def test_no_websocket_opens_without_the_key(host: Any, container: str) -> None:
    routes = [("GET", path) for path in sorted({path for _method, path in listed(host)} | {"/v1/realtime"})]
    answers = walk(container, routes, {how: {**HANDSHAKE, **headers} for how, headers in WRONG.items()})
    assert {status for _method, _path, _how, status, _text in answers} == {403}


def test_the_key_opens_in_either_header(host: Any, container: str) -> None:
    key = host.check_output("cat /etc/modelhost/vllm/coder.key")
    both = {"bearer": {"Authorization": f"Bearer {key}"}, "x-api-key": {"x-api-key": key}}
    answers = walk(container, [("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/version")], both)
    assert [status for _method, _path, _how, status, _text in answers] == [200] * 6


def test_the_engine_does_not_hold_the_key_that_opens_it(host: Any, container: str) -> None:
    key = host.check_output("cat /etc/modelhost/vllm/coder.key")
    inner = host.check_output("cat /etc/modelhost/vllm/coder.env").partition("=")[2]
    pid = host.service("vllm@coder").systemd_properties["MainPID"]
    environment = host.check_output("tr '\\0' '\\n' < /proc/%s/environ", pid)
    assert inner in environment
    assert key not in environment
    ((*_asked, status, _text),) = walk(container, [("GET", "/v1/models")], {"inner": {"x-api-key": inner}})
    assert status == 401
