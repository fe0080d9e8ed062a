"""The default scenario's host after `site.yml`: units, accounts, files, ports, health, keys."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import Any

import pytest
from patience import HANGS

UNITS = ["vllm@coder", "litellm@main"]


@pytest.mark.parametrize("unit", UNITS)
def test_unit_runs_and_starts_at_boot(host: Any, unit: str) -> None:
    service = host.service(unit)
    assert service.is_running
    assert service.is_enabled
    assert service.systemd_properties["NRestarts"] == "0"


@pytest.mark.parametrize(("unit", "user"), [("vllm@coder", "vllm"), ("litellm@main", "litellm")])
def test_unit_runs_as_its_own_user(host: Any, unit: str, user: str) -> None:
    pid = host.service(unit).systemd_properties["MainPID"]
    assert host.check_output("ps -o user= -p %s", pid).strip() == user
    account = host.user(user)
    assert account.shell.endswith("nologin")
    assert account.password in ("!", "*", "!*")


@pytest.mark.parametrize("unit", UNITS)
def test_sandbox_is_tight(host: Any, unit: str) -> None:
    done = host.run("systemd-analyze security --no-pager %s.service", unit)
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert match, done.stdout + done.stderr
    assert float(match.group(1)) <= 3.0, done.stdout


def test_the_engine_goes_by_the_machines_memory_and_not_by_its_nodes(host: Any) -> None:
    """This host's NUMA node shows a fifth of the memory, next to nothing of it free (testbed_lazy_memory)."""
    node = re.search(r"MemTotal:\s+(\d+)", host.check_output("cat /sys/devices/system/node/node0/meminfo"))
    machine = re.search(r"MemTotal:\s+(\d+)", host.check_output("cat /proc/meminfo"))
    assert node
    assert machine
    assert int(node.group(1)) < int(machine.group(1)) / 4
    journal = host.check_output("journalctl -u vllm@coder -o cat --no-pager")
    seen = re.search(r"Explicitly set \([\d.]+/([\d.]+)\) GiB for KV cache", journal)
    assert seen, journal[-4000:]
    assert float(seen.group(1)) == pytest.approx(int(machine.group(1)) / 1024**2, abs=0.02)


def test_nothing_else_listens(host: Any) -> None:
    """The gateway is open to the container's network; the engine's API is not."""
    lines = host.check_output("ss -Hlnt").splitlines()
    listening = {line.split()[3] for line in lines}
    assert "127.0.0.1:8000" in listening
    assert "0.0.0.0:4000" in listening
    beyond_loopback = {item for item in listening if not item.startswith(("127.0.0.1:", "[::1]:"))}
    assert beyond_loopback == {"0.0.0.0:4000"}, host.check_output("ss -lntp")


SECRET_FILES = [
    ("/etc/modelhost/vllm/coder.env", "root", "root", 0o600),
    ("/etc/modelhost/vllm/coder.key", "root", "root", 0o600),
    ("/etc/modelhost/vllm/accepted/coder/keys", "root", "vllm", 0o640),
    ("/opt/modelhost/vllm/share/guard/modelhost_engine_guard.py", "root", "root", 0o644),
    ("/etc/modelhost/litellm/litellm.env", "root", "root", 0o600),
    ("/etc/modelhost/litellm/keys/demo", "root", "root", 0o600),
    ("/etc/modelhost/litellm/keys/verify", "root", "root", 0o600),
    ("/etc/modelhost/litellm/key_hashes.json", "root", "litellm", 0o640),
    ("/etc/modelhost/litellm/config.yaml", "root", "litellm", 0o640),
]


@pytest.mark.parametrize(("path", "user", "group", "mode"), SECRET_FILES)
def test_modes(host: Any, path: str, user: str, group: str, mode: int) -> None:
    file = host.file(path)
    assert file.exists
    assert (file.user, file.group, oct(file.mode)) == (user, group, oct(mode))


def test_nothing_is_writable_for_everyone(host: Any) -> None:
    found = host.check_output(
        "find /etc/modelhost /opt/modelhost /var/lib/modelhost -xdev ! -type l -perm -0002 -print | head"
    )
    assert found == ""


def test_releases_belong_to_root_and_current_is_a_link(host: Any) -> None:
    for component in ("vllm", "litellm"):
        current = host.file(f"/opt/modelhost/{component}/current")
        assert current.is_symlink
        assert host.file(current.linked_to).user == "root"


def get(url: str, key: str | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=HANGS) as response:
            body = response.read().decode()
            status = response.status
    except urllib.error.HTTPError as error:
        body, status = error.read().decode(), error.code
    try:
        return status, json.loads(body)
    except ValueError:
        return status, body


@pytest.mark.parametrize("path", ["/health/liveliness", "/health/readiness"])
def test_health_needs_no_key(gateway_url: str, path: str) -> None:
    status, body = get(gateway_url + path)
    assert status == 200, body


def test_engine_health(host: Any) -> None:
    assert host.run("curl -fsS http://127.0.0.1:8000/health").rc == 0


def test_engine_wants_its_key(host: Any) -> None:
    answer = host.check_output("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8000/v1/models")
    assert answer == "401"


def test_models_are_listed_for_a_user(gateway_url: str, user_key: str) -> None:
    status, body = get(gateway_url + "/v1/models", user_key)
    assert status == 200, body
    names = {model["id"] for model in body["data"]}
    assert {"local-claude-coder", "loopback"} <= names


@pytest.mark.parametrize("key", [None, "sk-1234", "sk-" + "x" * 43])
def test_a_wrong_key_is_refused(gateway_url: str, key: str | None) -> None:
    status, body = get(gateway_url + "/v1/models", key)
    assert status == 401, body


def test_no_secret_on_a_command_line(host: Any) -> None:
    keys = host.check_output("cat /etc/modelhost/litellm/keys/* /etc/modelhost/vllm/*.key").split()
    assert len(keys) >= 3
    assert all(len(key) >= 40 for key in keys)
    shown = host.check_output("ps axww -o args") + host.check_output("systemctl show 'vllm@*' 'litellm@*' -p ExecStart")
    for key in keys:
        assert key not in shown
