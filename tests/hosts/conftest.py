"""What the host tests share: who the host is, how to reach its gateway, what to print when a service fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import wait_until

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command of this machine; its output is in the failure when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def container(host: Any) -> str:
    """The Docker container that is the host."""
    return str(host.backend.get_hostname())


@pytest.fixture
def gateway_url(container: str) -> str:
    """The gateway as this machine reaches it. A restart of the host may change the port."""
    address = run("docker", "port", container, "4000/tcp").stdout.splitlines()[0]
    return f"http://{address}"


@pytest.fixture
def user_key(host: Any) -> str:
    """The plain key of the inventory's first user."""
    return str(host.file("/etc/modelhost/litellm/keys/demo").content_string.strip())


def journals(container: str) -> str:
    """The state and the last lines of every unit of ours."""
    script = (
        "systemctl --no-pager --failed; "
        "for u in $(systemctl list-units --all --plain --no-legend 'vllm@*' 'litellm@*' | cut -d' ' -f1); do "
        'echo "--- $u"; systemctl --no-pager status -n0 "$u"; journalctl --no-pager -n 40 -u "$u"; done'
    )
    done = subprocess.run(
        ["docker", "exec", container, "sh", "-c", script], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Append the units' journals to a failure: that is what a person would look at next."""
    report: Any = yield
    host = getattr(item, "funcargs", {}).get("host")
    if report.when == "call" and report.failed and host is not None and not os.environ.get("NO_JOURNALS"):
        report.sections.append(("journals of the host", journals(host.backend.get_hostname())))
    return report  # type: ignore[return-value]


#: What the units of a host with one NUMA node do not see (vllm_flags.hidden_paths).
NODES = ("/sys/devices/system/node",)


class SideEngine:
    """One more engine on the host, in a transient unit, for tests that need other flags than the site's."""

    unit = "modelhost-side.service"

    def __init__(self, container: str) -> None:
        self.container = container

    def journal(self) -> str:
        """What it said."""
        command = ["docker", "exec", self.container, "journalctl", "--no-pager", "-o", "cat", "-u", self.unit]
        return run(*command).stdout

    def start(
        self, arguments: list[str], port: int, environment: dict[str, str] | None = None, hidden: Iterable[str] = NODES
    ) -> None:
        """Run `vllm serve` with these arguments as the engines' account; back when it answers on its port.

        hidden: folders of the host that it does not see, as in its unit.
        """
        settings = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "HOME": "/tmp", "VLLM_HOST_IP": "127.0.0.1"}
        settings |= {"GLOO_SOCKET_IFNAME": "lo", "VLLM_CACHE_ROOT": "/tmp/modelhost-side", **(environment or {})}
        command = [
            "systemd-run",
            f"--unit={self.unit}",
            "--uid=vllm",
            *(f"--setenv={k}={v}" for k, v in settings.items()),
            *(f"--property=InaccessiblePaths={path}" for path in hidden),
        ]
        run("docker", "exec", self.container, *command, "/opt/modelhost/vllm/current/bin/vllm", "serve", *arguments)

        def ready() -> bool:
            asked = ["docker", "exec", self.container, "systemctl", "is-active", self.unit]
            state = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
            assert state == "active", f"the engine ended ({state}):\n{self.journal()[-6000:]}"
            probe = ["docker", "exec", self.container, "curl", "-fs", f"http://127.0.0.1:{port}/health"]
            return subprocess.run(probe, capture_output=True, check=False).returncode == 0

        wait_until(ready, f"an engine answers that was started with {arguments}")

    def resident(self) -> int:
        """Bytes that its processes hold, shared pages counted once."""
        script = (
            f"for pid in $(systemctl show -P ControlGroup {self.unit} | xargs -I@ find /sys/fs/cgroup "
            "-path '*@/cgroup.procs' -exec cat {} + | sort -u); do grep ^Pss: /proc/$pid/smaps_rollup; done"
        )
        out = run("docker", "exec", self.container, "bash", "-c", script).stdout
        return sum(int(line.split()[1]) for line in out.splitlines()) * 1024


@pytest.fixture
def side_engine(container: str) -> Iterator[SideEngine]:
    """An engine that is gone after the test, with all of its processes."""
    engine = SideEngine(container)
    yield engine
    for command in (["systemctl", "stop", engine.unit], ["systemctl", "reset-failed", engine.unit]):
        subprocess.run(["docker", "exec", container, *command], capture_output=True, check=False)
    subprocess.run(["docker", "exec", container, "rm", "-rf", "/tmp/modelhost-side"], check=False)
