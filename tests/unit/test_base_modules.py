"""Modules and action plugins that every role uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.action import wait_unit
from ansible_collections.modelhost.serving.plugins.module_utils import problems, site_report
from ansible_collections.modelhost.serving.plugins.modules import python_release, unit_running

ROOT = Path(__file__).resolve().parents[2]


def module(name: str, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """A module of ours run as a program, as Ansible does it."""
    arguments["_ansible_check_mode"] = check
    done = subprocess.run(
        [sys.executable, str(ROOT / "plugins/modules" / f"{name}.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), capture_output=True, text=True, check=False,
        env={**os.environ, "_ANSIBLE_TEST": "1", "PYTHONPATH": str(ROOT / ".collections")},
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout or "{}")
    result["_text"] = done.stdout + done.stderr
    return result


def test_a_release_is_named_after_all_that_goes_into_it() -> None:
    one = python_release.release_name("1.0", "lock a", [], [], ">=3.11")
    assert one.startswith("1.0-")
    assert one != python_release.release_name("1.0", "lock b", [], [], ">=3.11")
    assert one != python_release.release_name("1.0", "lock a", ["x"], [], ">=3.11")
    assert one == python_release.release_name("1.0", "lock a", [], [], ">=3.11")


def test_metadata_only_distribution_is_found(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    python_release.write_metadata(str(tmp_path), {"vllm": "0.32.0+cpu"})
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0.32.0+cpu"


def test_younger_files_are_found_and_links_count_by_themselves(tmp_path: Path) -> None:
    old, new, link = tmp_path / "old", tmp_path / "new", tmp_path / "link"
    old.touch()
    new.touch()
    os.utime(old, (100, 100))
    os.utime(new, (300, 300))
    link.symlink_to(old)
    os.utime(link, (300, 300), follow_symlinks=False)
    found = unit_running.younger([str(old), str(new), str(link), str(tmp_path / "missing")], 200.0)
    assert found == [str(new), str(link)]


@pytest.mark.parametrize(
    ("state", "over"),
    [
        ({"ActiveState": "failed"}, True),
        ({"ActiveState": "inactive", "Job": "12"}, False),
        ({"ActiveState": "inactive"}, True),
        ({"ActiveState": "activating"}, False),
    ],
)
def test_a_wait_ends_with_the_unit(state: dict[str, str], over: bool) -> None:
    assert wait_unit.ended(state) is over


def test_the_last_phase_in_the_journal_counts() -> None:
    phases = [{"pattern": "Loading", "phase": "loading"}, {"pattern": "KV cache", "phase": "cache"}]
    assert wait_unit.phase_of(["Loading a", "GPU KV cache size", "…"], phases) == "cache"
    assert wait_unit.phase_of(["nothing"], phases) == "starting"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "(Worker pid=7248) INFO 11-21 10:51:57 [default_loader.py:501] Loading weights took 1 s",
            "Loading weights took 1 s",
        ),
        ("INFO:     Waiting for application startup.", "Waiting for application startup."),
        ("Loading shards: 100% | 1/1", "Loading shards: 100% | 1/1"),
    ],
)
def test_progress_shows_the_message_alone(line: str, shown: str) -> None:
    assert wait_unit.message(line) == shown


def test_the_same_problem_on_several_hosts_is_told_once() -> None:
    found = [problems.problem(host, "x", 1, "bad", "do it") for host in ("a", "b")]
    assert problems.report(found) == "a, b: x = 1\n    bad\n    → do it"


def test_report_without_a_gateway_names_the_engines_api() -> None:
    text = "\n".join(
        site_report.lines({"engines": ["box"]}, {"box": {"vllm_instances": [{"name": "coder", "model": "loopback"}]}})
    )
    assert "API service only" in text
    assert "http://127.0.0.1:8000/v1" in text
