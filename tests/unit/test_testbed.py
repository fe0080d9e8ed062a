"""What `./run` and the test hosts learn about this machine, and how results are added up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """testbed/machine.py on a machine with no settings of its own."""
    import importlib.util
    import os

    for name in list(os.environ):
        if name.upper().startswith(("PIP_", "UV_", "NPM_CONFIG")) or name.lower() in (
            "http_proxy",
            "https_proxy",
            "no_proxy",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "none"))
    spec = importlib.util.spec_from_file_location("machine", ROOT / "testbed/machine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "EXTRA_CA", str(tmp_path / "ca"))
    monkeypatch.setattr(module, "apt_proxy", lambda: "")
    monkeypatch.setattr(module, "SYSTEM_PIP_CONF", str(tmp_path / "none"))
    monkeypatch.setattr(module, "SYSTEM_NPMRC", ())
    return module


def test_a_plain_machine_has_nothing_to_say(machine: Any) -> None:
    assert machine.detect() == {}


def test_settings_are_found(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "my wheels"
    wheels.mkdir()
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca/proxy.crt").write_text("x")
    (tmp_path / "ca/modelhost-proxy.crt").write_text("put there by host_base")
    (tmp_path / "config/pip").mkdir(parents=True)
    (tmp_path / "config/pip/pip.conf").write_text("[global]\nindex_url = https://mirror.example/simple/\n")
    (tmp_path / ".npmrc").write_text("fund=false\nregistry = https://npm.example/\n")
    monkeypatch.setenv("PIP_FIND_LINKS", wheels.as_uri())
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", ".example")
    assert machine.detect() == {
        "host_base_extra_ca_certificates": [str(tmp_path / "ca/proxy.crt")],
        "host_base_pip_index_url": "https://mirror.example/simple",
        "host_base_pip_find_links": [str(wheels)],
        "host_base_npm_registry": "https://npm.example/",
        "host_base_https_proxy": "http://proxy.example:3128",
        "host_base_no_proxy": ".example,localhost,127.0.0.1,::1",
        "testbed_shared_folders": [str(wheels)],
    }


def test_inventory_script_speaks_ansibles_form() -> None:
    done = subprocess.run([str(ROOT / "testbed/machine.py"), "--list"], capture_output=True, text=True, check=True)
    listed = json.loads(done.stdout)
    assert set(listed) == {"all", "_meta"}


def totals(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "testbed/totals.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_totals(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\x1b[31mbad\x1b[0m\x00\n")
    report = str(tmp_path / "reports/lint.xml")
    assert totals("case", report, "ruff", "0", "1", str(log)).returncode == 0
    assert totals("total", str(tmp_path / "reports")).stdout == "1 passed, 0 failed\n"
    totals("case", report, "mypy", "2", "1", str(log))
    (tmp_path / "reports/unit.xml").write_text(
        "<testsuites><testsuite><testcase name='a'/><testcase name='b'><skipped/></testcase>"
        "<testcase name='c'><error/></testcase></testsuite></testsuites>"
    )
    done = totals("total", str(tmp_path / "reports"))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "2 passed, 2 failed, 1 skipped"
    assert "FAILED lint: lint::mypy" in done.stdout


def test_no_results_are_no_success(tmp_path: Path) -> None:
    assert totals("total", str(tmp_path)).returncode == 1


def test_help_needs_nothing() -> None:
    done = subprocess.run([str(ROOT / "run"), "help"], capture_output=True, text=True, check=True)
    for command in ("demo", "demo down", "test", "lint", "unit", "benchmark", "molecule", "lock"):
        assert f"./run {command}" in done.stdout


def test_unknown_command_is_refused() -> None:
    done = subprocess.run([str(ROOT / "run"), "dmeo"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "unknown command: dmeo" in done.stderr
