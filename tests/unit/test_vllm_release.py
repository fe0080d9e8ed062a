"""What the role vllm puts into a release and beside it, by the role's own expressions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.modelhost.serving.plugins.module_utils import runtime, vllm_flags

ROOT = Path(__file__).resolve().parents[2]
VERSION = yaml.safe_load((ROOT / "versions.yml").read_text(encoding="utf-8"))["vllm"]["cuda"]["version"]


def value(name: str, **variables: Any) -> Any:
    """One of the role's internal variables."""
    loader = DataLoader()
    role: dict[str, Any] = {}
    for part in ("defaults", "vars"):
        role |= loader.load_from_file(str(ROOT / f"roles/vllm/{part}/main.yml"), trusted_as_template=True)
    known = {**role, "__vllm_host": {"wsl": False}, **variables}
    return Templar(loader=loader, variables=known).template(trust_as_template("{{ " + name + " }}"))


def engine(**flags: Any) -> dict[str, Any]:
    entry = {"id": "m", "source": {"path": "/m"}}
    return vllm_flags.effective_instance({"name": "coder", "model": "m", "flags": flags}, {"m": entry}, VERSION)


@pytest.mark.parametrize(
    ("variant", "engines", "wanted"),
    [
        ("cuda", [engine(enforce_eager=True)], True),
        ("cuda", [engine()], True),
        ("cpu", [engine()], True),
        ("cpu", [engine(enforce_eager=False)], True),
        ("cpu", [engine(enforce_eager=True)], False),
        ("cpu", [engine(enforce_eager=True), engine()], True),
        ("cpu", [{**engine(), "runtime": "docker"}], False),
    ],
)
def test_who_gets_a_compiler(variant: str, engines: list[dict[str, Any]], wanted: bool) -> None:
    assert value("__vllm_needs_compiler", __vllm_variant=variant, __vllm_effective=engines) is wanted


@pytest.mark.parametrize(
    ("python", "package"),
    [
        ("/usr/bin/python3.11", ["python3.11-dev"]),
        ("/usr/bin/python3.12", ["python3.12-dev"]),
        ("/opt/modelhost/python/cpython-3.13.9-linux-x86_64-gnu/bin/python3.13", []),
        ("/usr/local/bin/python3.12", []),
        # Check mode on a bare host.
        ("", []),
    ],
)
def test_headers_are_those_of_the_python_that_the_release_has(python: str, package: list[str]) -> None:
    assert value("__vllm_header_packages", __vllm_release={"python": python}) == package


def test_engines_on_gpus_get_the_release_s_own_toolkit() -> None:
    assert value("__vllm_release_environment", __vllm_variant="cuda")["CUDA_HOME"] == "/opt/modelhost/vllm/current/cuda"
    assert "CUDA_HOME" not in value("__vllm_release_environment", __vllm_variant="cpu")
    assert value("__vllm_links", __vllm_variant="cpu")["cpu"] == {}
    native, wsl = (value("__vllm_links", __vllm_host={"wsl": it})["cuda"] for it in (False, True))
    assert native["cuda/lib64/stubs/libcuda.so"] == "/usr/lib/x86_64-linux-gnu/libcuda.so.1"
    assert wsl["cuda/lib64/stubs/libcuda.so"] == "/usr/lib/wsl/lib/libcuda.so.1"
    assert {name: it for name, it in native.items() if "stubs" not in name}.items() <= wsl.items()


def test_a_start_on_a_gpu_may_compile() -> None:
    """Only with a virtual environment: images bring their kernels."""
    entry = {"id": "m", "source": {"path": "/m"}, "weights_gib": 20}
    gpu: dict[str, Any] = {"kind": "cuda", "memory_nodes": 1, "devices": [{"index": 0, "memory": 80 * 1024**3}]}

    def timeout(runtime: str, machine: dict[str, Any] | None) -> Any:
        made = vllm_flags.effective_instance(
            {"name": "coder", "model": "m"}, {"m": entry}, VERSION, machine=machine, runtimes={"coder": runtime}
        )
        assert made["environment"]["VLLM_ENGINE_READY_TIMEOUT_S"] == str(made["start_timeout"])
        return made["start_timeout"]

    assert timeout("venv", gpu) == 600 + 100 + vllm_flags.COMPILE_SECONDS
    assert timeout("docker", gpu) == 600 + 100
    assert timeout("venv", {**gpu, "kind": "cpu"}) == timeout("venv", None) == 600 + 100


def test_torch_s_cpu_build_is_pinned_for_every_python_of_the_role() -> None:
    """Its wheels are in no index that a lock is made from; what is missing here would be refused by hash."""
    defaults = yaml.safe_load((ROOT / "roles/vllm/defaults/main.yml").read_text(encoding="utf-8"))
    assert defaults["vllm_python"] == ">=3.11.1,<3.14"
    cpu = yaml.safe_load((ROOT / "versions.yml").read_text(encoding="utf-8"))["vllm"]["cpu"]
    assert set(cpu["torch"]["sha256"]) == {"cp311", "cp312", "cp313"}
    lock = (ROOT / cpu["lock"]).read_text(encoding="utf-8")
    assert all(digest in lock for digest in cpu["torch"]["sha256"].values())


@pytest.mark.parametrize(
    ("name", "glibc", "fits"),
    [
        ("vllm-1+cpu-cp38-abi3-manylinux_2_39_x86_64.whl", "2.39", True),
        ("vllm-1+cpu-cp38-abi3-manylinux_2_39_x86_64.whl", "2.36", False),
        ("vllm-1+cpu-cp38-abi3-manylinux_2_39_x86_64.whl", "2.4", False),
        ("vllm-1+cpu-cp38-abi3-manylinux_2_34_x86_64.whl", "2.35", True),
        ("vllm-1-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "2.17", True),
        ("vllm-1+cpu-cp38-abi3-manylinux_2_39_x86_64.whl", "", False),
        ("vllm-1+cpu-cp38-abi3-manylinux_2_39_x86_64.whl", None, True),
    ],
)
def test_a_wheel_s_name_says_the_oldest_c_library(name: str, glibc: Any, fits: bool) -> None:
    assert runtime.wheel_fits(name, glibc) is fits


@pytest.mark.parametrize(
    ("wish", "sha256", "glibc", "source"),
    [
        ("auto", "a" * 64, "2.39", "official"),
        ("auto", "a" * 64, "2.36", "pypi"),
        ("auto", "unverified", "2.39", "pypi"),
        ("pypi", "a" * 64, "2.39", "pypi"),
        ("official", "a" * 64, "2.36", "official"),
    ],
)
def test_where_the_cpu_build_comes_from(wish: str, sha256: str, glibc: str, source: str) -> None:
    """`official` on a host that is too old for it is refused before: roles/vllm/tasks/validate.yml."""
    official = {"file": "vllm-1+cpu-cp38-abi3-manylinux_2_39_x86_64.whl", "url": "https://x/y.whl", "sha256": sha256}
    known = {
        "__vllm_variant": "cpu",
        "__vllm_official": official,
        "vllm_wheel_source": wish,
        "__vllm_host": {"glibc": glibc},
    }
    assert value("__vllm_source", **known) == source
    assert value("__vllm_official_fits", **known) is (glibc == "2.39")
    if wish == "auto" and source == "pypi":
        why = "needs a newer glibc" if glibc == "2.36" else "has no checksum"
        assert why in value("__vllm_release_text", **known)


def test_the_pinned_name_and_address_agree() -> None:
    official = yaml.safe_load((ROOT / "versions.yml").read_text(encoding="utf-8"))["vllm"]["cpu"]["official"]
    assert official["url"].endswith("/" + official["file"])
    assert runtime.wheel_glibc(official["file"]) >= runtime.ENGINE_GLIBC
