"""What the host tests share: who the host is, how to reach its gateway, what to print when a service fails."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command of this machine; its output is in the failure when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of the condition; fails with `what` when the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.5)


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
