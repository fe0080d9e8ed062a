"""unit_running: several units in one execution, and those that are no longer wanted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.modules import unit_running


class Left(Exception):
    """The module ended."""


class Host:
    """systemd as the module sees it: units with their states, and every command that it was given."""

    def __init__(self, folder: Path, **states: str) -> None:
        self.folder = folder
        self.states = {name.replace("__", "@") + ".service": state for name, state in states.items()}
        self.calls: list[str] = []
        self.breaks_at = ""

    def systemctl(self, arguments: list[str], check_rc: bool = False) -> tuple[int, str, str]:
        words = [word for word in arguments[1:] if not word.startswith("-") and word != unit_running.PROPERTIES]
        call, unit = words[0], words[-1]
        if call == "list-units":
            lines = [f"{name} loaded {state} x" for name, state in self.states.items() if state != "inactive"]
            return 0, "\n".join(lines), ""
        if call == "show":
            state = self.states.get(unit, "inactive")
            entered = "1" if state == "active" else "0"
            return (
                0,
                (
                    f"LoadState=loaded\nActiveState={state}\nUnitFileState=disabled\nNeedDaemonReload=no\nFragmentPath=\n"
                    f"DropInPaths=\nInactiveExitTimestampMonotonic={entered}\n"
                ),
                "",
            )
        self.calls.append(" ".join(words))
        if self.breaks_at == call:
            raise KeyboardInterrupt
        if call == "stop":
            self.states[unit] = "inactive"
        return 0, "", ""

    def drop_in(self, unit: str, linked: bool = True) -> Path:
        """What a role writes of an instance, and what enables it."""
        path = self.folder / f"{unit}.d" / "instance.conf"
        path.parent.mkdir(parents=True)
        path.touch()
        wants = self.folder / "multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        if linked:
            (wants / unit).symlink_to(self.folder / "vllm@.service")
        return path.parent


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the module against a host; gives its result."""
    monkeypatch.setattr(unit_running, "UNITS", str(tmp_path))

    def run(host: Host, check: bool = False, **params: Any) -> dict[str, Any]:
        result: dict[str, Any] = {}

        class Module:
            check_mode = check

            def __init__(self, **_more: Any) -> None:
                self.params = {"unit": None, "depends": [], "units": [], "unwanted": [], **params}
                self.run_command = host.systemctl

            def exit_json(self, **given: Any) -> None:
                result.update(given)

            def fail_json(self, **given: Any) -> None:
                raise Left(given)

        host.calls.clear()
        monkeypatch.setattr(unit_running, "AnsibleModule", Module)
        unit_running.main()
        return result

    return run


def test_each_of_several_units_is_judged_by_its_own_files(tmp_path: Path, run: Any) -> None:
    host = Host(tmp_path, vllm__a="active", vllm__b="active", vllm__c="inactive")
    young, old = tmp_path / "young", tmp_path / "old"
    for path in (young, old):
        path.touch()
    started = unit_running.started({"InactiveExitTimestampMonotonic": "1"})
    os.utime(young, (started + 5, started + 5))
    os.utime(old, (started - 5, started - 5))
    units = [
        {"unit": "vllm@a.service", "depends": [str(young)]},
        {"unit": "vllm@b.service", "depends": [str(old)]},
        {"unit": "vllm@c.service", "depends": []},
    ]
    done = run(host, units=units)
    assert [item["action"] for item in done["units"]] == ["restart", "none", "start"]
    assert done["units"][0]["because"] == [str(young)]
    assert "restart vllm@a.service" in host.calls
    assert "start vllm@c.service" in host.calls
    assert not [call for call in host.calls if call.endswith("art vllm@b.service")]


def test_the_form_for_one_unit(tmp_path: Path, run: Any) -> None:
    host = Host(tmp_path, litellm__main="inactive")
    done = run(host, unit="litellm@main.service")
    assert [(item["unit"], item["action"]) for item in done["units"]] == [("litellm@main.service", "start")]


def test_what_is_not_wanted_goes_before_anything_starts(tmp_path: Path, run: Any) -> None:
    host = Host(tmp_path, vllm__new="inactive", vllm__old="active")
    (tmp_path / "vllm@.service").touch()
    kept, gone = host.drop_in("vllm@new.service"), host.drop_in("vllm@old.service")
    wanted = {"units": [{"unit": "vllm@new.service", "depends": []}], "unwanted": ["vllm@?*.service"]}
    told = run(host, check=True, **wanted)
    assert (told["changed"], told["removed"]) == (True, ["vllm@old.service"])
    assert gone.exists()
    assert host.calls == []
    done = run(host, **wanted)
    assert done["removed"] == ["vllm@old.service"]
    assert host.calls.index("stop vllm@old.service") < host.calls.index("start vllm@new.service")
    assert (kept.exists(), gone.exists()) == (True, False)
    assert (tmp_path / "vllm@.service").exists(), "the template is not one of the instances"
    assert not (tmp_path / "multi-user.target.wants/vllm@old.service").is_symlink()
    assert run(host, **wanted)["removed"] == []


def test_a_run_that_breaks_off_forgets_no_unit(tmp_path: Path, run: Any) -> None:
    host = Host(tmp_path, vllm__old="active")
    host.drop_in("vllm@old.service")
    host.breaks_at = "stop"
    with pytest.raises(KeyboardInterrupt):
        run(host, unwanted=["vllm@?*.service"])
    host.breaks_at = ""
    assert run(host, unwanted=["vllm@?*.service"])["removed"] == ["vllm@old.service"]
    assert host.states["vllm@old.service"] == "inactive"


@pytest.mark.parametrize("trace", ["file", "drop-in", "link", "process"])
def test_any_trace_of_a_unit_is_seen(tmp_path: Path, run: Any, trace: str) -> None:
    host = Host(tmp_path, vllm__old="failed" if trace == "process" else "inactive")
    (tmp_path / "multi-user.target.wants").mkdir()
    if trace == "file":
        (tmp_path / "vllm@old.service").touch()
    elif trace == "drop-in":
        (tmp_path / "vllm@old.service.d").mkdir()
    elif trace == "link":
        (tmp_path / "multi-user.target.wants/vllm@old.service").symlink_to("/nowhere")
    assert run(host, unwanted=["vllm@?*.service"])["removed"] == ["vllm@old.service"]
    left = {path.name for path in tmp_path.rglob("*")} - {"multi-user.target.wants"}
    assert left == set()


def test_a_template_goes_last_and_is_never_stopped(tmp_path: Path, run: Any) -> None:
    host = Host(tmp_path, vllm__old="active")
    host.drop_in("vllm@old.service")
    (tmp_path / "vllm@.service").touch()
    assert run(host, unwanted=["vllm@*.service"])["removed"] == ["vllm@old.service", "vllm@.service"]
    assert [call for call in host.calls if call.startswith("stop")] == ["stop vllm@old.service"]
    assert not (tmp_path / "vllm@.service").exists()
