"""NVIDIA's driver: what a host tells of it, and what is done about it. No GPU is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import (
    nvidia_plan,
    probe_nvidia,
)
from nvidia_world import FACTS, HOST, PIN, UBUNTU

ROOT = Path(__file__).resolve().parents[2]

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
