"""An inventory without hosts is an error of every playbook that people start."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
#: Those that `site.yml` runs after it has checked, and those that make test hosts.
PARTS = {"deploy", "inventory", "preflight", "provision", "report", "stage", "testbed_create", "testbed_destroy"}


def test_each_playbook_checks_first() -> None:
    for path in [ROOT / "site.yml", *sorted((ROOT / "playbooks").glob("*.yml"))]:
        if path.stem not in PARTS:
            first = yaml.safe_load(path.read_text(encoding="utf-8"))[0]
            begins = first.get("ansible.builtin.import_playbook") or first["hosts"]
            assert begins.rpartition("/")[2] in ("inventory.yml", "validate.yml") or "localhost" in begins, path


@pytest.mark.parametrize("playbook", ["site.yml", "playbooks/verify.yml"])
def test_an_inventory_without_hosts_is_an_error(playbook: str, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {children: {engines: {}}}\n", encoding="utf-8")
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), playbook],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    assert "the inventory has no hosts" in (done.stdout + done.stderr).lower()
