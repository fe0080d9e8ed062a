"""The CUDA release without a GPU: its own nvcc compiles what vLLM compiles, and what vLLM chooses has a compiler.

The long form alone (`./run test --all`): it installs 8 GB, unless MODELHOST_CUDA_RELEASE names a release that is there.
A toolkit below /usr/local/cuda is out of sight where this machine lets the test hide it (root).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import catalog

ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
#: What the role sets, and what a unit has.
ENVIRONMENT = {"CUDA_HOME": "{release}/cuda", "PATH": "{release}/bin:/usr/bin:/bin", "HOME": "{folder}"}

pytestmark = pytest.mark.skipif(
    not os.environ.get("MODELHOST_TEST_ALL"), reason="installs the CUDA release, 8 GB: ./run test --all"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("cuda")
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def release(folder: Path) -> Path:
    """A release as the role makes it."""
    if os.environ.get("MODELHOST_CUDA_RELEASE"):
        return Path(os.environ["MODELHOST_CUDA_RELEASE"])
    pins = yaml.safe_load((ROOT / "versions.yml").read_text(encoding="utf-8"))["vllm"]["cuda"]
    links = yaml.safe_load((ROOT / "roles/vllm/vars/main.yml").read_text(encoding="utf-8"))["__vllm_links"]["cuda"]
    tools = folder / "opt/bin"
    tools.mkdir(parents=True)
    (tools / "with-mirrors").write_text('#!/bin/sh\nexec "$@"\n')
    (tools / "with-mirrors").chmod(0o755)
    (tools / "uv").symlink_to(ROOT / ".cache/uv/bin/uv")
    arguments = {
        "component": "vllm", "version": pins["version"], "lock": (ROOT / pins["lock"]).read_text(encoding="utf-8"),
        "python": sys.executable, "prefix": str(folder / "opt"), "shared": pins["shared"],
        "links": {name: target for name, target in links.items() if "stubs" not in name},
        "_ansible_remote_tmp": str(folder),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(ROOT / "plugins/modules/python_release.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".collections"), "UV_FIND_LINKS": ""},
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert "path" in result, result.get("msg", done.stderr)
    return Path(result["path"])


@pytest.fixture(scope="module")
def driver(release: Path, folder: Path) -> Path:
    """A folder with a libcuda.so.1 that has what vLLM's libraries ask for, and does nothing."""
    made = folder / "driver"
    made.mkdir()
    asked: set[str] = set()
    for library in sorted(release.glob("lib/python3*/site-packages/vllm/*.so")):
        told = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
        asked |= set(re.findall(r"\bcu[A-Z]\w+", told.stdout))
    source = "\n".join(f"int {name}(void) {{ return 100; }}" for name in sorted(asked))
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", str(made / "libcuda.so.1")]
    subprocess.run(command, input=source, text=True, check=True)
    return made


def inside(release: Path, folder: Path, command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """A program with a unit's environment, and no other toolkit in sight."""
    other = Path("/usr/local/cuda").resolve()
    if os.geteuid() == 0 and other.is_dir():
        hidden = f'mount -t tmpfs none {other} && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", hidden, "sh", *command]
    environment = {name: value.format(release=release, folder=folder) for name, value in ENVIRONMENT.items()}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environment, **more.pop("env", {})}, **more
    )


@pytest.mark.parametrize("header", ["cuda/std/utility", "deep_gemm/impls/sm90_fp8_gemm_1d2d.cuh"])
def test_the_release_compiles_with_its_own_nvcc(release: Path, folder: Path, header: str) -> None:
    source = folder / "kernel.cu"
    source.write_text(f"#include <{header}>\n__global__ void kernel(int *a) {{ *a = 1; }}\n")
    (gemm,) = release.glob("lib/python3*/site-packages/vllm/third_party/deep_gemm/include")
    command = [f"{release}/cuda/bin/nvcc", "-arch=sm_90a", "-std=c++20", "--expt-relaxed-constexpr", "-I", str(gemm)]
    done = inside(release, folder, [*command, "-c", str(source), "-o", str(folder / "kernel.o")])
    assert done.returncode == 0, done.stderr


def cases(capability: str) -> dict[str, dict[str, Any]]:
    """Catalogue entries that run on such GPUs, as vLLM's choice of a backend sees them."""
    found = {}
    for name, entry in catalog.shipped().items():
        least = float(entry.get("minimum_compute_capability") or 0)
        if "cuda" not in (entry.get("runs_on") or ["cuda"]) or float(capability) < least:
            continue
        config = {**entry["config"], **(entry["config"].get("text_config") or {})}
        heads, latent = config["num_attention_heads"], config.get("kv_lora_rank")
        sparse = bool(config.get("index_head_dim"))
        size = config.get("head_dim") or config["hidden_size"] // heads
        cache = (entry.get("flags") or {}).get("kv_cache_dtype", "auto")
        found[name] = {
            "num_heads": heads,
            "head_size": latent + config["qk_rope_head_dim"] if latent else size,
            # vLLM's own layout for sparse attention.
            "kv_cache_dtype": "fp8_ds_mla" if sparse and cache == "fp8" else cache,
            "use_mla": bool(latent or sparse),
            "use_sparse": sparse,
            "has_sink": config.get("model_type") == "gpt_oss",
            "has_sliding_window": bool(config.get("sliding_window")) and config.get("use_sliding_window") is not False,
        }
    return found


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_what_vllm_chooses_has_a_compiler(release: Path, folder: Path, driver: Path, capability: str) -> None:
    """vLLM's choice of an attention backend does not ask whether FlashInfer can compile; here it can."""
    asked = cases(capability)
    program = [f"{release}/bin/python", str(ROOT / "tests/unit/cuda_backends.py"), capability]
    text = json.dumps(list(asked.values()))
    done = inside(release, folder, program, input=text, env={"LD_LIBRARY_PATH": str(driver)})
    assert done.returncode == 0, done.stderr[-3000:]
    answers = dict(zip(asked, json.loads(done.stdout), strict=True))
    print(json.dumps({name: item["backends"] for name, item in answers.items()}))
    without = [name for name, item in answers.items() if not item["backends"] and not asked[name]["use_sparse"]]
    assert without == [], {name: answers[name]["refused"] for name in without}
    jit = [name for name, item in answers.items() if "FLASHINFER" in "".join(item["backends"][:1])]
    assert [name for name in jit if not answers[name]["flashinfer"]] == []
