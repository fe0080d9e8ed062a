"""Whom the gateway's unit lets the gateway talk to, as the role renders it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ["http://10.0.0.11:8000", "http://127.0.0.1:8000", "http://10.0.0.12:8001"]
#: Name -> what a user sets.
CASES: dict[str, dict[str, Any]] = {
    "loopback": {},
    "beyond": {"litellm_bind_address": "10.0.0.1"},
    "every address": {"litellm_bind_address": "0.0.0.0", "litellm_reachable": ["10.0.8.1"]},
    "beyond with clients": {
        "litellm_bind_address": "10.0.0.1",
        "litellm_client_networks": ["10.1.0.0/16"],
        "litellm_reachable": ["10.0.8.1"],
    },
    "every address with clients": {"litellm_bind_address": "0.0.0.0", "litellm_client_networks": ["10.1.0.0/16"]},
}
NEVER = ["169.254.0.0/16", "fe80::/64", "fd00:ec2::254", "100.100.100.200"]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The filter's lines of each case, by the role's own variables and its own task."""
    folder = tmp_path_factory.mktemp("wall")
    role = ROOT / "roles/litellm"
    look_up = next(
        task
        for task in yaml.safe_load((role / "tasks/configure.yml").read_text())
        if task["name"] == "configure | Look up whom the gateway may talk to"
    )
    plays = []
    for at, values in enumerate(CASES.values()):
        render = {"src": str(role / "templates/etc/systemd/system/_venv.j2"), "dest": str(folder / str(at))}
        plays.append(
            {
                "hosts": "localhost",
                "gather_facts": False,
                "vars": {
                    **yaml.safe_load((role / "defaults/main.yml").read_text()),
                    **yaml.safe_load((role / "vars/main.yml").read_text()),
                    "litellm_runtime": "venv",
                    "litellm_backends": [{"url": url, "host": "box", "instance": "coder"} for url in ENGINES],
                    "ansible_python_interpreter": "{{ ansible_playbook_python }}",
                    **values,
                },
                "tasks": [look_up, {"ansible.builtin.template": render}],
            }
        )
    (folder / "play.yml").write_text(yaml.safe_dump(plays))
    done = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", "-c", "local", str(folder / "play.yml")],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        name: [line for line in (folder / str(at)).read_text().splitlines() if line.startswith("IPAddress")]
        for at, name in enumerate(CASES)
    }


def walled(*addresses: str) -> list[str]:
    return ["IPAddressDeny=any", "IPAddressAllow=localhost", *(f"IPAddressAllow={address}" for address in addresses)]


def test_whom_the_gateway_talks_to(rendered: dict[str, list[str]]) -> None:
    beyond = [f"IPAddressDeny={' '.join(NEVER)}"]
    assert rendered == {
        "loopback": walled("10.0.0.11", "10.0.0.12"),
        "beyond": beyond,
        "every address": beyond,
        "beyond with clients": walled("10.0.0.1", "10.0.0.11", "10.0.0.12", "10.0.8.1", "10.1.0.0/16"),
        "every address with clients": walled("10.0.0.11", "10.0.0.12", "10.1.0.0/16"),
    }
