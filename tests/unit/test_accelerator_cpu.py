"""Provider cpu: what engines get, and what the kernel is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import accelerator
from ansible_collections.modelhost.serving.plugins.modules import kernel_settings

ROOT = Path(__file__).resolve().parents[2]
TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"
IOMP = "/opt/modelhost/vllm/current/lib/libiomp5.so"


# --- what engines get --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "variables", "runtime", "expected"),
    [
        ({}, {}, "venv", {"LD_PRELOAD": f"{TCMALLOC}:{IOMP}", "THP_MEM_ALLOC_ENABLE": "1"}),
        ({}, {}, "docker", {"THP_MEM_ALLOC_ENABLE": "1"}),
        ({"nvidia_driver": "580.65.06"}, {}, "venv", {}),
        ({"nvidia_driver": "580.65.06"}, {"vllm_variant": "cpu"}, "docker", {"THP_MEM_ALLOC_ENABLE": "1"}),
        ({}, {"vllm_variant": "cuda"}, "venv", {}),
        ({}, {"accelerator_provider": "none"}, "venv", {}),
        ({}, {"accelerator_state": "absent"}, "venv", {}),
        ({}, {"accelerator_cpu_preload": []}, "venv", {"THP_MEM_ALLOC_ENABLE": "1"}),
        (
            {},
            {"accelerator_cpu_preload": ["iomp"], "accelerator_cpu_transparent_hugepages": "never"},
            "venv",
            {"LD_PRELOAD": IOMP},
        ),
        (
            {"architecture": "aarch64"},
            {},
            "venv",
            {"LD_PRELOAD": "/usr/lib/aarch64-linux-gnu/libtcmalloc_minimal.so.4", "THP_MEM_ALLOC_ENABLE": "1"},
        ),
    ],
)
def test_environment(probe: dict[str, Any], variables: dict[str, Any], runtime: str, expected: dict[str, str]) -> None:
    assert accelerator.environment(probe, variables, runtime) == expected


def test_the_defaults_of_the_filter_are_those_of_the_role() -> None:
    defaults = yaml.safe_load((ROOT / "roles/accelerator/defaults/main.yml").read_text())
    assert defaults["accelerator_cpu_preload"] == list(accelerator.PRELOAD)
    assert defaults["accelerator_cpu_transparent_hugepages"] == accelerator.HUGE_PAGES


def test_intel_s_openmp_is_in_the_lock_of_the_cpu_build() -> None:
    lock = (ROOT / yaml.safe_load((ROOT / "versions.yml").read_text())["vllm"]["cpu"]["lock"]).read_text()
    assert "\nintel-openmp==" in lock


# --- what the kernel is told -------------------------------------------------------------------------------------


def module(check: bool = False, **arguments: Any) -> dict[str, Any]:
    """The module run as a program, as Ansible does it."""
    arguments.update({"_ansible_check_mode": check, "_ansible_diff": True})
    done = subprocess.run(
        [sys.executable, str(ROOT / "plugins/modules/kernel_settings.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), capture_output=True, text=True, check=False,
        env={**os.environ, "_ANSIBLE_TEST": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """Files as the kernel has them."""
    for number in (0, 1):
        (tmp_path / f"policy{number}").mkdir()
        (tmp_path / f"policy{number}/governor").write_text("powersave\n")
    (tmp_path / "huge").write_text("always [madvise] never\n")
    (tmp_path / "swappiness").write_text("60\n")
    return tmp_path


def test_values_are_set_once_and_what_was_there_comes_back(kernel: Path) -> None:
    memory = kernel / "before.json"
    settings = {
        str(kernel / "huge"): "madvise",
        f"{kernel}/policy*/governor": "performance",
        str(kernel / "swappiness"): 10,
        str(kernel / "nothing"): "x",
    }
    checked = module(check=True, settings=settings, memory=str(memory))
    assert checked["changed"]
    assert (kernel / "policy1/governor").read_text() == "powersave\n"
    assert not memory.exists()

    first = module(settings=settings, memory=str(memory))
    assert first["changed"]
    assert first["diff"] == checked["diff"]
    assert f"{kernel}/swappiness: 60\n" in first["diff"]["before"]
    assert first["skipped"] == [{"path": str(kernel / "nothing"), "reason": "this host does not have it"}]
    assert first["lines"] == [
        f"w {kernel}/huge - - - - madvise",
        f"w {kernel}/policy0/governor - - - - performance",
        f"w {kernel}/policy1/governor - - - - performance",
        f"w {kernel}/swappiness - - - - 10",
    ]
    assert (kernel / "policy1/governor").read_text() == "performance"
    # What stood there already was not ours to remember.
    assert (kernel / "huge").read_text() == "always [madvise] never\n"
    assert sorted(json.loads(memory.read_text())) == [
        f"{kernel}/policy0/governor",
        f"{kernel}/policy1/governor",
        f"{kernel}/swappiness",
    ]
    second = module(settings=settings, memory=str(memory))
    assert not second["changed"]
    assert second["lines"] == first["lines"]

    # One that is no longer wanted comes back, the others stay.
    fewer = {path: value for path, value in settings.items() if "governor" not in path}
    assert module(settings=fewer, memory=str(memory))["changed"]
    assert (kernel / "policy0/governor").read_text() == "powersave"
    assert (kernel / "swappiness").read_text() == "10"
    assert not module(settings=fewer, memory=str(memory))["changed"]

    assert module(memory=str(memory), state="absent", check=True)["changed"]
    assert (kernel / "swappiness").read_text() == "10"
    assert module(memory=str(memory), state="absent")["changed"]
    assert (kernel / "swappiness").read_text() == "60"
    assert not memory.exists()
    assert not module(memory=str(memory), state="absent")["changed"]


def test_what_cannot_be_written_is_left_out_and_named(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> dict[str, Any]:
        return kernel_settings.work({str(kernel / "huge"): "always"}, str(kernel / "before.json"), False)

    # A read-only /sys, as in a container.
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        found = work()
    assert found["skipped"] == [{"path": f"{kernel}/huge", "reason": "this host does not let anybody write it"}]
    assert (found["changed"], found["lines"]) == (False, [])

    # A governor, say, that this driver does not have.
    def refuse(path: Any, *arguments: Any, **more: Any) -> Any:
        if "w" in arguments and str(path).endswith("huge"):
            raise OSError(22, "Invalid argument")
        return open(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(kernel_settings, "open", refuse, raising=False)
        found = work()
    assert found["skipped"][0]["reason"] == "the kernel does not take always: Invalid argument"

    # A kernel that takes it and keeps what it had.
    with monkeypatch.context() as patch:
        patch.setattr(kernel_settings, "current", lambda *_: "madvise")
        found = work()
    assert found["skipped"][0]["reason"] == "the kernel keeps madvise"
    assert not (kernel / "before.json").exists()
