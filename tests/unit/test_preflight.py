"""What preflight says of hosts that cannot do what is asked of them, in which words."""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import catalog, preflight, preflight_gpu, problems
from ansible_collections.modelhost.serving.plugins.modules import host_probe

ROOT = Path(__file__).resolve().parents[2]
GIB = 1024**3
AVX2 = ["sse4_2", "avx", "avx2", "fma"]
GROUPS = {"engines": ["box"], "gateways": ["box"]}
SETTINGS = {"paths": ["/opt", "/var/lib"], "min_disk_gib": 8, "models_dir": "/var/lib/modelhost/models"}
SPACE = {
    "free": 500 * GIB,
    "total": 900 * GIB,
    "files_free": 30_000_000,
    "mount": "/",
    "read_only": False,
    "noexec": False,
}

#: A host on which everything is well, in the form of host_probe.
WELL: dict[str, Any] = {
    "distribution": "debian",
    "distribution_version": "12",
    "distribution_name": "Debian GNU/Linux 12 (bookworm)",
    "architecture": "x86_64",
    "kernel": "6.1.0-18-amd64",
    "cpu_model": "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz",
    "cpu_flags": AVX2,
    "cpu_count": 56,
    "cpu_cores": 28,
    "cpu_sockets": 2,
    "cpu_max_mhz": 3300,
    "cpu_quota": 0,
    "numa": [],
    "memory": {"total": 363 * GIB, "available": 350 * GIB, "swap": 0, "engines": 0},
    "memory_devices": {},
    "gpus": [],
    "gpu_processes": [],
    "nvidia_smi_complaint": "",
    "nvidia_smi_slow": False,
    "nvidia_driver": "",
    "nvidia_devices": 0,
    "nvswitch": False,
    "fabricmanager": "absent",
    "nvidia": {},
    "disk": {"/opt": SPACE, "/var/lib": SPACE, "/var/lib/modelhost/models": SPACE},
    "paths": {},
    "glibc": "2.36",
    "systemd": "252",
    "systemd_is_init": True,
    "pythons": ["3.11"],
    "container": "",
    "virtualization": "",
    "wsl": False,
    "firewall": {"ufw": "absent", "firewalld": "absent", "open_ports": []},
    "listeners": {},
    "active_units": [],
    "accounts": ["root", "dev"],
    "is_root": True,
    "deployed": False,
    "errors": {},
}
SITE: dict[str, Any] = {"vllm_instances": [{"name": "coder", "model": "loopback"}]}


def gpu(index: int = 0, **values: Any) -> dict[str, Any]:
    found = {
        "index": index,
        "name": "NVIDIA A100-SXM4-80GB",
        "memory_total": 80 * GIB,
        "memory_free": 79 * GIB,
        "memory_engines": 0,
        "compute_capability": "8.0",
        "uuid": f"GPU-{index}",
        "pci": f"00000000:0{index}:00.0",
        "ecc_errors": 0,
        "pcie_width": 16,
        "pcie_width_max": 16,
        "mig": False,
        "driver": "580.95.05",
    }
    return {**found, **values}


def with_gpus(*gpus: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"gpus": list(gpus), "nvidia_devices": len(gpus), "nvidia_driver": "580.95.05", **values}


def disks(**values: Any) -> dict[str, Any]:
    """All folders on one disk."""
    return {path: {**SPACE, **values} for path in WELL["disk"]}


def entry(**values: Any) -> dict[str, Any]:
    return {"id": "mine", "source": {"path": "/data/mine"}, **values}


def judge(
    probe: dict[str, Any] | None = None,
    site: dict[str, Any] | None = None,
    groups: dict[str, list[str]] | None = None,
    **rest: Any,
) -> str:
    """The report on a host that differs from the well one by these facts, warnings marked."""
    facts = {**copy.deepcopy(WELL), **(probe or {})}
    found = preflight.problems("box", facts, SETTINGS, {**SITE, **(site or {})}, groups or GROUPS, **rest)
    return "\n".join(
        ("warning: " if item["level"] == "warning" else "") + problems.report([item]) for item in found
    ).replace("    ", "")


def asks(model: dict[str, Any] | str = "loopback", **values: Any) -> dict[str, Any]:
    return {"vllm_instances": [{"name": "coder", "model": model, **values}]}


def test_a_host_on_which_everything_is_well() -> None:
    assert judge() == ""
    assert judge(with_gpus(gpu())) == ""
    assert judge(with_gpus(*(gpu(index) for index in range(4))), asks(tensor_parallel_size=2)) == ""


WAY_OUT = preflight.WAY_OUT
NEWER = preflight.NEWER

#: What probe_system tells of the well host, and of two old ones.
FACTS: dict[str, Any] = {
    "python": "3.11.2",
    "interpreter": "/usr/bin/python3",
    "system_python": "3.11.2",
    "apt": "2.6.1",
    "packages": {},
    "clock_behind": 0,
    "proxies": [],
}
BIONIC_FACTS: dict[str, Any] = {
    **FACTS,
    "python": "3.8.0",
    "interpreter": "/usr/bin/python3.8",
    "system_python": "3.6.9",
    "apt": "1.6.17",
    "packages": dict.fromkeys(("ca-certificates", "procps", "python3.8-venv", "python3-distutils", "docker.io"), "1"),
}
FOCAL: dict[str, Any] = {
    "distribution": "ubuntu",
    "distribution_version": "20.04",
    "distribution_name": "Ubuntu 20.04.6 LTS",
    "kernel": "5.4.0-169-generic",
    "glibc": "2.31",
    "systemd": "245",
    "pythons": ["3.8"],
    "system": {**FACTS, "python": "3.8.10", "system_python": "3.8.10", "apt": "2.0.11"},
}
BIONIC_BOX: dict[str, Any] = {
    "distribution": "ubuntu",
    "distribution_version": "18.04",
    "distribution_name": "Ubuntu 18.04.6 LTS",
    "kernel": "5.4.0-150-generic",
    "glibc": "2.27",
    "systemd": "237",
    "pythons": ["3.8"],
    "system": BIONIC_FACTS,
}
CONTAINED = (
    "vLLM's builds are too new for this system, so what needs them runs in containers here\n"
    "→ nothing, if that is meant; docs/old-systems.md says what was tried"
)

TABLE: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    # --- the system
    (
        "Ubuntu 20.04 runs containers",
        FOCAL,
        {},
        f"warning: box: operating system = 'Ubuntu 20.04.6 LTS'\n{CONTAINED}",
    ),
    (
        "Ubuntu 20.04 fetches weights with a Python that it lacks",
        FOCAL,
        asks(entry(source={"repo": "a/b", "revision": "0" * 40})),
        f"warning: box: operating system = 'Ubuntu 20.04.6 LTS'\n{CONTAINED}\n"
        "warning: box: host_base_python_mirror\n"
        "no Python of this host fits the hub's client (3.8), so uv will download one from GitHub\n"
        "→ nothing, if the host may reach github.com; else install one from packages (python3.12), or name a mirror in "
        "host_base_python_mirror",
    ),
    (
        "Ubuntu 20.04 cannot run vLLM from a virtual environment",
        FOCAL,
        {"vllm_runtime": "venv"},
        f"warning: box: operating system = 'Ubuntu 20.04.6 LTS'\n{CONTAINED}\n"
        "box: vllm_runtime = 'venv'\n"
        "vLLM's builds need glibc 2.34 or later, and this host has 2.31; its unit needs systemd 247 or later, and this "
        "host has 245\n"
        f"→ {WAY_OUT}\n"
        "warning: box: vllm_python = '>=3.11.1,<3.14'\n"
        "no Python of this host fits (3.8), so uv will download one from GitHub\n"
        "→ nothing, if the host may reach github.com; else install one from packages (python3.12), or name a mirror in "
        "host_base_python_mirror",
    ),
    (
        "one instance cannot run from a virtual environment",
        {**FOCAL, "pythons": ["3.12"]},
        asks(runtime="venv"),
        f"warning: box: operating system = 'Ubuntu 20.04.6 LTS'\n{CONTAINED}\n"
        "box: vllm_instances[0].runtime = 'venv'\n"
        "vLLM's builds need glibc 2.34 or later, and this host has 2.31; its unit needs systemd 247 or later, and this "
        "host has 245\n"
        f"→ {WAY_OUT}",
    ),
    (
        "LiteLLM on Debian 11 needs no container",
        {
            **FOCAL,
            "distribution": "debian",
            "distribution_version": "11",
            "distribution_name": "Debian 11",
            "systemd": "247",
        },
        {"vllm_runtime": "docker", "litellm_runtime": "auto", "litellm_python": "3.8"},
        f"warning: box: operating system = 'Debian 11'\n{CONTAINED}",
    ),
    (
        "Ubuntu 18.04 that was prepared by hand",
        BIONIC_BOX,
        {},
        f"warning: box: operating system = 'Ubuntu 18.04.6 LTS'\n{CONTAINED}",
    ),
    (
        "Ubuntu 18.04 that was not",
        {
            **BIONIC_BOX,
            "system": {**BIONIC_FACTS, "packages": {"procps": "2:3.3.12-3ubuntu1.2", "python3-apt": "1.6.6"}},
        },
        {},
        f"warning: box: operating system = 'Ubuntu 18.04.6 LTS'\n{CONTAINED}\n"
        "box: packages = 'ca-certificates, python3.8-venv, python3-distutils, docker.io'\n"
        "Ansible cannot install packages here: its module for that needs Python 3.8, python3-apt is for 3.6.9\n"
        "→ sudo apt-get install --no-install-recommends ca-certificates python3.8-venv python3-distutils docker.io",
    ),
    (
        "CentOS 7",
        {
            "distribution": "centos",
            "distribution_version": "7",
            "distribution_name": "CentOS Linux 7 (Core)",
            "kernel": "3.10.0-1160.el7.x86_64",
            "glibc": "2.17",
            "systemd": "219",
            "pythons": ["3.11"],
            "system": {"python": "3.11.9", "system_python": "3.6.8", "apt": "", "packages": None},
        },
        {},
        "box: operating system = 'CentOS Linux 7 (Core)'\n"
        "this project installs packages with apt, and this system has none\n"
        f"→ {NEWER}\n"
        "box: systemd = '219'\n"
        "even units that run containers need systemd 237 or later\n"
        f"→ {NEWER}",
    ),
    (
        "a clock that is wrong",
        {"system": {**FACTS, "clock_behind": 400 * 86400}},
        {},
        "box: clock\n"
        "it is 400 day(s) behind this host's own files, so certificates would be refused\n"
        "→ set it: sudo timedatectl set-ntp true, or timedatectl set-time",
    ),
    (
        "a mirror of another distribution",
        {},
        {"host_base_apt_mirror": "https://me:secret@mirror.example/ubuntu/"},
        "box: host_base_apt_mirror = 'https://…@mirror.example/ubuntu/'\n"
        "this mirror holds ubuntu, and packages of this host (Debian GNU/Linux 12 (bookworm)) are in debian\n"
        "→ name a mirror that ends in /debian for it",
    ),
    (
        "a mirror whose path says nothing",
        {},
        {"host_base_apt_mirror": "https://nexus.example/repository/apt-bookworm"},
        "",
    ),
    (
        "proxies that only the host knows of",
        {"system": {**FACTS, "proxies": ["http_proxy", "https_proxy"]}},
        {},
        "warning: box: host_base_https_proxy\n"
        "this host has proxies in /etc/environment or /etc/profile.d, and our downloads go by variables alone\n"
        "→ set host_base_http_proxy and host_base_https_proxy as well, if it reaches nothing without",
    ),
    (
        "proxies that we were told of",
        {"system": {**FACTS, "proxies": ["https_proxy"]}},
        {"host_base_https_proxy": "http://proxy.example:3128"},
        "",
    ),
    (
        "Ubuntu 22.04 has no Python that fits",
        {"distribution": "ubuntu", "distribution_version": "22.04", "pythons": ["3.10"], "glibc": "2.35"},
        {},
        "warning: box: vllm_python = '>=3.11.1,<3.14'\n"
        "no Python of this host fits (3.10), so uv will download one from GitHub\n"
        "→ nothing, if the host may reach github.com; else install one from packages (python3.12), or name a mirror in "
        "host_base_python_mirror",
    ),
    (
        "a mirror of Pythons is enough",
        {"distribution": "ubuntu", "distribution_version": "22.04", "pythons": ["3.10"], "glibc": "2.35"},
        {"host_base_python_mirror": "https://mirror.example"},
        "",
    ),
    (
        "an unknown system with an old C library",
        {"distribution": "arch", "distribution_version": "", "distribution_name": "Arch", "glibc": "2.33"},
        {},
        "warning: box: operating system = 'Arch'\n"
        "this system was never tried with this project\n"
        "→ expect surprises; tried are Debian 12, and Ubuntu 22.04 and 24.04 by rendering",
    ),
    (
        "another C library",
        {"distribution": "alpine", "distribution_version": "3.20", "distribution_name": "Alpine", "glibc": ""},
        {"vllm_runtime": "venv", "litellm_runtime": "docker"},
        "warning: box: operating system = 'Alpine'\n"
        "this system was never tried with this project\n"
        "→ expect surprises; tried are Debian 12, and Ubuntu 22.04 and 24.04 by rendering\n"
        "box: vllm_runtime = 'venv'\n"
        "this system has another C library, and no build fits it\n"
        f"→ {WAY_OUT}",
    ),
    (
        "an ARM server",
        {"architecture": "aarch64", "cpu_flags": ["asimd"], "cpu_model": ""},
        {},
        "box: architecture = 'aarch64'\n"
        "the lock files of this release hold x86-64 builds of vLLM and LiteLLM only\n"
        "→ use an x86-64 host for engines and gateways; clients may be ARM machines",
    ),
    (
        "no root",
        {"is_root": False},
        {},
        "box: ansible_become\n"
        "the tasks do not run as root on this host\n"
        "→ let the connecting user sudo, and pass --ask-become-pass if it needs a password",
    ),
    (
        "WSL2 without systemd",
        {"wsl": True, "systemd_is_init": False, "kernel": "5.15.167.4-microsoft-standard-WSL2"},
        {},
        "box: systemd = 'not running'\n"
        "the services are systemd units, and systemd is not the first process here\n"
        "→ write [boot] and below it systemd=true to /etc/wsl.conf, then run `wsl --shutdown` in Windows",
    ),
    (
        "WSL 1",
        {"wsl": True, "systemd_is_init": False, "kernel": "4.4.0-19041-Microsoft"},
        {},
        "box: systemd = 'not running'\n"
        "this is WSL 1, which has no Linux kernel, no systemd and no GPUs\n"
        "→ run `wsl --set-version <distribution> 2` in Windows",
    ),
    (
        "a container without systemd",
        {"container": "docker", "systemd_is_init": False},
        {},
        "box: systemd = 'not running'\n"
        "this is a container (docker) without systemd, and the services are systemd units\n"
        "→ use a virtual machine, or a container that starts /sbin/init (LXC; docker run with an init image)",
    ),
    # --- processor and memory
    (
        "an E5 of the first generation",
        {"cpu_flags": ["avx"], "cpu_model": "Intel(R) Xeon(R) CPU E5-2680 0 @ 2.70GHz"},
        {},
        "box: CPU = 'Intel(R) Xeon(R) CPU E5-2680 0 @ 2.70GHz'\n"
        "vLLM on CPU needs AVX2, and this CPU has AVX but not AVX2: it is the v1 (Sandy Bridge) of its name, and AVX2 "
        "came with v3 (Haswell)\n"
        "→ put in v3 or v4 processors if the board takes them, or use another machine or one with an NVIDIA GPU; or "
        "take the host out of the group `engines`",
    ),
    (
        "an E5 of the second generation",
        {"cpu_flags": ["avx", "f16c"], "cpu_model": "Intel(R) Xeon(R) CPU E5-2680 v2 @ 2.80GHz"},
        {},
        "box: CPU = 'Intel(R) Xeon(R) CPU E5-2680 v2 @ 2.80GHz'\n"
        "vLLM on CPU needs AVX2, and this CPU has AVX but not AVX2: it is the v2 (Ivy Bridge) of its name, and AVX2 "
        "came with v3 (Haswell)\n"
        "→ put in v3 or v4 processors if the board takes them, or use another machine or one with an NVIDIA GPU; or "
        "take the host out of the group `engines`",
    ),
    (
        "a virtual machine that hides AVX2",
        {"cpu_flags": ["sse2", "hypervisor"], "cpu_model": "QEMU Virtual CPU version 2.5+", "virtualization": "kvm"},
        {},
        "box: CPU = 'QEMU Virtual CPU version 2.5+'\n"
        "vLLM on CPU needs AVX2, and this CPU has neither AVX nor AVX2, or the virtual machine hides it\n"
        "→ give the virtual machine the host's own CPU (QEMU, Proxmox: type `host`), or use another machine; or take "
        "the host out of the group `engines`",
    ),
    (
        "a GPU host needs no AVX2",
        with_gpus(gpu(), cpu_flags=["avx"]),
        {},
        "",
    ),
    (
        "memory that others hold",
        {"memory": {"total": 363 * GIB, "available": 238 * GIB, "swap": 0, "engines": 0}},
        {},
        "warning: box: memory = '238.0 GiB free'\n"
        "other programs hold 125.0 GiB of 363.0 GiB\n"
        "→ make sure that they and the engines fit together, or set what they need as vllm_memory_reserved_gib",
    ),
    (
        "memory that others are known to hold",
        {"memory": {"total": 363 * GIB, "available": 238 * GIB, "swap": 0, "engines": 0}},
        {"vllm_memory_reserved_gib": 130},
        "",
    ),
    (
        "memory that our own engines hold",
        {"memory": {"total": 363 * GIB, "available": 238 * GIB, "swap": 0, "engines": 120 * GIB}},
        {},
        "",
    ),
    # --- the driver
    (
        "CUDA without a device",
        {},
        {"vllm_variant": "cuda"},
        "box: vllm_variant = 'cuda'\n"
        "no NVIDIA driver is loaded, and there is no NVIDIA device on the PCI bus\n"
        "→ see that the card sits well and is switched on in the firmware, or that the virtual machine is given it; or "
        "set vllm_variant: cpu",
    ),
    (
        "GPUs without a driver",
        {"nvidia_devices": 4},
        {"accelerator_provider": "none"},
        "box: vllm_variant = 'auto'\n"
        "4 NVIDIA device(s) are there, but no driver is loaded, so the engines would run on the CPU\n"
        "→ leave accelerator_provider and accelerator_state out, so that this run installs it, or set vllm_variant: "
        "cpu "
        "if that is meant",
    ),
    (
        "GPUs that are not wanted",
        {"nvidia_devices": 1},
        {"vllm_variant": "cpu"},
        "",
    ),
    (
        "a container without its GPUs' driver",
        {"nvidia_devices": 1, "container": "lxc"},
        {"vllm_variant": "cuda"},
        "box: vllm_variant = 'cuda'\n"
        "1 NVIDIA device(s) are there, but no driver is loaded\n"
        "→ pass the GPUs and the driver of its host through to this container, or set vllm_variant: cpu",
    ),
    (
        "a driver that is too old",
        with_gpus(gpu(), nvidia_driver="550.54.15"),
        {},
        "box: NVIDIA driver = '550.54.15'\n"
        "vLLM's build is made with CUDA 13, which needs driver 580 or later; a driver that works is not replaced "
        "unasked\n"
        "→ set accelerator_nvidia_replace_driver: true (and accelerator_allow_reboot: true), or replace it "
        "yourself, or "
        "set vllm_variant: cpu",
    ),
    (
        "the driver of WSL is Windows'",
        with_gpus(gpu(), nvidia_driver="537.58", wsl=True),
        {},
        "box: NVIDIA driver = '537.58'\n"
        "vLLM's build is made with CUDA 13, which needs driver 580 or later\n"
        "→ install NVIDIA's driver 580 or later in Windows, and none inside WSL, or set vllm_variant: cpu",
    ),
    (
        "a driver that does not answer",
        with_gpus(nvidia_smi_complaint="Failed to initialize NVML: Driver/library version mismatch"),
        {},
        "box: NVIDIA driver = '580.95.05'\n"
        "the driver does not answer: Failed to initialize NVML: Driver/library version mismatch\n"
        "→ restart the host; if that does not help, install the driver again",
    ),
    (
        "a driver without its tools",
        with_gpus(),
        {},
        "box: GPUs\n"
        "nvidia-smi is not there or shows no GPU\n"
        "→ install the driver's tools (Ubuntu: nvidia-utils), or set vllm_variant: cpu",
    ),
    # --- GPUs
    (
        "too few GPUs",
        with_gpus(gpu(0), gpu(1)),
        asks(tensor_parallel_size=4),
        "box: vllm_instances[0].tensor_parallel_size = 4\n"
        "this needs 4 GPUs, and this host has 2 (NVIDIA A100-SXM4-80GB)\n"
        "→ set it to 2 or less, or leave it out",
    ),
    (
        "a GPU that does not exist",
        with_gpus(gpu(0), gpu(1)),
        asks(devices=[1, 2]),
        "box: vllm_instances[0].devices = [1, 2]\nthis host has 2 GPU(s), with the indices 0, 1\n→ take out 2",
    ),
    (
        "a GPU that is too old for any model",
        with_gpus(gpu(name="Tesla V100-SXM2-32GB", compute_capability="7.0")),
        {},
        "box: vllm_instances[0].model = 'loopback'\n"
        "vLLM's build needs compute capability 7.5, and Tesla V100-SXM2-32GB has 7.0\n"
        "→ use a GPU of the Turing generation or later, or set vllm_variant: cpu",
    ),
    (
        "a GPU that is too old for this model",
        with_gpus(gpu()),
        asks(entry(minimum_compute_capability=8.9)),
        "box: vllm_instances[0].model = 'mine'\n"
        "this model needs compute capability 8.9, and NVIDIA A100-SXM4-80GB has 8.0\n"
        "→ choose another checkpoint of it (AWQ, GPTQ or BF16), or name newer GPUs in `devices`",
    ),
    (
        "FP8 on an A100",
        with_gpus(gpu()),
        asks(entry(quantization="fp8")),
        "warning: box: vllm_instances[0].model = 'mine'\n"
        "NVIDIA A100-SXM4-80GB (compute capability 8.0) does not compute in this checkpoint's format, which needs 8.9: "
        "vLLM keeps the weights in it and computes in BF16, which saves memory and brings no speed\n"
        "→ expect that, or choose an AWQ or GPTQ checkpoint, which is made for such GPUs",
    ),
    (
        "FP8 on an H20",
        with_gpus(gpu(name="NVIDIA H20", compute_capability="9.0")),
        asks(entry(quantization="fp8")),
        "",
    ),
    (
        "a GPU whose kernels a virtual environment would have to fetch",
        with_gpus(gpu(name="NVIDIA B200", compute_capability="10.0")),
        {},
        "box: vllm_runtime = 'venv'\n"
        "NVIDIA B200 has compute capability 10.0, for which FlashInfer fetches kernels from NVIDIA while the engine "
        "runs, and engines here reach no network\n"
        "→ set it to docker, where an image brings its kernels",
    ),
    (
        "a GPU of that generation for workstations",
        with_gpus(gpu(name="NVIDIA RTX PRO 6000 Blackwell", compute_capability="12.0")),
        {},
        "",
    ),
    (
        "a checkpoint for CPUs on a GPU host",
        with_gpus(gpu()),
        asks(entry(runs_on=["cpu"])),
        "box: vllm_instances[0].model = 'mine'\n"
        "this checkpoint runs on cpu only, and this host has an NVIDIA driver\n"
        "→ choose another model for this host",
    ),
    (
        "a checkpoint for GPUs on a CPU host",
        {},
        asks(entry(runs_on=["cuda"])),
        "box: vllm_instances[0].model = 'mine'\n"
        "this checkpoint runs on cuda only, and this host has no NVIDIA driver\n"
        "→ choose another model for this host",
    ),
    (
        "a GPU that others use",
        with_gpus(
            gpu(memory_free=50 * GIB),
            gpu_processes=[
                {"pid": 4711, "gpu_uuid": "GPU-0", "memory": 29 * GIB, "process": "python3", "unit": ""},
                {"pid": 1, "gpu_uuid": "GPU-1", "memory": 9 * GIB, "process": "elsewhere", "unit": ""},
            ],
        ),
        {},
        "box: vllm_instances[0].flags.gpu_memory_utilization = 0.92\n"
        "the engine takes 0.92 of GPU 0 (73.6 GiB), and only 50.0 of 80.0 GiB are free: python3 (process 4711, "
        "29.0 GiB)\n"
        "→ stop what holds it, or name other GPUs in `devices`, or set gpu_memory_utilization: 0.61 if the model "
        "still fits",
    ),
    (
        "a GPU that our own engine uses",
        with_gpus(gpu(memory_free=5 * GIB, memory_engines=74 * GIB)),
        {},
        "",
    ),
    (
        "two engines share a GPU",
        with_gpus(gpu(memory_free=70 * GIB)),
        {
            "vllm_instances": [
                {"name": "a", "model": "loopback", "devices": [0]},
                {"name": "b", "model": "loopback", "devices": [0], "port": 8001},
            ]
        },
        "",
    ),
    (
        "memory errors",
        with_gpus(gpu(ecc_errors=3)),
        {},
        "warning: box: GPU 0 = 'NVIDIA A100-SXM4-80GB'\n"
        "its memory had 3 uncorrectable error(s) since the driver was loaded\n"
        "→ look at `nvidia-smi -q -d ECC,ROW_REMAPPER -i 0` and the kernel's log (Xid); restart the host, and have the "
        "card replaced if it comes again",
    ),
    (
        "a card that does not sit well",
        with_gpus(gpu(pcie_width=4)),
        {},
        "warning: box: GPU 0 = 'NVIDIA A100-SXM4-80GB'\n"
        "it has 4 of 16 PCI Express lanes: loading, and a model split over GPUs, are slower\n"
        "→ see whether the card sits well and in a slot with all lanes; some cards use only eight by design",
    ),
    (
        "a GPU in parts",
        with_gpus(gpu(mig=True)),
        {},
        "box: GPU 0 = 'NVIDIA A100-SXM4-80GB'\n"
        "this GPU is divided by MIG, and an engine would see one part of it\n"
        "→ sudo nvidia-smi -i 0 -mig 0, or name another GPU in `devices`",
    ),
    (
        "faults of a GPU that nobody uses",
        with_gpus(gpu(0), gpu(1, ecc_errors=3, mig=True, pcie_width=1, memory_free=0)),
        asks(devices=[0]),
        "",
    ),
    (
        "NVSwitch without its manager",
        with_gpus(*(gpu(index) for index in range(8)), nvswitch=True, fabricmanager="inactive"),
        {"accelerator_provider": "none"},
        "box: nvidia-fabricmanager = 'not running'\n"
        "the GPUs are joined by NVSwitch, and nvidia-fabricmanager is not running: CUDA ends with error 802\n"
        "→ install nvidia-fabricmanager of exactly the driver's version (580.95.05), then sudo systemctl enable --now "
        "nvidia-fabricmanager",
    ),
    (
        "NVSwitch with its manager",
        with_gpus(*(gpu(index) for index in range(8)), nvswitch=True, fabricmanager="active"),
        {},
        "",
    ),
    (
        "NVSwitch in a container",
        with_gpus(gpu(), nvswitch=True, container="lxc"),
        {},
        "warning: box: nvidia-fabricmanager = 'not installed'\n"
        "the GPUs are joined by NVSwitch, and nvidia-fabricmanager is not installed: CUDA ends with error 802\n"
        "→ make sure that it runs on the host of this container",
    ),
    # --- ports, firewalls, disks, weights
    (
        "a port that is taken",
        {"listeners": {"4000": [{"address": "0.0.0.0", "process": "nginx", "unit": "nginx.service", "user": "root"}]}},
        {},
        "box: litellm_port = 4000\n"
        "port 4000 is taken on this host: nginx.service listens on 0.0.0.0\n"
        "→ stop it, or set litellm_port to a free port",
    ),
    (
        "a port that our own engine has",
        {
            "listeners": {
                "8000": [{"address": "127.0.0.1", "process": "vllm", "unit": "vllm@coder.service", "user": "x"}]
            }
        },
        {},
        "",
    ),
    (
        "ufw before a gateway",
        {"firewall": {"ufw": "active", "firewalld": "inactive", "open_ports": [[22, 22]]}},
        {"litellm_bind_address": "10.0.0.11"},
        "warning: box: litellm_port = 4000\n"
        "ufw may not let clients reach this port\n"
        "→ unless a rule of yours does already: sudo ufw allow from <their network> to any port 4000 proto tcp",
    ),
    (
        "firewalld before a gateway",
        {"firewall": {"ufw": "absent", "firewalld": "active", "open_ports": []}},
        {"litellm_bind_address": "0.0.0.0"},
        "warning: box: litellm_port = 4000\n"
        "firewalld may not let clients reach this port\n"
        "→ unless a rule of yours does already: sudo firewall-cmd --permanent --add-rich-rule='rule family=ipv4 source "
        "address=<their network> port port=4000 protocol=tcp accept' && sudo firewall-cmd --reload",
    ),
    (
        "a firewall that is open",
        {"firewall": {"ufw": "active", "firewalld": "absent", "open_ports": [[3990, 4010]]}},
        {"litellm_bind_address": "10.0.0.11"},
        "",
    ),
    ("a firewall before loopback", {"firewall": {"ufw": "active", "firewalld": "absent", "open_ports": []}}, {}, ""),
    (
        "too little disk",
        {"disk": disks(free=5 * GIB)},
        {},
        "box: disk space on / = '5.0 GiB free'\n"
        "8.0 GiB are needed there: 8.0 GiB for releases and caches\n"
        "→ free space, or lower host_preflight_min_disk_gib if you know better",
    ),
    (
        "weights that do not fit their disk",
        {
            "disk": {
                **WELL["disk"],
                "/var/lib/modelhost/models": {**SPACE, "mount": "/var/lib/modelhost", "free": 20 * GIB},
            },
            "pythons": ["3.12"],
        },
        asks(entry(source={"repo": "a/b", "revision": "0" * 40}, weights_gib=30.0)),
        "box: disk space on /var/lib/modelhost = '20.0 GiB free'\n"
        "30.0 GiB are needed there: 30.0 GiB for weights of mine\n"
        "→ free space, choose a smaller model, or set model_store_dir to a folder on a larger disk",
    ),
    (
        "weights that are there already",
        {
            "disk": {
                **WELL["disk"],
                "/var/lib/modelhost/models": {**SPACE, "mount": "/var/lib/modelhost", "free": 20 * GIB},
            },
            "paths": {
                f"/var/lib/modelhost/models/a/b/{'0' * 40}": {
                    "exists": True,
                    "config": {},
                    "safetensors_bytes": 30 * GIB,
                    "readable": True,
                }
            },
        },
        asks(entry(source={"repo": "a/b", "revision": "0" * 40}, weights_gib=30.0)),
        "",
    ),
    (
        "releases that are there already",
        {"disk": disks(free=5 * GIB), "deployed": True},
        {},
        "",
    ),
    (
        "a disk that nobody may write",
        {"disk": disks(read_only=True)},
        {},
        "box: disk space on /\nthis file system is mounted read-only\n→ mount it read-write",
    ),
    (
        "a disk from which nothing may run",
        {"disk": disks(noexec=True)},
        {},
        "box: disk space on /\nthis file system is mounted noexec, and programs are installed there\n"
        "→ mount it without noexec",
    ),
    (
        "a disk with room for bytes but not for files",
        {"disk": disks(files_free=20_000)},
        {},
        "box: disk space on / = '20000 files free'\n"
        "releases consist of 120000 files, and this file system has room for no more than 20000 (inodes)\n"
        "→ remove files there, or use a file system that was made with more inodes (df -i shows them)",
    ),
    ("a file system that does not count its files", {"disk": disks(files_free=None)}, {}, ""),
    *(
        (
            name,
            {"paths": {"/data/mine": {"exists": True, "config": {}, "safetensors_bytes": 9, "readable": True, **seen}}},
            asks(entry()),
            f"box: vllm_instances[0].model.source.path = '/data/mine'\n{why}\n→ {fix}" if why else "",
        )
        for name, seen, why, fix in (
            ("a model of one's own", {}, "", ""),
            (
                "a folder that is not there",
                {"exists": False, "config": None},
                "this host has no such folder",
                "put config.json, the tokenizer and the safetensors files there, or name another folder",
            ),
            (
                "a folder without a configuration",
                {"config": None},
                "this folder holds no config.json that can be read",
                "put config.json, the tokenizer and the safetensors files there, or name another folder",
            ),
            (
                "a folder without weights",
                {"safetensors_bytes": 0},
                "this folder holds no *.safetensors files",
                "put config.json, the tokenizer and the safetensors files there, or name another folder",
            ),
            (
                "a folder that the engine may not read",
                {"readable": False},
                "the engine runs under its own account (vllm), which may not read this folder",
                "sudo chmod -R a+rX /data/mine, and a+x for the folders above it",
            ),
        )
    ),
]


@pytest.mark.parametrize(("probe", "site", "said"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_hosts(probe: dict[str, Any], site: dict[str, Any], said: str) -> None:
    assert judge(probe, site) == said


def test_too_little_memory_is_said_once() -> None:
    said = judge({"memory": {"total": 2 * GIB, "available": GIB // 2, "swap": 0, "engines": 0}})
    assert said.startswith("box: vllm_instances[0].model = 'loopback'")
    assert said.count("→") == 1


def test_the_facts_are_those_of_the_probe() -> None:
    # Later facts; saved ones of earlier releases lack them.
    assert set(host_probe.probe([])) - {"docker", "nvidia", "system"} == set(WELL) - {"docker", "nvidia", "system"}


def test_a_client_needs_less() -> None:
    old = {"distribution": "ubuntu", "distribution_version": "20.04", "glibc": "2.31", "systemd": "245"}
    arm = {"architecture": "aarch64", "systemd_is_init": False}
    groups = {"engines": ["other"], "gateways": ["other"], "clients": ["box"]}
    users = {"claude_code_users": [{"name": "dev", "litellm_user": "alice"}]}
    said = judge({**old, **arm}, users, groups)
    assert said.startswith("warning: box: operating system")
    assert said.count("→") == 1
    assert "little was tried on it" in said
    assert judge({"glibc": "2.27"}, users, groups) == (
        f"box: glibc = '2.27'\nNode.js, which installs Claude Code, needs glibc 2.28 or later\n→ {NEWER}"
    )


def test_our_own_units_may_hold_their_ports() -> None:
    # Where root may not look into processes, the account and the unit that runs tell.
    hidden = {"8000": [{"address": "127.0.0.1", "process": "", "unit": "", "user": "vllm"}]}
    assert judge({"listeners": hidden, "active_units": ["vllm@coder.service"]}) == ""
    assert "vllm_instances[0].port = 8000" in judge({"listeners": hidden})


def test_an_account_that_is_not_there() -> None:
    groups = {"engines": [], "gateways": [], "clients": ["box"]}
    assert judge({}, {"claude_code_users": [{"name": "eve", "litellm_user": "alice"}]}, groups) == (
        "box: claude_code_users[0].name = 'eve'\n"
        "this host has no account of this name\n"
        "→ create the account, or name another"
    )


def test_a_firewall_between_engine_and_gateway() -> None:
    probe = {"firewall": {"ufw": "active", "firewalld": "absent", "open_ports": []}}
    groups = {"engines": ["box"], "gateways": ["front"]}
    assert judge(probe, {"vllm_bind_address": "10.0.0.12"}, groups, addresses={"front": "10.0.0.11"}) == (
        "warning: box: vllm_instances[0].port = 8000\n"
        "ufw may not let front reach this port\n"
        "→ unless a rule of yours does already: sudo ufw allow from 10.0.0.11 to any port 8000 proto tcp"
    )


def test_a_mirror_has_a_port_a_firewall_and_a_disk() -> None:
    groups = {"engines": ["gpu1"], "mirrors": ["box"]}
    site = {"vllm_instances": [], "hf_mirror_bind_address": "10.0.0.5"}
    taken = {"listeners": {"8090": [{"address": "0.0.0.0", "process": "nexus", "unit": "", "user": "nexus"}]}}
    assert "hf_mirror_port = 8090\nport 8090 is taken on this host: nexus" in judge(taken, site, groups)
    closed = {"firewall": {"ufw": "active", "firewalld": "absent", "open_ports": []}}
    assert judge(closed, site, groups, addresses={"gpu1": "10.0.0.12"}) == (
        "warning: box: hf_mirror_port = 8090\n"
        "ufw may not let gpu1 reach this port\n"
        "→ unless a rule of yours does already: sudo ufw allow from 10.0.0.12 to any port 8090 proto tcp"
    )
    own = {"id": "own", "source": {"repo": "Org/Own", "revision": "a" * 40}, "weights_gib": 4000}
    assert "4000.0 GiB for weights of own" in judge({}, site, groups, weights=[own])
    path = "/var/lib/modelhost/models/Org/Own/" + "a" * 40
    cached = {"paths": {path: {"safetensors_bytes": 0, "elsewhere_bytes": 4000 * 2**30}}}
    assert judge(cached, site, groups, weights=[own]) == ""


def test_the_cuda_of_the_lock_has_a_driver() -> None:
    assert preflight_gpu.cuda_major() in preflight_gpu.DRIVERS


def test_every_catalogue_entry_can_be_judged() -> None:
    for name in catalog.entries():
        for probe in ({}, with_gpus(*(gpu(index) for index in range(8)))):
            judge(probe, asks(name))


# --- hosts that Ansible's modules do not run on ------------------------------------------------------------------

BIONIC = 'NAME="Ubuntu"\nID=ubuntu\nVERSION_ID="18.04"\nPRETTY_NAME="Ubuntu 18.04.6 LTS"\nPython 3.6.9\n'
JAMMY = 'ID=ubuntu\nVERSION_ID="22.04"\nPRETTY_NAME="Ubuntu 22.04.4 LTS"\n'
TOO_OLD = "ansible-core requires a minimum of Python version 3.8. Current version: 3.6.9 (default, Mar 10 2023)"


@pytest.mark.parametrize(
    ("told", "error", "said"),
    [
        (
            BIONIC,
            TOO_OLD,
            "box: ansible_python_interpreter = 'Ubuntu 18.04.6 LTS'\n"
            "Ansible needs Python 3.8 or later on hosts, and this one has 3.6.9\n"
            "→ sudo apt-get install --no-install-recommends python3.8 python3.8-venv python3-distutils ca-certificates "
            "procps docker.io; then set ansible_python_interpreter: /usr/bin/python3.8 for this host. Engines run in "
            "containers there: see docs/old-systems.md",
        ),
        (
            'ID="centos"\nVERSION_ID="7"\nPRETTY_NAME="CentOS Linux 7 (Core)"\nPython 3.6.8\n',
            TOO_OLD,
            "box: ansible_python_interpreter = 'CentOS Linux 7 (Core)'\n"
            "Ansible needs Python 3.8 or later on hosts, and this one has 3.6.9\n"
            f"→ {NEWER}; this project installs packages with apt",
        ),
        (
            JAMMY + "Python 3.10.12\n",
            TOO_OLD,
            "box: ansible_python_interpreter = 'Ubuntu 22.04.4 LTS'\n"
            "Ansible needs Python 3.8 or later on hosts, and this one has 3.6.9\n"
            "→ install a newer Python beside it and name it in ansible_python_interpreter",
        ),
        (
            JAMMY + "sh: 1: python3: not found\n",
            "The module interpreter '/usr/bin/python3' was not found.",
            "box: ansible_python_interpreter = 'Ubuntu 22.04.4 LTS'\n"
            "Ansible needs Python 3.8 or later on hosts, and this one has none\n"
            "→ sudo apt-get install python3, or name one in ansible_python_interpreter",
        ),
        (
            JAMMY + "Python 3.10.12\n",
            "Missing sudo password",
            "box: ansible_become\n"
            "this host could not be looked at: Missing sudo password\n"
            "→ let the connecting user sudo, and pass --ask-become-pass if it needs a password",
        ),
        (
            "",
            "",
            "box: connection\n"
            "this host could not be looked at: see its error above\n"
            "→ try `ansible -m ping` with the same inventory",
        ),
    ],
)
def test_bare_hosts(told: str, error: str, said: str) -> None:
    assert problems.report(preflight.bare_problems("box", told, error)).replace("    ", "") == said


def test_all_hosts_are_in_one_report_and_nothing_is_changed(tmp_path: Path) -> None:
    """Through ansible-playbook: a host with an old Python, one that nobody answers for, and this machine."""
    old = tmp_path / "python3.6"
    message = '{"failed": true, "msg": "%s"}' % TOO_OLD
    old.write_text(f"#!/bin/sh\necho '{message}'\nexit 1\n")
    old.chmod(0o755)
    local = {"ansible_connection": "local"}
    hosts = {
        "old": {**local, "ansible_python_interpreter": str(old)},
        "gone": {"ansible_host": "127.0.0.1", "ansible_port": 1},
        "here": {**local, "ansible_python_interpreter": "/usr/bin/python3", "host_preflight_min_disk_gib": 10**6},
    }
    inventory = {
        "all": {"vars": SITE, "hosts": hosts, "children": {"engines": {"hosts": {host: {} for host in hosts}}}}
    }
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.safe_dump(inventory))
    done = subprocess.run(
        ["ansible-playbook", "-i", str(path), "site.yml"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_COLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "COLUMNS": "4000"},
    )  # fmt: skip
    out = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in out
    for line in (
        "problem(s). Nothing was changed.",
        "Ansible needs Python 3.8 or later on hosts, and this one has 3.6.9",
        "gone: connection = '127.0.0.1'",
        "here: disk space on ",
        "1000000.0 GiB for releases and caches",
    ):
        assert line in out, out
    # After the judgement no task ran, on whatever host.
    assert "TASK [" not in out.split("TASK [Report every problem of every host]")[1]
    assert "changed=0" in out
    assert "changed=1" not in out
