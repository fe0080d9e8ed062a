"""One gateway for the whole suite: three engines, of which two are replicas, two users, and some with limits."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.loader import init_plugin_loader

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "roles/litellm/files/opt/modelhost/litellm/lib")]
sys.dont_write_bytecode = sys.pycache_prefix is None
init_plugin_loader([str(ROOT / ".collections")])

from engine import Engine  # noqa: E402 - the path is set above
from patience import HANGS, wait_until  # noqa: E402 - the path is set above

PYTHON = ROOT / ".cache/gateway-venv/bin/python"
KEYS = {"alice": "sk-" + "alice" * 8, "bob": "sk-" + "bob" * 12}
#: Users with limits, each for one test, which uses them up.
LIMITED: dict[str, dict[str, int]] = {
    "twice": {"requests_per_minute": 2},
    "tokens": {"tokens_per_minute": 20},
    "single": {"max_parallel_requests": 1},
}
KEYS |= {name: "sk-" + name * 8 for name in LIMITED}
#: Short times, so that tests of them end; all else is as the role has it.
BODY_TIMEOUT, HEADER_TIMEOUT, COOLDOWN, MAX_BYTES = 3, 2, 600, 4 << 20


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])


@dataclass
class Gateway:
    """A running gateway, its engines, and what it wrote and contacted."""

    port: int
    process: subprocess.Popen[bytes]
    coder: list[Engine]
    big: Engine
    #: Listens where nobody has business.
    stranger: Engine
    journal: Path
    watch: Path
    usage: Path
    engine_keys: dict[str, str]
    engines: list[Engine] = field(init=False)

    def __post_init__(self) -> None:
        self.engines = [*self.coder, self.big]

    def clear(self) -> None:
        for engine in (*self.engines, self.stranger):
            engine.asked.clear()

    @property
    def asked(self) -> list[Any]:
        return [asked for engine in self.engines for asked in engine.asked]

    def send(
        self,
        path: str,
        content: Any = None,
        *,
        user: str | None = "alice",
        method: str = "POST",
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
        timeout: float = HANGS,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        sent = {"content-type": "application/json"} if method == "POST" else {}
        if user:
            sent["authorization"] = "Bearer " + KEYS.get(user, user)
        data = raw if raw is not None else (json.dumps(content).encode() if content is not None else None)
        try:
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=HANGS)

    def contacted(self) -> set[str]:
        """Every address that the process has looked up or connected to."""
        return set(self.watch.read_text().split("\n")) - {""}

    def resident(self) -> int:
        """MiB of memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024


def role_environment(state: Path) -> dict[str, str]:
    """What the role gives the unit, with this suite's values for its variables."""
    own = yaml.safe_load((ROOT / "roles/litellm/vars/main.yml").read_text())["__litellm_own_environment"]
    given = {
        "PYTHONPATH": f"{HERE / 'watch'}:{ROOT / 'roles/litellm/files/opt/modelhost/litellm/lib'}",
        "HOME": str(state),
        "MODELHOST_KEY_HASHES": str(state / "key_hashes.json"),
        "MODELHOST_USAGE": str(state / "usage.json"),
        "MODELHOST_MAX_REQUEST_BYTES": str(MAX_BYTES),
        "MODELHOST_BODY_TIMEOUT": str(BODY_TIMEOUT),
        "GRACEFUL_SHUTDOWN_TIMEOUT": "1",
        "LITELLM_LOG": "WARNING",
    }
    assert {name for name, value in own.items() if "{{" in value} <= set(given)
    return {**own, **given}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_ready(gateway: Gateway) -> None:
    def ready() -> bool:
        if gateway.process.poll() is not None:
            pytest.exit("the gateway ended at its start:\n" + gateway.journal.read_text()[-5000:], 1)
        try:
            return gateway.send("/health/readiness", method="GET", user=None).status == 200
        except OSError:
            return False

    wait_until(ready, lambda: "the gateway is ready:\n" + gateway.journal.read_text()[-5000:])


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    if not PYTHON.exists():
        pytest.exit("there is no .cache/gateway-venv; run ./run gateway", 1)
    from ansible_collections.modelhost.serving.plugins.module_utils import litellm_config

    coder, big, stranger = [Engine(), Engine()], Engine(), Engine()
    backends = [
        {
            "host": host, "instance": instance, "model": "m-" + instance, "served_model_name": instance,
            "url": f"http://127.0.0.1:{engine.port}", "max_model_len": 262144, "key_file": "unused",
        }
        for host, instance, engine in (("h1", "coder", coder[0]), ("h2", "coder", coder[1]), ("h1", "big", big))
    ]  # fmt: skip
    settings = {
        "default_instance": "coder", "messages_route": "native", "drop_params": True, "request_timeout": 1800,
        "stream_timeout": 1800, "retries": -1, "cooldown": COOLDOWN,
    }  # fmt: skip
    users = [
        {"name": "alice"},
        {"name": "bob", "models": ["big"]},
        *({"name": name, **limits} for name, limits in LIMITED.items()),
    ]
    access = litellm_config.access(users, backends, "coder")
    for user in access["users"]:
        user["sha256"] = hashlib.sha256(KEYS[user["name"]].encode()).hexdigest()
    engine_keys = {litellm_config.environment_name(item): f"sk-engine-{item['host']}" for item in backends}
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        (state / "config.yaml").write_text(yaml.safe_dump(litellm_config.config(backends, settings)))
        (state / "key_hashes.json").write_text(json.dumps(access))
        environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ},
            **role_environment(state),
            **engine_keys,
            "LITELLM_MASTER_KEY": "sk-master-of-nothing",
            "MODELHOST_HEADER_TIMEOUT": str(HEADER_TIMEOUT),
            "WATCH_FILE": str(state / "contacted"),
        }
        port = free_port()
        command = [PYTHON.parent / "litellm", "--config", state / "config.yaml", "--host", "127.0.0.1"]
        with (state / "journal").open("wb") as journal:
            process = subprocess.Popen(
                [*map(str, command), "--port", str(port), "--num_workers", "1"],
                cwd=state, env=environment, stdout=journal, stderr=subprocess.STDOUT,
            )  # fmt: skip
        running = Gateway(
            port, process, coder, big, stranger, state / "journal", state / "contacted", state / "usage.json",
            engine_keys,
        )  # fmt: skip
        try:
            wait_ready(running)
            yield running
        finally:
            process.terminate()
            process.wait(HANGS)


@pytest.fixture(autouse=True)
def fresh(gateway: Gateway) -> None:
    """Each test sees what it caused."""
    gateway.clear()
