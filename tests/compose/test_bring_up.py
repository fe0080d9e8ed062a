"""An exported project, brought up for real: Docker Compose, vLLM with the loopback model, LiteLLM; see README.md."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import HANGS, wait_until

ROOT = Path(__file__).resolve().parents[2]
#: Straight to the gateway, whatever proxy this machine has.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def run(*command: str, cwd: Path = ROOT, check: bool = True, limit: int = HANGS) -> str:
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=limit
    )
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}"
    return done.stdout


def answers(*command: str) -> bool:
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True, check=False).returncode == 0


def compose_command() -> list[str]:
    """Compose 2 if it is here, else 1, which Debian still has."""
    if not answers("docker", "info"):
        pytest.fail("no Docker engine answers here")
    if answers("docker", "compose", "version"):
        return ["docker", "compose"]
    if not answers("docker-compose", "version") and os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing docker-compose from this machine's packages")
        run("apt-get", "update", "-qq", check=False)
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "docker-compose", check=False)
    if not answers("docker-compose", "version"):
        pytest.fail("neither `docker compose` nor docker-compose can be had here")
    return ["docker-compose"]


def for_version_1(folder: Path) -> list[str]:
    """The file without what Compose 1 does not know; its own arguments."""
    document = yaml.safe_load((folder / "docker-compose.yml").read_text(encoding="utf-8"))
    for service in document["services"].values():
        for part in service["volumes"]:
            part.pop("bind", None)
    (folder / "version-1.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return ["-f", "version-1.yml"]


class Site:
    """A project that runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.command = folder, compose_command()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        name = run(str(ROOT / "testbed/engine_image.sh")).splitlines()[-1]
        self.image = run("docker", "image", "inspect", "--format", "{{.Id}}", name).strip()
        self.arguments: list[str] = []
        self.project = folder / "out/box"
        print(f"{' '.join(self.command)}, image {name}, port {self.port}")

    def export(self, *users: str) -> str:
        """Write the project by the playbook."""
        inventory = {
            "engines": {
                "hosts": {
                    "box": {
                        "ansible_connection": "local",
                        "vllm_instances": [{"name": "coder", "model": "loopback", "max_model_len": 65536}],
                        "vllm_variant": "cpu",
                        "vllm_image": self.image,
                        "model_store_dir": str(self.folder / "models"),
                    }
                }
            },
            "gateways": {
                "hosts": {
                    "box": {
                        "litellm_users": [{"name": name} for name in users],
                        "litellm_image": self.image,
                        "litellm_port": self.port,
                    }
                }
            },
        }
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
        command = ["ansible-playbook", "playbooks/compose.yml", "-i", str(self.folder / "hosts.yml")]
        hardware = json.dumps({"compose_hardware": {"cores": os.cpu_count(), "memory_gib": 16}})
        said = run(*command, "-e", f"compose_directory={self.folder}/out", "-e", hardware)
        if self.command == ["docker-compose"]:
            self.arguments = for_version_1(self.project)
        return said

    def compose(self, *arguments: str, check: bool = True) -> str:
        return run(*self.command, *self.arguments, *arguments, cwd=self.project, check=check)

    def container(self, service: str) -> str:
        return self.compose("ps", "-q", service).strip().splitlines()[-1]

    def inspect(self, service: str, form: str) -> Any:
        return json.loads(run("docker", "inspect", "--format", "{{json " + form + "}}", self.container(service)))

    def wait(self) -> None:
        """Until the gateway is healthy, by its own check."""
        wait_until(
            lambda: self.inspect("gateway", ".State.Health.Status") == "healthy",
            lambda: self.compose("logs", "--tail", "40", check=False),
            pause=1,
        )

    def ask(self, path: str, body: Any = None, key: str = "alice") -> tuple[int, Any]:
        """Status and answer of the gateway; key: a user's name, or a key itself."""
        own = self.project / "keys" / key
        token = own.read_text(encoding="utf-8").strip() if own.is_file() else key
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        try:
            with OPENER.open(request, timeout=HANGS) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("compose"))
    made.export("alice")
    (made.folder / "models").mkdir()
    try:
        made.compose("--profile", "weights", "run", "--rm", "weights-coder")
        made.compose("up", "-d")
        made.wait()
        yield made
    finally:
        if request.session.testsfailed:
            print(made.compose("logs", "--tail", "80", check=False))
        print(made.compose("down", "-v", "--remove-orphans", check=False))


ARGUMENTS = {"command": "echo by compose"}
SCRIPT = "@call Bash " + json.dumps(ARGUMENTS)
PARAMETERS = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}


def test_a_tool_call_by_the_api_of_openai(site: Site) -> None:
    tool = {"type": "function", "function": {"name": "Bash", "description": "Runs.", "parameters": PARAMETERS}}
    body = {"model": "local-claude-coder", "messages": [{"role": "user", "content": SCRIPT}], "tools": [tool]}
    status, answer = site.ask("/v1/chat/completions", body)
    assert status == 200, answer
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "Bash"
    assert json.loads(call["function"]["arguments"]) == ARGUMENTS


def test_a_tool_call_by_the_api_of_anthropic(site: Site) -> None:
    body = {
        "model": "claude-sonnet-4-5-20250929",
        "max_tokens": 512,
        "messages": [{"role": "user", "content": SCRIPT}],
        "tools": [{"name": "Bash", "description": "Runs.", "input_schema": PARAMETERS}],
    }
    status, answer = site.ask("/v1/messages", body)
    assert status == 200, answer
    (call,) = [part for part in answer["content"] if part["type"] == "tool_use"]
    assert (call["name"], call["input"]) == ("Bash", ARGUMENTS)
    count = {name: body[name] for name in ("model", "messages", "tools")}
    status, answer = site.ask("/v1/messages/count_tokens", count)
    assert status == 200, answer
    assert answer["input_tokens"] > 100, "the engine counts its template, too"


def test_nobody_else_gets_in(site: Site) -> None:
    assert site.ask("/v1/models", key="sk-nobody")[0] == 401
    assert site.ask("/v1/models")[0] == 200
    assert site.inspect("engine-coder", ".NetworkSettings.Ports") in ({}, None)
    bound = site.inspect("gateway", ".NetworkSettings.Ports")["4000/tcp"]
    assert [(item["HostIp"], item["HostPort"]) for item in bound] == [("127.0.0.1", str(site.port))]


@pytest.mark.parametrize("service", ["engine-coder", "gateway"])
def test_containers_have_no_rights(site: Site, service: str) -> None:
    name = site.container(service)
    assert "Read-only file system" in run("docker", "exec", name, "touch", "/usr/x", check=False)
    status = run("docker", "exec", name, "cat", "/proc/1/status")
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    assert int(effective, 16) == 0
    assert "Uid:\t65532\t65532\t65532\t65532" in status
    assert "NoNewPrivs:\t1" in status


def test_the_engine_wants_its_key_for_every_route(site: Site) -> None:
    asks = (
        "import sys, urllib.error, urllib.request as r\n"
        "for path in sys.argv[2:]:\n"
        "    ask = r.Request('http://127.0.0.1:8000' + path, headers={'x-api-key': sys.argv[1]})\n"
        f"    try: print(r.urlopen(ask, timeout={HANGS}).status)\n"
        "    except urllib.error.HTTPError as error: print(error.code)\n"
    )
    routes = ["/health", "/version", "/metrics", "/v1/models"]
    asked = ("docker", "exec", site.container("engine-coder"), "python3", "-c", asks)
    assert run(*asked, "sk-wrong", *routes).split() == ["200", "401", "401", "401"]
    lines = (site.project / ".env").read_text(encoding="utf-8").splitlines()
    (key,) = [line.partition("=")[2] for line in lines if line.startswith("BACKEND_KEY_")]
    assert run(*asked, key, *routes).split() == ["200"] * 4


def test_an_engine_has_no_way_out(site: Site) -> None:
    """It reaches the gateway on their common network, and not by the network with which the gateway faces others."""
    networks = site.inspect("gateway", ".NetworkSettings.Networks")
    (inner,) = site.inspect("engine-coder", ".NetworkSettings.Networks")
    (outer,) = set(networks) - {inner}
    assert json.loads(run("docker", "network", "inspect", "--format", "{{json .Internal}}", inner)) is True
    connect = "import socket, sys; socket.create_connection((sys.argv[1], 4000), 3)"
    asked = ("docker", "exec", site.container("engine-coder"), "python3", "-c", connect)
    run(*asked, networks[inner]["IPAddress"])
    assert "Error" in run(*asked, networks[outer]["IPAddress"], check=False)


def test_a_new_user_needs_no_restart(site: Site) -> None:
    before = site.inspect("gateway", ".State.StartedAt")
    said = site.export("alice", "bob")
    assert "changed=1" in said
    assert site.ask("/v1/models", key="bob")[0] == 200
    assert site.ask("/v1/models", key="alice")[0] == 200
    site.compose("up", "-d")
    assert site.inspect("gateway", ".State.StartedAt") == before
    assert "changed=0" in site.export("alice", "bob")
