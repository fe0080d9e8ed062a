"""NVIDIA's driver: what a host tells of it, what is done about it, and what preflight says. No GPU is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import (
    nvidia_plan,
    preflight_gpu,
    probe_nvidia,
    problems,
)

ROOT = Path(__file__).resolve().parents[2]
GIB = 1024**3
PIN = nvidia_plan.pins()["driver"]["version"]

# --- facts -------------------------------------------------------------------------------------------------------

FILES = {
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
    "GCC version:  gcc version 13.3.0\n",
    "/sys/module/nova_core/initstate": "live\n",
    "/proc/driver/nvidia/gpus/0000:01:00.0/information": "",
    "/sys/class/infiniband/mlx5_0/device/vpd": "PN ConnectX-7",
    "/sys/class/infiniband/mlx5_1/device/vpd": "SMDL=SW_MNG",
    "/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
    "/sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n",
    "/sys/bus/pci/devices/0000:01:00.0/device": "0x2330\n",
    "/sys/bus/pci/devices/0000:02:00.0/vendor": "0x15b3\n",
    "/sys/bus/pci/devices/0000:02:00.0/class": "0x020700\n",
    probe_nvidia.SECURE_BOOT: "\x06\x00\x00\x00\x01",
    "/etc/apt/sources.list": "deb http://deb.debian.org/debian bookworm main\n"
    "# deb https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/ /\n",
    "/etc/apt/sources.list.d/cuda.list": "deb "
    "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/ /",
    "/etc/apt/sources.list.d/modelhost-nvidia-container-toolkit.sources": "URIs: "
    "https://nvidia.github.io/libnvidia-container/",
    "/lib/modules/6.1.0-18-amd64/build": "",
    "/var/lib/dkms/mok.pub": "",
    "/etc/cdi/nvidia.yaml": "cdiVersion: 0.6.0\n",
}
OUTPUTS = {
    "uname -r": "6.1.0-18-amd64\n",
    "modinfo -F version nvidia": "580.173.02\n",
    "mokutil --test-key /var/lib/dkms/mok.pub": "/var/lib/dkms/mok.pub is already enrolled\n",
    "dpkg-query -W -f ${Package}\t${db:Status-Abbrev}\n linux-*": "linux-image-6.1.0-18-amd64\tii \n"
    "linux-image-amd64\tii \nlinux-headers-amd64\thi \nlinux-libc-dev\tii \nlinux-base\tii \n"
    "linux-modules-nvidia-580-server-open-amd64\tii \nlinux-image-cloud-amd64\tun \n",
    "dpkg-query -W -f ${db:Status-Status} nvlsm": "installed",
    "dpkg-query": "nvidia-driver-cuda\t580.173.02-1\tii \n"
    "libcuda1\t580.173.02-1\thi \n"
    "nvidia-fabricmanager\t1:580.95.05-1\tii \n"
    "nvidia-container-toolkit\t1.20.0-1\tii \n"
    "nvidia-old\t535.1-1\trc \n"
    "dpkg-query: no packages found matching libcudadebugger1\n",
    "readlink -e /boot/vmlinuz": "/boot/vmlinuz-6.1.0-20-amd64\n",
    "modinfo -k 6.1.0-20-amd64": "580.173.02\n",
    "apt-mark showhold": "libcuda1\nlinux-image-amd64\n",
    "systemctl is-active nvidia-persistenced.service": "active\n",
    "journalctl": "NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus.\n"
    "NVRM: Xid (PCI:0000:01:00): 79, pid=2, GPU has fallen off the bus.\n"
    "NVRM: Xid (PCI:0000:02:00): 31, pid=3, MMU Fault\n",
}


def run(command: list[str]) -> tuple[int, str]:
    text = " ".join(command)
    return next(((0, out) for start, out in OUTPUTS.items() if text.startswith(start)), (-1, "no such program"))


def paths_like(pattern: str) -> list[str]:
    shape = re.compile(re.escape(pattern).replace(r"\*", "[^/]*") + r"(?=/|$)")
    return sorted({found.group() for found in map(shape.match, FILES) if found})


def read(path: str) -> str:
    return FILES.get(path, "")


def test_facts() -> None:
    assert probe_nvidia.facts(run, read, paths_like) == {
        "devices": [{"pci": "0000:01:00.0", "id": "0x2330"}],
        "secure_boot": True,
        "mok": True,
        "other_driver": "nova_core",
        "module_loaded": "580.95.05",
        "open": True,
        "module_on_disk": "580.173.02",
        "next_kernel": {"name": "6.1.0-20-amd64", "module": "580.173.02"},
        "runfile": False,
        "packages": {
            "nvidia-driver-cuda": "580.173.02-1",
            "libcuda1": "580.173.02-1",
            "nvidia-fabricmanager": "1:580.95.05-1",
            "nvidia-container-toolkit": "1.20.0-1",
        },
        "held": ["libcuda1"],
        "fabricmanager": "580.95.05",
        "toolkit": "1.20.0",
        "cdi": ["/etc/cdi/nvidia.yaml"],
        "kernels": ["linux-headers-amd64", "linux-image-amd64", "linux-modules-nvidia-580-server-open-amd64"],
        "kernel_holds": ["linux-image-amd64"],
        "headers": True,
        "persistenced": True,
        "sources": {"driver": ["/etc/apt/sources.list.d/cuda.list"], "toolkit": []},
        "taken": ["0000:01:00.0"],
        "bridges": ["mlx5_1"],
        "nvlsm": True,
        "ib_umad": False,
        "uvm": False,
        "xids": [{"pci": "0000:01:00", "xid": 79}, {"pci": "0000:02:00", "xid": 31}],
    }


def test_facts_of_a_host_that_has_nothing() -> None:
    found = probe_nvidia.facts(lambda _command: (-1, "no such program"), lambda _path: "", lambda _pattern: [])
    assert not any(value for name, value in found.items() if name != "sources")
    assert found["secure_boot"] is None
    assert found["open"] is None


# --- the plan ----------------------------------------------------------------------------------------------------

HOST: dict[str, Any] = {
    "distribution": "debian",
    "distribution_version": "12",
    "kernel": "6.1.0-18-amd64",
    "wsl": False,
    "container": "",
    "gpus": [],
    "nvidia_driver": "",
    "nvidia_devices": 8,
    "nvswitch": False,
    "active_units": [],
}
FACTS: dict[str, Any] = {"devices": [{"pci": "0000:01:00.0", "id": "0x2330"}], "packages": {}, "held": []}
UBUNTU = {"distribution": "ubuntu", "distribution_version": "24.04", "kernel": "6.8.0-111-generic"}


def decide(probe: dict[str, Any], facts: dict[str, Any], **site: Any) -> dict[str, Any]:
    wishes = nvidia_plan.options({f"accelerator_{name}": value for name, value in site.items()})
    return nvidia_plan.plan({**HOST, **probe, "nvidia": {**FACTS, **facts}}, wishes)


DEBIAN_NAMES = ["nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-modprobe", "nvidia-persistenced"]
UBUNTU_NAMES = ["nvidia-headless-no-dkms-580-server-open", "nvidia-utils-580-server"]
NVIDIA_NAMES = ["libnvidia-compute-580", "nvidia-utils-580", "nvidia-compute-utils-580", "nvidia-dkms-580-open"]


@pytest.mark.parametrize(
    ("probe", "facts", "site", "action", "source", "version", "packages", "fabric"),
    [
        # Nothing there: from NVIDIA on Debian, from the archive on Ubuntu, in the version that it has.
        ({}, {}, {}, "install", "nvidia", PIN, DEBIAN_NAMES, []),
        (UBUNTU, {}, {}, "install", "distribution", "", UBUNTU_NAMES, []),
        (UBUNTU, {}, {"nvidia_driver_source": "nvidia"}, "install", "nvidia", PIN, NVIDIA_NAMES, []),
        # 590 and later carry no branch in their names; a version brings its branch along.
        (
            UBUNTU,
            {},
            {"nvidia_driver_source": "nvidia", "nvidia_driver_version": "595.45.04"},
            "install",
            "nvidia",
            "595.45.04",
            ["libnvidia-compute", "nvidia-utils", "nvidia-compute-utils", "nvidia-dkms-open"],
            [],
        ),
        # NVSwitch: the fabric manager by the name that this source gives it.
        ({"nvswitch": True}, {}, {}, "install", "nvidia", PIN, DEBIAN_NAMES, ["nvidia-fabricmanager"]),
        (
            {**UBUNTU, "nvswitch": True},
            {},
            {},
            "install",
            "distribution",
            "",
            UBUNTU_NAMES,
            ["nvidia-fabricmanager-580"],
        ),
        # What was installed and waits for a restart is not updated meanwhile.
        (
            UBUNTU,
            {"packages": {"nvidia-utils-580-server": "580.95.05-0ubuntu0.24.04.1"}, "module_on_disk": "580.95.05"},
            {},
            "install",
            "distribution",
            "580.95.05",
            UBUNTU_NAMES,
            [],
        ),
        # Volta knows the proprietary modules only.
        (
            {},
            {"devices": [{"id": "0x1db5"}]},
            {},
            "install",
            "nvidia",
            PIN,
            ["nvidia-driver-cuda", "nvidia-kernel-dkms", "nvidia-modprobe", "nvidia-persistenced"],
            [],
        ),
        # A driver that works stays: another one, an older one, one from a .run file.
        ({"nvidia_driver": "595.45.04"}, {}, {}, "keep", "nvidia", "595.45.04", [], []),
        ({"nvidia_driver": "550.54.15"}, {}, {}, "keep", "nvidia", "550.54.15", [], []),
        ({"nvidia_driver": "580.95.05"}, {"runfile": True}, {}, "keep", "nvidia", "580.95.05", [], []),
        # … and gets the fabric manager of its own version from where it came from itself.
        (
            {**UBUNTU, "nvidia_driver": "580.95.05", "nvswitch": True},
            {"packages": {"nvidia-utils-580-server": "580.95.05-0ubuntu0.24.04.1"}},
            {},
            "keep",
            "distribution",
            "580.95.05",
            [],
            ["nvidia-fabricmanager-580"],
        ),
        # Unless somebody asks for it.
        (
            {"nvidia_driver": "550.54.15"},
            {},
            {"nvidia_replace_driver": True},
            "replace",
            "nvidia",
            PIN,
            DEBIAN_NAMES,
            [],
        ),
        ({"nvidia_driver": PIN}, {}, {"nvidia_replace_driver": True}, "keep", "nvidia", PIN, [], []),
        # Not ours to do.
        ({"wsl": True, "nvidia_driver": "581.1"}, {}, {}, "none", "nvidia", "581.1", [], []),
        ({"container": "lxc"}, {}, {}, "none", "nvidia", "", [], []),
        ({"nvidia_devices": 0}, {}, {}, "none", "nvidia", "", [], []),
        ({}, {}, {"nvidia_driver_source": "keep"}, "keep", "nvidia", "", [], []),
    ],
)
def test_plan(
    probe: dict[str, Any],
    facts: dict[str, Any],
    site: dict[str, Any],
    action: str,
    source: str,
    version: str,
    packages: list[str],
    fabric: list[str],
) -> None:
    found = decide(probe, facts, **site)
    assert found["why"]
    assert found["problems"] == []
    assert (found["action"], found["source"], found["version"]) == (action, source, version)
    assert (found["packages"], found["fabric"]) == (packages, fabric)


def test_modules_of_ubuntu() -> None:
    wanted = decide(UBUNTU, {})["modules"]
    assert wanted == {
        "prefix": "linux-modules-nvidia-580-server-open-",
        "signed": "linux-modules-nvidia-580-server-open-6.8.0-111-generic",
        "built": "nvidia-dkms-580-server-open",
    }
    assert decide(UBUNTU, {"kernels": KERNELS})["headers"] == [
        "linux-headers-6.8.0-111-generic",
        "linux-headers-generic",
    ]


KERNELS = ["linux-generic", "linux-headers-generic", "linux-image-generic"]
RDEPENDS = (
    "linux-modules-nvidia-580-server-open-6.8.0-111-generic\nReverse Depends:\n"
    "  linux-modules-nvidia-580-server-open-generic-6.8\n  linux-modules-nvidia-580-server-open-generic\n"
)
SIGNED = [
    "linux-modules-nvidia-580-server-open-6.8.0-111-generic",
    # Beside the kernel's own metapackage: it follows kernels. Without such there is only this kernel's.
    "linux-modules-nvidia-580-server-open-generic",
]
NEWEST = ["linux-image-generic", "linux-modules-nvidia-580-server-open-generic"]
BUILT = ["nvidia-dkms-580-server-open", "linux-headers-6.8.0-111-generic"]


@pytest.mark.parametrize(
    ("facts", "allow_reboot", "rdepends", "expected"),
    [
        # Whatever apt cannot install is passed over for the next.
        ({"kernels": KERNELS}, True, RDEPENDS, [SIGNED, NEWEST, [*BUILT, "linux-headers-generic"]]),
        ({"kernels": KERNELS}, False, RDEPENDS, [SIGNED, [*BUILT, "linux-headers-generic"]]),
        ({"kernels": KERNELS}, True, "", [NEWEST, [*BUILT, "linux-headers-generic"]]),
        ({}, True, RDEPENDS, [SIGNED[:1], BUILT]),
        # The kernel would refuse what is built here.
        ({"kernels": KERNELS, "secure_boot": True}, True, RDEPENDS, [SIGNED, NEWEST]),
        ({"kernels": KERNELS, "secure_boot": True}, False, "", []),
        ({"secure_boot": True, "mok": True}, False, "", [BUILT]),
    ],
)
def test_ways_to_the_modules(
    facts: dict[str, Any], allow_reboot: bool, rdepends: str, expected: list[list[str]]
) -> None:
    probe = {**HOST, **UBUNTU, "nvidia": {**FACTS, **facts}}
    found = nvidia_plan.module_choices(probe, decide(UBUNTU, facts), allow_reboot, rdepends)
    assert [choice["packages"] for choice in found] == expected
    assert [choice["reboot"] for choice in found] == [choice["packages"] == NEWEST for choice in found]


def test_what_waits_for_the_next_kernel_is_not_installed_again() -> None:
    facts = {
        "kernels": KERNELS,
        "packages": {"nvidia-utils-580-server": "580.95.05-0ubuntu0.24.04.1"},
        "next_kernel": {"name": "6.8.0-117-generic", "module": "580.95.05"},
    }
    what = decide(UBUNTU, facts)
    assert what["version"] == "580.95.05", "whatever the archive has by now"
    first = nvidia_plan.module_choices({**HOST, **UBUNTU, "nvidia": {**FACTS, **facts}}, what, False, RDEPENDS)[0]
    assert first == {"kind": "waiting", "packages": [], "reboot": True}


def test_kernels_that_are_held_with_the_driver() -> None:
    signed = {"packages": {SIGNED[0]: "6.8.0-111.111"}, "kernels": [*KERNELS, SIGNED[1]]}
    assert nvidia_plan.kernel_packages({"nvidia": signed}) == [*KERNELS, SIGNED[1]]
    built = {"packages": {"nvidia-kernel-open-dkms": "580.173.02-1"}, "kernels": ["linux-image-amd64"]}
    assert nvidia_plan.kernel_packages({"nvidia": built}) == [], "modules that are built here follow each kernel"
    assert nvidia_plan.kernel_packages({}) == []


def test_packages_of_one_version() -> None:
    packages = {"libcuda1": "580.173.02-1", "nvidia-fabricmanager": "1:580.173.02-1", "nvidia-utils": "580.173.021-1"}
    assert nvidia_plan.of_version(packages, "580.173.02") == ["libcuda1", "nvidia-fabricmanager"]
    assert nvidia_plan.of_version(packages, "") == []


@pytest.mark.parametrize(
    ("facts", "gpus", "reason"),
    [
        (
            {"module_loaded": "580.95.05", "module_on_disk": "580.173.02"},
            0,
            "module 580.95.05 is loaded and 580.173.02 is on disk",
        ),
        # It works: a restart can wait for its occasion.
        ({"module_loaded": "580.95.05", "module_on_disk": "580.173.02"}, 8, ""),
        ({"module_loaded": "580.95.05", "module_on_disk": "580.95.05"}, 0, ""),
        (
            {"module_loaded": "", "module_on_disk": "580.95.05", "other_driver": "nouveau"},
            0,
            "the kernel's own driver nouveau holds the GPUs",
        ),
        (
            {"module_loaded": "", "module_on_disk": "580.95.05", "other_driver": "nova_core"},
            0,
            "the kernel's own driver nova_core holds the GPUs",
        ),
        (
            {"next_kernel": {"name": "6.8.0-117-generic", "module": "580.173.02"}},
            0,
            "there is no module for the running kernel, and one for 6.8.0-117-generic, the kernel of the next start",
        ),
        ({"next_kernel": {"name": "6.8.0-117-generic", "module": ""}}, 0, ""),
        # Replaced together with the kernel: nothing is left for this one.
        (
            {"module_loaded": "580.95.05", "next_kernel": {"name": "6.8.0-117-generic", "module": "580.173.02"}},
            0,
            "module 580.95.05 is loaded and 580.173.02 is on disk",
        ),
        ({"module_loaded": "", "module_on_disk": "580.95.05"}, 0, ""),
        ({}, 0, ""),
    ],
)
def test_when_a_restart_is_needed(facts: dict[str, Any], gpus: int, reason: str) -> None:
    assert nvidia_plan.restart_reason({"nvidia": facts, "gpus": [{}] * gpus}) == reason


@pytest.mark.parametrize(
    ("probe", "wish", "build", "expected"),
    [
        ({"nvidia_devices": 1}, "auto", "auto", "nvidia"),
        ({"nvidia_driver": "580.95.05"}, "auto", "auto", "nvidia"),
        ({"nvidia_devices": 1}, "auto", "cpu", "cpu"),
        ({}, "auto", "cuda", "nvidia"),
        ({}, "auto", "auto", "cpu"),
        ({"nvidia_devices": 1}, "cpu", "cuda", "cpu"),
        ({"nvidia_devices": 1}, "none", "auto", "none"),
    ],
)
def test_provider(probe: dict[str, Any], wish: str, build: str, expected: str) -> None:
    assert nvidia_plan.provider(probe, wish, build) == expected


def test_defaults_are_the_roles() -> None:
    role = yaml.safe_load((ROOT / "roles/accelerator/defaults/main.yml").read_text(encoding="utf-8"))
    assert {name: role[f"accelerator_{name}"] for name in nvidia_plan.DEFAULTS} == nvidia_plan.DEFAULTS


def test_pins_of_nvidia() -> None:
    pins = nvidia_plan.pins()
    assert PIN.split(".")[0] == pins["driver"]["branch"]
    assert int(pins["driver"]["branch"]) >= nvidia_plan.oldest_driver()
    for fingerprint in pins["repository"]["fingerprints"] + pins["toolkit"]["fingerprints"]:
        assert re.fullmatch(r"[0-9A-F]{40}", fingerprint)


# --- what preflight says -----------------------------------------------------------------------------------------


def gpu(index: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "index": index,
        "name": "NVIDIA H100 80GB HBM3",
        "memory_total": 80 * GIB,
        "memory_free": 79 * GIB,
        "memory_engines": 0,
        "compute_capability": "9.0",
        "uuid": f"GPU-{index}",
        "pci": f"00000000:0{index}:00.0",
        "ecc_errors": 0,
        "pcie_width": 16,
        "pcie_width_max": 16,
        "mig": False,
        "driver": "580.95.05",
        **values,
    }


def judge(probe: dict[str, Any], facts: dict[str, Any], **site: Any) -> str:
    whole = {**HOST, "nvidia_smi_complaint": "", "fabricmanager": "absent", **probe, "nvidia": {**FACTS, **facts}}
    variables = {"vllm_instances": [{"name": "coder", "model": "loopback"}], **site}
    variant = "cuda" if preflight_gpu.will_have_driver(whole, variables) else "cpu"
    found = preflight_gpu.driver_problems("box", whole, variables, variant)
    if variant == "cuda":
        found += preflight_gpu.gpu_problems("box", whole, variables)
    return "\n".join(
        ("warning: " if item["level"] == "warning" else "") + problems.report([item]) for item in found
    ).replace("    ", "")


def works(*gpus: dict[str, Any], **values: Any) -> dict[str, Any]:
    shown = list(gpus) or [gpu(index) for index in range(8)]
    return {"gpus": shown, "nvidia_devices": len(shown), "nvidia_driver": "580.95.05", **values}


TEXTS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ("a driver that works", works(), {}, {}, ""),
    (
        "no driver",
        {},
        {},
        {},
        "warning: box: NVIDIA driver\n"
        f"8 NVIDIA device(s) are there; no driver is loaded, so {PIN} with open kernel modules from NVIDIA's "
        "repository is "
        "installed\n"
        "→ nothing: no restart is expected",
    ),
    (
        "no driver on Ubuntu, nouveau in the way",
        UBUNTU,
        {"other_driver": "nouveau"},
        {},
        "warning: box: NVIDIA driver\n"
        "8 NVIDIA device(s) are there; no driver is loaded, so 580 with open kernel modules from the distribution's "
        "packages "
        "is installed\n"
        "→ the host has to be restarted, because the kernel's own driver nouveau holds the GPUs: the run stops for "
        "it there; "
        "restart it and run again, or set accelerator_allow_reboot: true",
    ),
    (
        "nouveau in the way, and it may be restarted",
        UBUNTU,
        {"other_driver": "nouveau"},
        {"accelerator_allow_reboot": True},
        "warning: box: NVIDIA driver\n"
        "8 NVIDIA device(s) are there; no driver is loaded, so 580 with open kernel modules from the distribution's "
        "packages "
        "is installed\n"
        "→ the host is restarted, because the kernel's own driver nouveau holds the GPUs",
    ),
    (
        "more GPUs asked for than are on the bus, before there is a driver",
        {"nvidia_devices": 2},
        {},
        {"vllm_instances": [{"name": "a", "model": "loopback", "tensor_parallel_size": 4}]},
        "warning: box: NVIDIA driver\n"
        f"2 NVIDIA device(s) are there; no driver is loaded, so {PIN} with open kernel modules from NVIDIA's "
        "repository is "
        "installed\n"
        "→ nothing: no restart is expected\n"
        "box: vllm_instances[0].tensor_parallel_size = 4\n"
        "this needs 4 GPUs, and this host has 2 NVIDIA device(s)\n"
        "→ set it to 2 or less, or leave it out",
    ),
    (
        "Secure Boot and modules that are built here",
        {},
        {"secure_boot": True},
        {},
        "box: Secure Boot = 'enabled'\n"
        "Secure Boot is on, and the kernel refuses modules that are built here until the firmware knows the key "
        "that they "
        "are signed with\n"
        "→ sudo apt-get install dkms mokutil openssl, sudo dkms generate_mok (Ubuntu 22.04: update-secureboot-policy "
        "--new-key), sudo mokutil --import /var/lib/dkms/mok.pub, restart, and confirm the key at the console; or "
        "switch "
        "Secure Boot off in the firmware",
    ),
    (
        "Secure Boot with an enrolled key",
        {},
        {"secure_boot": True, "mok": True},
        {},
        "warning: box: NVIDIA driver\n"
        f"8 NVIDIA device(s) are there; no driver is loaded, so {PIN} with open kernel modules from NVIDIA's "
        "repository is "
        "installed\n"
        "→ nothing: no restart is expected",
    ),
    (
        "WSL without a driver",
        {"wsl": True, "nvidia_devices": 0},
        {},
        {"vllm_variant": "cuda"},
        "box: vllm_variant = 'cuda'\n"
        "no NVIDIA driver is loaded\n"
        "→ install NVIDIA's driver 580 or later in Windows, and none inside WSL; or set vllm_variant: cpu",
    ),
    (
        "a container without its host's driver",
        {"container": "lxc"},
        {},
        {},
        "box: vllm_variant = 'auto'\n"
        "8 NVIDIA device(s) are there, but no driver is loaded, so the engines would run on the CPU\n"
        "→ pass the GPUs and the driver of its host through to this container, or set vllm_variant: cpu if that is "
        "meant",
    ),
    (
        "a driver that is too old",
        works(nvidia_driver="550.54.15"),
        {},
        {},
        "box: NVIDIA driver = '550.54.15'\n"
        "vLLM's build is made with CUDA 13, which needs driver 580 or later; a driver that works is not replaced "
        "unasked\n"
        "→ set accelerator_nvidia_replace_driver: true (and accelerator_allow_reboot: true), or replace it "
        "yourself, or set "
        "vllm_variant: cpu",
    ),
    (
        "a driver that is replaced",
        works(nvidia_driver="550.54.15", active_units=["vllm@coder.service"]),
        {},
        {"accelerator_nvidia_replace_driver": True, "accelerator_allow_reboot": True},
        "warning: box: NVIDIA driver = '550.54.15'\n"
        f"8 NVIDIA device(s) are there; 550.54.15 is replaced by {PIN} with open kernel modules from NVIDIA's "
        "repository\n"
        "→ the host is restarted, because the old module is in use; vllm@coder.service are stopped for it",
    ),
    (
        "a driver that would be replaced under a running engine, with no restart to end it",
        works(nvidia_driver="550.54.15", active_units=["vllm@coder.service"]),
        {},
        {"accelerator_nvidia_replace_driver": True},
        "box: accelerator_allow_reboot = False\n"
        "replacing the driver stops vllm@coder.service until the host was restarted, and that is not allowed\n"
        "→ set accelerator_allow_reboot: true, or stop the engines yourself before",
    ),
    (
        "a .run driver that shall be replaced",
        works(nvidia_driver="550.54.15"),
        {"runfile": True},
        {"accelerator_nvidia_replace_driver": True},
        "box: NVIDIA driver = 'replace'\n"
        "a driver was installed here by NVIDIA's .run installer; packages beside it end in a mix of both\n"
        "→ sudo nvidia-uninstall, restart, and run this again; or set accelerator_nvidia_driver_source: keep",
    ),
    (
        "held packages in the way",
        {},
        {"held": ["nvidia-driver-cuda"], "packages": {"nvidia-driver-cuda": "570.86.15-1"}},
        {},
        "box: held packages\n"
        "these packages are held at another version: nvidia-driver-cuda\n"
        "→ sudo apt-mark unhold nvidia-driver-cuda, if nobody needs them as they are",
    ),
    (
        "Debian's own driver",
        {},
        {},
        {"accelerator_nvidia_driver_source": "distribution"},
        "box: accelerator_nvidia_driver_source = 'distribution'\n"
        "Debian 12 has driver 535, and vLLM's build needs 580 or later\n"
        "→ set it to nvidia or auto",
    ),
    (
        "a branch that is too old",
        UBUNTU,
        {},
        {"accelerator_nvidia_driver_branch": "550"},
        "box: accelerator_nvidia_driver_branch = '550'\n"
        "vLLM's build is made with CUDA 13, which needs driver 580 or later\n"
        "→ set it to 580 or later, or leave it out",
    ),
    (
        "a system whose packages nobody here knows",
        {"distribution": "fedora", "distribution_version": "42"},
        {},
        {},
        "box: accelerator_nvidia_driver_source = 'auto'\n"
        "the role knows the driver's packages of Ubuntu 22.04 and 24.04 and of Debian 12 only\n"
        "→ install NVIDIA's driver 580 or later by hand and set accelerator_nvidia_driver_source: keep",
    ),
    (
        "a module that is not the installed one",
        {**works(), "gpus": [], "nvidia_smi_complaint": "Failed to initialize NVML: Driver/library version mismatch"},
        {"module_loaded": "580.95.05", "module_on_disk": "580.173.02"},
        {},
        "box: NVIDIA driver = '580.95.05'\n"
        "the driver does not answer: Failed to initialize NVML: Driver/library version mismatch (module 580.95.05 "
        "is loaded "
        "and 580.173.02 is on disk)\n"
        "→ restart the host, or set accelerator_allow_reboot: true",
    ),
    (
        "a kernel to come that has no module",
        works(),
        {"next_kernel": {"name": "6.8.0-112-generic", "module": ""}},
        {},
        "warning: box: NVIDIA driver = '580.95.05'\n"
        "the next start is with kernel 6.8.0-112-generic, for which there is no NVIDIA module: no driver would be "
        "there\n"
        "→ where the driver is held, an archive has modules of its newest driver only for a new kernel: keep the old "
        "kernel, or plan an update of the driver with this restart (accelerator_nvidia_replace_driver)",
    ),
    (
        "a wrong fabric manager",
        works(nvswitch=True, fabricmanager="inactive"),
        {"fabricmanager": "570.86.15"},
        {},
        "warning: box: nvidia-fabricmanager = '570.86.15'\n"
        "the driver is 580.95.05, and a fabric manager of another version does not start: CUDA ends with error 802\n"
        "→ nothing: the run installs the one of exactly the driver's version (580.95.05), holds both and starts it",
    ),
    (
        "a wrong fabric manager that the role shall not touch",
        works(nvswitch=True, fabricmanager="inactive"),
        {"fabricmanager": "570.86.15"},
        {"accelerator_provider": "none"},
        "box: nvidia-fabricmanager = '570.86.15'\n"
        "the driver is 580.95.05, and a fabric manager of another version does not start: CUDA ends with error 802\n"
        "→ install nvidia-fabricmanager of exactly the driver's version (580.95.05), then sudo systemctl enable --now "
        "nvidia-fabricmanager",
    ),
    (
        "the right fabric manager",
        works(nvswitch=True, fabricmanager="active"),
        {"fabricmanager": "580.95.05"},
        {"accelerator_nvidia_expected_gpus": 8},
        "",
    ),
    (
        "a GPU that is missing",
        works(*(gpu(index) for index in range(7)), nvidia_devices=7),
        {"xids": [{"pci": "0000:07:00", "xid": 79}]},
        {"accelerator_nvidia_expected_gpus": 8},
        "box: accelerator_nvidia_expected_gpus = 8\n"
        "this host shows 7 GPU(s) of 8; the kernel's log says that 0000:07:00 fell off the bus (Xid 79)\n"
        "→ restart the host; if it stays away, see to the card's seat and power, and have it replaced; or set the "
        "number "
        "that is right",
    ),
    (
        "a GPU that the driver does not show",
        works(gpu(0), nvidia_devices=2),
        {"devices": [{"pci": "0000:00:00.0"}, {"pci": "0000:01:00.0"}], "taken": ["0000:00:00.0", "0000:01:00.0"]},
        {},
        "warning: box: GPUs = 1\n"
        "2 NVIDIA devices are on the PCI bus, and the driver shows 1 GPU(s); without 0000:01:00.0; the driver took "
        "0000:01:00.0 and cannot use it\n"
        "→ restart the host; if it stays away, see to the card's seat and power, and have it replaced",
    ),
    (
        "GPUs that are started anew for each question",
        {**works(), "gpus": [], "nvidia_smi_slow": True, "nvidia_smi_complaint": "no answer within 90 seconds"},
        {},
        {},
        "box: NVIDIA driver = '580.95.05'\n"
        "nvidia-smi gave no answer within 90 seconds: the driver is loaded and slow, as where it starts all GPUs anew "
        "for each question because persistence is off\n"
        "→ sudo nvidia-smi -pm 1, and run this again (the role accelerator keeps it on from then on)",
    ),
    (
        "the kernel's driver in Rust",
        {},
        {"other_driver": "nova_core"},
        {},
        f"warning: box: NVIDIA driver\n"
        f"8 NVIDIA device(s) are there; no driver is loaded, so {PIN} with open kernel modules from NVIDIA's "
        "repository is installed\n"
        "→ the host has to be restarted, because the kernel's own driver nova_core holds the GPUs: the run stops for "
        "it there; restart it and run again, or set accelerator_allow_reboot: true",
    ),
    (
        "switches that are no PCI devices",
        works(gpu(0, name="NVIDIA B200"), gpu(1, name="NVIDIA B200"), fabricmanager="active"),
        {"fabricmanager": "580.95.05", "ib_umad": True},
        {},
        "box: NVSwitch\n"
        "the GPUs are joined by NVSwitches of the fifth generation, which need the subnet manager nvlsm and the "
        "kernel's module ib_umad beside nvidia-fabricmanager; there is no nvlsm, so CUDA would end with error 802\n"
        "→ sudo apt-get install nvlsm (NVIDIA's repository), echo ib_umad | sudo tee /etc/modules-load.d/ib_umad.conf, "
        "sudo modprobe ib_umad, and run this again: it brings nvidia-fabricmanager",
    ),
    (
        "switches that are no PCI devices, before there is a driver",
        {"nvswitch": True},
        {"bridges": ["mlx5_4"], "nvlsm": True},
        {"accelerator_provider": "nvidia"},
        "box: NVSwitch\n"
        "the GPUs are joined by NVSwitches of the fifth generation, which need the subnet manager nvlsm and the "
        "kernel's module ib_umad beside nvidia-fabricmanager; there is no ib_umad, so CUDA would end with error 802\n"
        "→ sudo apt-get install nvlsm (NVIDIA's repository), echo ib_umad | sudo tee /etc/modules-load.d/ib_umad.conf, "
        "sudo modprobe ib_umad, and run this again: it brings nvidia-fabricmanager",
    ),
    (
        "switches that are no PCI devices, with all that they need",
        works(gpu(0, name="NVIDIA B200", fabric="Completed"), gpu(1, name="NVIDIA B200"), fabricmanager="active"),
        {"fabricmanager": "580.95.05", "bridges": ["mlx5_4"], "nvlsm": True, "ib_umad": True},
        {},
        "",
    ),
    (
        "a fabric that does not come about",
        works(gpu(0, fabric="Completed"), gpu(1, fabric="In Progress"), nvswitch=True, fabricmanager="active"),
        {"fabricmanager": "580.95.05"},
        {"accelerator_provider": "none"},
        "box: nvidia-fabricmanager = 'active'\n"
        "the fabric manager runs and has not joined all GPUs (GPU 1: In Progress): CUDA ends with error 802\n"
        "→ look at journalctl -u nvidia-fabricmanager and nvidia-smi -q (Fabric); restart it, or the host",
    ),
    (
        "memory that nvidia-smi does not tell, and the table does",
        works(gpu(0, name="NVIDIA GB10", memory_total=None, memory_free=None), memory={"total": 128 * GIB}),
        {},
        {},
        "warning: box: GPU 0 = 'NVIDIA GB10'\n"
        "nvidia-smi tells no size of its memory, as where it shares the CPU's; 119.7 GiB are reckoned with "
        "(catalog/hardware.yml)\n"
        "→ set max_model_len and gpu_memory_utilization for its engine yourself, and watch the engine's start",
    ),
    (
        "memory that nobody tells",
        works(gpu(0, name="NVIDIA X1", memory_total=None, memory_free=None)),
        {},
        {},
        "warning: box: GPU 0 = 'NVIDIA X1'\n"
        "nvidia-smi tells no size of its memory, as where it shares the CPU's, so nothing can be reckoned for it\n"
        "→ set max_model_len and gpu_memory_utilization for its engine yourself, and watch the engine's start",
    ),
    (
        "a GPU that ages",
        works(gpu(0, rows_pending=True, pcie_generation=3, pcie_generation_card=5, ecc_errors_ever=2)),
        {
            "xids": [{"pci": "0000:00:00", "xid": 31}, {"pci": "0000:00:00", "xid": 63}],
        },
        {},
        "warning: box: GPU 0 = 'NVIDIA H100 80GB HBM3'\n"
        "a row of its memory is defective and is replaced by a spare one when the GPU is reset\n"
        "→ restart the host at the next occasion\n"
        "warning: box: GPU 0 = 'NVIDIA H100 80GB HBM3'\n"
        "its memory had 2 uncorrectable error(s) in its life, none since the driver was loaded\n"
        "→ watch it; have it replaced if the number grows\n"
        "warning: box: GPU 0 = 'NVIDIA H100 80GB HBM3'\n"
        "its slot runs PCI Express 3, and the card could 5\n"
        "→ see whether the slot, a riser or the firmware's setting limits it; else expect slower loading\n"
        "warning: box: GPU 0 = 'NVIDIA H100 80GB HBM3'\n"
        "the driver reported Xid 63 since the host started\n"
        "→ journalctl -k -b --grep Xid; what the numbers mean: https://docs.nvidia.com/deploy/xid-errors/",
    ),
    (
        "a GPU that has no spare rows left",
        works(gpu(0, rows_pending=True, rows_failed=True)),
        {},
        {},
        "box: GPU 0 = 'NVIDIA H100 80GB HBM3'\n"
        "a row of its memory is defective, and there is no spare row left to take its place\n"
        "→ have the card replaced, or name other GPUs in `devices`",
    ),
]


@pytest.mark.parametrize(
    ("probe", "facts", "site", "text"), [item[1:] for item in TEXTS], ids=[item[0] for item in TEXTS]
)
def test_texts(probe: dict[str, Any], facts: dict[str, Any], site: dict[str, Any], text: str) -> None:
    assert judge(probe, facts, **site) == text


@pytest.mark.parametrize(
    ("probe", "site", "expected"),
    [
        ({}, {}, True),
        ({"nvidia_driver": "580.95.05"}, {}, True),
        ({"nvidia_devices": 0}, {}, False),
        ({"container": "lxc"}, {}, False),
        ({"wsl": True}, {}, False),
        ({}, {"accelerator_provider": "none"}, False),
        ({}, {"accelerator_state": "absent"}, False),
        ({}, {"vllm_variant": "cpu"}, False),
        ({"distribution": "fedora"}, {}, False),
    ],
)
def test_what_variant_auto_goes_by(probe: dict[str, Any], site: dict[str, Any], expected: bool) -> None:
    whole = {**HOST, **probe}  # facts of earlier releases have no key `nvidia`
    assert preflight_gpu.will_have_driver(whole, site) is expected
