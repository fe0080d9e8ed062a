"""Packages that a host lacks: one look, and apt only where something is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins.loader import connection_loader
from ansible.template import Templar
from ansible_collections.modelhost.serving.plugins.action.packages import ActionModule
from ansible_collections.modelhost.serving.plugins.modules import packages

ROOT = Path(__file__).resolve().parents[2]


def look(folder: Path, names: list[str], listing: str, code: int = 0) -> dict[str, Any]:
    """The host's look, with a dpkg that says this."""
    for name, text in {
        "dpkg": "echo amd64",
        "dpkg-query": f"printf '%s\\n' \"$@\" > {folder}/asked\ncat {folder}/listing\nexit {code}",
    }.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    (folder / "listing").write_text(listing)
    done = subprocess.run(
        [sys.executable, str(ROOT / "plugins/modules/packages.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {"names": names}}), capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / ".collections")},
    )  # fmt: skip
    return dict(json.loads(done.stdout))


class Run:
    """The action plugin with a host that lacks some packages; remembers which modules it ran there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, missing: list[str], apt: dict[str, Any] | None = None) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers = {
            "modelhost.serving.packages": {"changed": bool(missing), "missing": missing, "installed": []},
            "ansible.builtin.apt": apt or {"changed": True},
        }

        def execute(_action: ActionModule, module_name: str, module_args: dict[str, Any], **_: Any) -> dict[str, Any]:
            self.asked.append((module_name, module_args))
            return self.answers[module_name]

        monkeypatch.setattr(ActionModule, "_execute_module", execute)

    def __call__(self, check: bool = False, **arguments: Any) -> dict[str, Any]:
        task = Task.load({"modelhost.serving.packages": arguments, "check_mode": check})
        loader = DataLoader()
        connection = connection_loader.get("ansible.builtin.local", PlayContext())
        action = ActionModule(task, connection, PlayContext(), loader, Templar(loader=loader), None)
        return action.run(task_vars={})


def test_only_what_dpkg_calls_installed_counts(tmp_path: Path) -> None:
    listing = (
        "installed procps amd64\nconfig-files gone amd64\nhalf-configured broken all\n"
        "installed python3-venv all\nnot-installed mentioned \n"
    )
    names = ["procps", "gone", "broken", "python3-venv", "mentioned", "never-heard-of"]
    seen = look(tmp_path, names, listing, code=1)
    assert seen["missing"] == ["gone", "broken", "mentioned", "never-heard-of"]
    assert seen["changed"]
    assert (tmp_path / "asked").read_text().split()[-6:] == names
    assert not look(tmp_path, ["procps"], listing)["changed"]


def test_a_foreign_architectures_package_does_not_count() -> None:
    listing = "installed libtcmalloc-minimal4 i386\ninstalled libc6 i386\ninstalled libc6 amd64\n"
    assert packages.present(listing, "amd64") == {"libc6"}


def test_a_dpkg_that_cannot_answer_is_no_host_without_packages(tmp_path: Path) -> None:
    seen = look(tmp_path, ["procps"], "", code=2)
    assert seen["failed"]
    assert "cannot say what is installed" in seen["msg"]
    assert "missing" not in seen


def test_where_nothing_is_missing_apt_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, missing=[])
    seen = run(names=["procps", "gpg", "procps"], update_cache=True)
    assert [name for name, _ in run.asked] == ["modelhost.serving.packages"]
    assert run.asked[0][1]["names"] == ["procps", "gpg"]
    assert (seen["changed"], seen["missing"], seen["installed"]) == (False, [], [])


@pytest.mark.parametrize("update", [False, True])
def test_what_is_missing_is_installed_alone(monkeypatch: pytest.MonkeyPatch, update: bool) -> None:
    run = Run(monkeypatch, missing=["gpg"])
    seen = run(names=["procps", "gpg"], update_cache=update)
    wanted = {"name": ["gpg"], "state": "present", "install_recommends": False, "update_cache": update}
    assert run.asked[1:] == [("ansible.builtin.apt", wanted)]
    assert (seen["changed"], seen["missing"], seen["installed"]) == (True, ["gpg"], ["gpg"])


def test_check_mode_says_what_is_missing_and_does_not_ask_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, missing=["gpg"])
    seen = run(check=True, names=["gpg"])
    assert len(run.asked) == 1
    assert (seen["changed"], seen["missing"], seen["installed"]) == (True, ["gpg"], [])


def test_apts_failure_is_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, missing=["gpg"], apt={"failed": True, "msg": "No package matching 'gpg' is available"})
    seen = run(names=["gpg"])
    assert seen["failed"]
    assert seen["msg"] == "No package matching 'gpg' is available"
    assert (seen["missing"], seen["installed"]) == (["gpg"], [])


def test_no_names_cost_no_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, missing=[])
    assert not run(names=[])["changed"]
    assert run.asked == []


@pytest.mark.parametrize("name", ["gpg=2.2*", "--purge", "libc6:i386", "A", ""])
def test_what_is_no_plain_name_is_refused_before_the_host_is_asked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run = Run(monkeypatch, missing=[])
    with pytest.raises(AnsibleActionFail, match="without versions"):
        run(names=["procps", name])
    assert run.asked == []
