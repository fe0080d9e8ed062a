"""What host_probe makes of machines that others recorded, and that no host can break it."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.modelhost.serving.plugins.module_utils import hardware, probe_gpu, probe_nvidia
from ansible_collections.modelhost.serving.plugins.modules import host_probe
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import HANGS

GIB = 1024**3
MACHINES = yaml.safe_load((Path(__file__).parent / "recorded_machines.yml").read_text(encoding="utf-8"))


def plant(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of files alone: nothing of this one is read, and no program runs."""
    monkeypatch.setattr(host_probe, "ROOT", str(tmp_path))
    monkeypatch.setattr(host_probe, "run", lambda _command: (-1, ""))
    return tmp_path


def recorded(root: Path, name: str) -> list[int]:
    """Puts a recorded machine below the root; its logical CPUs."""
    machine = MACHINES[name]
    files = {"/proc/cpuinfo": machine["cpuinfo"], "/proc/meminfo": machine["meminfo"]}
    for package, cpus in machine["packages"].items():
        for cpu in host_probe.number_list(cpus):
            files[f"/sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"] = f"{package}\n"
    for core in machine["cores"].split():
        for cpu in host_probe.number_list(core):
            files[f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = f"{core}\n"
    for node, content in machine["nodes"].items():
        files[f"/sys/devices/system/node/node{node}/cpulist"] = content["cpulist"] + "\n"
        files[f"/sys/devices/system/node/node{node}/meminfo"] = content["meminfo"]
    plant(root, files)
    return host_probe.number_list(machine["online"])


# --- processors and NUMA -----------------------------------------------------------------------------------------


def test_a_dual_e5_2680_of_the_first_generation(root: Path) -> None:
    allowed = recorded(root, "dual-e5-2680")
    cpu = host_probe.cpu_text(host_probe.read("/proc/cpuinfo"))
    assert cpu["model"] == "Intel(R) Xeon(R) CPU E5-2680 0 @ 2.70GHz"
    assert "avx" in cpu["flags"]
    assert "avx2" not in cpu["flags"]
    assert host_probe.sockets(allowed, cpu["sockets"]) == 2
    assert host_probe.max_mhz(allowed, cpu["model"]) == 2700  # by its name: no cpufreq there
    nodes = host_probe.numa(allowed, host_probe.memory())
    assert [node["cpus"] for node in nodes] == [list(range(8)), list(range(8, 16))]
    # The nodes' own figures count what the kernel keeps for itself (33.5 against 32.8 million kB).
    assert sum(node["memory_total"] for node in nodes) == pytest.approx(32836008 * 1024, abs=2)
    assert nodes[0]["memory_total"] / nodes[1]["memory_total"] == pytest.approx(16747124 / 16777216)
    assert nodes[0]["memory_shown_free"] == (15794148 + 29060 + 32092) * 1024


def test_a_dual_xeon_with_hyper_threading(root: Path) -> None:
    allowed = recorded(root, "dual-silver-4108")
    memory = host_probe.memory()
    nodes = host_probe.numa(allowed, memory)
    assert len(host_probe.cores_of(allowed, allowed)) == 16
    assert nodes[1]["cores"][0] == [8, 24]
    assert nodes[1]["cpus"] == [*range(8, 16), *range(24, 32)]
    # Most of this node holds pages of files, which it gives up.
    assert nodes[1]["memory_shown_free"] == (10710036 + 28315688 + 2602984) * 1024
    assert sum(node["memory_free"] for node in nodes) == pytest.approx(83337000 * 1024, abs=2)
    assert memory == {"total": 97445600 * 1024, "available": 83337000 * 1024, "swap": 8388604 * 1024, "engines": 0}


def test_an_affinity_of_some_cpus(root: Path) -> None:
    recorded(root, "dual-silver-4108")
    allowed = [0, 1, 16, 24]
    nodes = host_probe.numa(allowed, host_probe.memory())
    assert [node["cpus"] for node in nodes] == [[0, 1, 16], [24]]
    assert nodes[0]["cores"] == [[0, 16], [1]]
    assert len(host_probe.cores_of(allowed, allowed)) == 3


def test_offline_cpus_and_nodes_of_memory_alone(root: Path) -> None:
    allowed = recorded(root, "power9-gpu-nodes")
    nodes = host_probe.numa(allowed, host_probe.memory())
    alone = [(node, 0) for node in range(250, 256)]
    assert [(node["node"], len(node["cpus"])) for node in nodes] == [(0, 16), (8, 16), *alone]
    assert nodes[0]["cores"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert nodes[2]["cores"] == []
    assert nodes[2]["memory_total"] == 15 * GIB
    assert host_probe.sockets(allowed, 0) == 2


def test_an_arm_machine(root: Path) -> None:
    allowed = recorded(root, "dgx-spark-gb10")
    cpu = host_probe.cpu_text(host_probe.read("/proc/cpuinfo"))
    assert cpu["model"] == ""
    assert "asimd" in cpu["flags"]
    assert host_probe.sockets(allowed, cpu["sockets"]) == 1
    assert len(host_probe.numa(allowed, host_probe.memory())[0]["cores"]) == 20


def test_without_numa_one_node_is_all_there_is(root: Path) -> None:
    plant(root, {"/proc/meminfo": "MemTotal: 1000 kB\nMemFree: 400 kB\nCached: 100 kB\n"})
    assert host_probe.numa([0, 1], host_probe.memory()) == [
        {
            "node": 0,
            "cpus": [0, 1],
            "cores": [[0], [1]],
            "memory_total": 1024000,
            "memory_free": 512000,
            "memory_shown_free": 512000,
        }
    ]


def test_a_virtual_arm_machine_numbers_no_sockets(root: Path) -> None:
    plant(root, {"/sys/devices/system/cpu/cpu0/topology/physical_package_id": "-1\n"})
    assert host_probe.sockets([0], 0) == 1


def test_the_kernel_knows_the_clock(root: Path) -> None:
    plant(root, {f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq": f"33000{cpu}0\n" for cpu in (0, 1)})
    assert host_probe.max_mhz([0, 1], "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz") == 3300


# --- limits of containers ----------------------------------------------------------------------------------------

MEMINFO = "MemTotal: 100000000 kB\nMemFree: 80000000 kB\nMemAvailable: 90000000 kB\n"


def test_a_limit_of_memory_in_cgroup_v2(root: Path) -> None:
    plant(
        root,
        {
            "/proc/meminfo": MEMINFO,
            "/sys/fs/cgroup/memory.max": str(8 * GIB),
            "/sys/fs/cgroup/memory.current": str(5 * GIB),
            "/sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file {2 * GIB}\n",
        },
    )
    assert host_probe.memory() == {"total": 8 * GIB, "available": 6 * GIB, "swap": 0, "engines": 0}
    assert host_probe.numa([0], host_probe.memory())[0]["memory_total"] == 8 * GIB


def test_a_limit_of_memory_in_cgroup_v1(root: Path) -> None:
    folder = "/sys/fs/cgroup/memory/"
    plant(
        root,
        {
            "/proc/meminfo": MEMINFO,
            folder + "memory.limit_in_bytes": str(8 * GIB),
            folder + "memory.usage_in_bytes": str(5 * GIB),
            folder + "memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file 0\n",
        },
    )
    assert host_probe.memory()["available"] == 4 * GIB


@pytest.mark.parametrize(
    "files",
    [
        {"/sys/fs/cgroup/memory.max": "max\n"},
        # No limit, as cgroup v1 writes it.
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
        {},
    ],
)
def test_no_limit_of_memory(root: Path, files: dict[str, str]) -> None:
    plant(root, {"/proc/meminfo": MEMINFO, **files})
    assert host_probe.memory()["total"] == 100000000 * 1024
    assert host_probe.memory()["available"] == 90000000 * 1024


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"/sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 0),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            0,
        ),
        ({}, 0),
    ],
)
def test_a_quota_of_cpu_time(root: Path, files: dict[str, str], quota: float) -> None:
    plant(root, files)
    assert host_probe.cpu_quota() == quota


def test_memory_of_our_own_engines(root: Path) -> None:
    plant(
        root,
        {
            "/proc/meminfo": MEMINFO,
            "/proc/10/cgroup": "0::/system.slice/system-vllm.slice/vllm@coder.service\n",
            "/proc/10/status": "VmRSS:\t 2000 kB\nRssAnon:\t    1000 kB\n",
            "/proc/11/cgroup": "0::/system.slice/nginx.service\n",
            "/proc/11/status": "RssAnon:\t    5000 kB\n",
        },
    )
    assert host_probe.memory()["engines"] == 1024000


# --- GPUs --------------------------------------------------------------------------------------------------------

# The form is that of `nvidia-smi --query-gpu=… --format=csv,noheader,nounits`; the values are made up.
EIGHT = "".join(
    f"{index}, NVIDIA H20-3e, 143771, {143158 - index}, 9.0, GPU-{index:08d}-0000-0000-0000-000000000000, "
    f"00000000:{0x18 + index:02X}:00.0, 0, 2, 16, 16, 4, 5, Disabled, Enabled, 580.95.05\n"
    for index in range(8)
)


def test_eight_gpus() -> None:
    gpus = probe_gpu.parse(EIGHT)
    assert [gpu["index"] for gpu in gpus] == list(range(8))
    assert gpus[7] == {
        "index": 7,
        "name": "NVIDIA H20-3e",
        "memory_total": 143771 * 1024**2,
        "memory_free": 143151 * 1024**2,
        "compute_capability": "9.0",
        "uuid": "GPU-00000007-0000-0000-0000-000000000000",
        "pci": "00000000:1f:00.0",
        "ecc_errors": 0,
        "ecc_errors_ever": 2,
        "pcie_width": 16,
        "pcie_width_max": 16,
        "pcie_generation": 4,
        "pcie_generation_card": 5,
        "mig": False,
        "persistence": True,
        "driver": "580.95.05",
    }


GB10 = f"0, NVIDIA GB10, [N/A], [N/A], 12.1, GPU-x, 0000000F:01:00.0, {', '.join(['[N/A]'] * 8)}, 580.95.05"


def test_what_a_driver_does_not_tell_is_none() -> None:
    gpu = probe_gpu.parse(GB10)[0]
    assert (gpu["memory_total"], gpu["memory_free"], gpu["ecc_errors"], gpu["pcie_width"]) == (None, None, None, None)
    assert (gpu["mig"], gpu["persistence"]) == (False, False)


def test_memory_that_nobody_tells_is_not_zero() -> None:
    memory = {"total": 128 * GIB, "available": 100 * GIB}
    (shared,) = hardware.machine({"gpus": probe_gpu.parse(GB10), "memory": memory}, free=True)["devices"]
    assert shared["total"] > 100 * GIB, "the table knows this one"
    assert shared["budget"] <= 100 * GIB, "its memory is the computer's"
    unknown = hardware.machine({"gpus": probe_gpu.parse(GB10.replace("GB10", "X1")), "memory": memory})
    assert unknown["devices"] == []
    assert unknown["notes"] == ["NVIDIA X1 tells no size of its memory: nothing is reckoned for it"]


# A GPU that fell off the bus, as quoted in public notes about eight RTX 3080.
LOST = "Unable to determine the device handle for GPU3: 0000:04:00.0: Unknown Error\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No devices were found\n",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
        "NVIDIA driver is installed and running.\n",
        "Failed to initialize NVML: Driver/library version mismatch\n",
        LOST,
    ],
)
def test_complaints_are_no_gpus(text: str) -> None:
    assert probe_gpu.parse(text) == []
    assert len(probe_gpu.parse(text + EIGHT)) == 8


def answering(answers: dict[str, tuple[int, str]], asked: list[list[str]]) -> Any:
    """A stand-in for programs: the first answer whose word is in the command."""

    def run(command: list[str]) -> tuple[int, str]:
        asked.append(command)
        return next((answer for word, answer in answers.items() if word in " ".join(command)), (-1, ""))

    return run


def test_an_older_driver_does_not_know_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    old = "0, Tesla T4, 15360, 15101, GPU-x, 00000000:00:1E.0, 0, 0, 8, 16, 3, 3, [N/A], Enabled, 460.32.03\n"
    answers = {
        "compute_cap": (2, 'Field "compute_cap" is not a valid field to query.\n'),
        "--query-gpu": (0, old),
    }
    gpus, complaint, slow = probe_gpu.gpus("nvidia-smi", answering(answers, asked))
    assert (complaint, slow) == ("", False)
    assert (gpus[0]["name"], gpus[0]["compute_capability"], gpus[0]["pcie_width"]) == ("Tesla T4", "", 8)
    assert len(asked) == 2


def test_a_driver_that_does_not_answer_is_quoted() -> None:
    found = probe_gpu.gpus("nvidia-smi", lambda _command: (9, "NVIDIA-SMI has failed because …\n"))
    assert found == ([], "NVIDIA-SMI has failed because …", False)


def test_a_driver_that_is_slow_is_not_called_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep infinity\n", encoding="utf-8")
    program.chmod(0o755)
    assert host_probe.TIMEOUTS["nvidia-smi"] == 90
    monkeypatch.setitem(host_probe.TIMEOUTS, "nvidia-smi", 0.5)
    found = probe_gpu.gpus(str(program), host_probe.run)
    assert found == ([], "no answer within 0.5 seconds", True)


def test_a_driver_that_is_slow_is_asked_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    answers = {"nvidia-smi": (probe_gpu.TIMED_OUT, "no answer within 90 seconds")}
    monkeypatch.setattr(host_probe, "run", answering(answers, asked))
    monkeypatch.setattr(host_probe, "nvidia_smi", lambda: "/usr/bin/nvidia-smi")
    found = host_probe.probe([])
    assert (found["nvidia_smi_slow"], found["nvidia_smi_complaint"]) == (True, "no answer within 90 seconds")
    assert len([command for command in asked if "nvidia-smi" in command[0]]) == 1


# The form is that of `nvidia-smi -q -x`; the values are made up.
LONG = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log><driver_version>580.95.05</driver_version><attached_gpus>2</attached_gpus>
  <gpu id="00000000:18:00.0"><uuid>GPU-a</uuid><fabric><state>Completed</state><status>Success</status></fabric>
    <remapped_rows><remapped_row_pending>Yes</remapped_row_pending>
      <remapped_row_failure>No</remapped_row_failure></remapped_rows>
    <processes><process_info><pid>4711</pid><type>C</type><process_name>VLLM::EngineCore</process_name>
      <used_memory>70000 MiB</used_memory></process_info></processes></gpu>
  <gpu id="00000000:19:00.0"><uuid>GPU-b</uuid><fabric><state>In Progress</state></fabric>
    <remapped_rows>N/A</remapped_rows>
    <processes><process_info><pid>815</pid><process_name>/usr/bin/python3</process_name>
      <used_memory>9000 MiB</used_memory></process_info><process_info><pid>816</pid>
      <process_name>[Not Found]</process_name><used_memory>N/A</used_memory></process_info></processes></gpu>
</nvidia_smi_log>
"""


def test_what_only_the_long_answer_has(root: Path) -> None:
    plant(root, {"/proc/4711/cgroup": "0::/system.slice/system-vllm.slice/vllm@coder.service\n"})
    gpus: list[dict[str, Any]] = [{"uuid": "GPU-a"}, {"uuid": "GPU-b"}, {"uuid": "GPU-c"}]
    details = probe_gpu.details("nvidia-smi", lambda _command: (0, LONG))
    found = probe_gpu.add_details(gpus, details, host_probe.unit_of)
    assert [(item["pid"], item["unit"], item["process"]) for item in found] == [
        (4711, "vllm@coder.service", "VLLM::EngineCore"),
        (815, "", "python3"),
        (816, "", "[Not Found]"),
    ]
    assert [gpu["memory_engines"] for gpu in gpus] == [70000 * 1024**2, 0, 0]
    assert [gpu["fabric"] for gpu in gpus] == ["Completed", "In Progress", ""]
    assert [(gpu["rows_pending"], gpu["rows_failed"]) for gpu in gpus] == [
        (True, False),
        (False, False),
        (False, False),
    ]
    assert probe_gpu.details("nvidia-smi", lambda _command: (9, "")) == {}


def test_two_questions_tell_all_of_the_gpus(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question starts eight GPUs anew where persistence is off."""
    asked: list[list[str]] = []
    answers = {
        "--query-gpu": (0, EIGHT),
        "-q -x": (0, LONG.replace("GPU-a", "GPU-00000000-0000-0000-0000-000000000000")),
    }
    monkeypatch.setattr(host_probe, "run", answering(answers, asked))
    monkeypatch.setattr(host_probe, "nvidia_smi", lambda: "/usr/bin/nvidia-smi")
    found = host_probe.probe([])
    assert len([command for command in asked if "nvidia-smi" in command[0]]) == 2
    assert (len(found["gpus"]), found["gpus"][0]["fabric"], found["gpus"][0]["rows_pending"]) == (8, "Completed", True)
    assert [item["pid"] for item in found["gpu_processes"]] == [4711]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021", "470.57.02"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)",
            "580.95.05",
        ),
        ("", ""),
    ],
)
def test_versions_of_the_driver(root: Path, text: str, version: str) -> None:
    plant(root, {"/proc/driver/nvidia/version": text})
    assert host_probe.driver_version([]) == version


def test_the_driver_of_wsl_is_windows_own(root: Path) -> None:
    assert host_probe.driver_version([{"driver": "581.57"}]) == "581.57"


def test_nvidia_devices_without_a_driver(root: Path) -> None:
    devices = {"0": ("0x10de", "0x030200"), "1": ("0x10de", "0x068000"), "2": ("0x8086", "0x030000")}
    devices["3"] = ("0x10de", "0x040300")  # a GPU's sound
    for name, (vendor, kind) in devices.items():
        folder = f"/sys/bus/pci/devices/0000:0{name}:00.0/"
        plant(root, {folder + "vendor": vendor + "\n", folder + "class": kind + "\n"})
    assert host_probe.nvidia_pci() == (1, 1)


def test_switches_that_are_no_pci_devices(root: Path) -> None:
    machine = MACHINES["hgx-b200"]
    plant(root, machine["files"])
    found = probe_nvidia.facts(host_probe.run, host_probe.read, host_probe.paths_like)
    assert host_probe.nvidia_pci() == (2, 0), "no switch on the PCI bus"
    assert found["bridges"] == ["mlx5_4"], "one card of the network has no such mark"
    assert host_probe.probe([])["nvswitch"] is True


# --- memory modules, firewalls, containers -----------------------------------------------------------------------


def module(size: str, locator: str, bank: str) -> str:
    return (
        f"Handle 0x0001, DMI type 17, 40 bytes\nMemory Device\n\tSize: {size}\n\tLocator: {locator}\n"
        f"\tBank Locator: {bank}\n\tSpeed: 2666 MT/s\n\tConfigured Clock Speed: 2400 MT/s\n\n"
    )


@pytest.mark.parametrize(
    ("modules", "channels"),
    [
        # Forms that dmidecode prints on servers, as quoted in DPDK's guide and in public notes.
        ([("32 GB", f"DIMM_{bank}{slot}", "NODE 1") for bank in "ABCD" for slot in (1, 2)], 4),
        ([("32 GB", "DIMM_J1", f"NODE {n} CHANNEL {c} DIMM 0") for n in (0, 1) for c in range(4)], 8),
        ([("64 GB", "DIMM 0", f"P{p} CHANNEL {c}") for p in (0, 1) for c in "ABCDEFGH"], 16),
        ([("8192 MB", f"Channel{c}-DIMM0", f"BANK {n}") for n, c in enumerate("AB")], 2),
        ([("16 GB", "DIMM_A1", "NODE 1"), ("No Module Installed", "DIMM_B1", "NODE 1")], 1),
    ],
)
def test_channels_of_memory(modules: list[tuple[str, str, str]], channels: int) -> None:
    text = "".join(module(*item) for item in modules)
    assert host_probe.parse_memory_devices(text) == {"channels": channels, "mts": 2400}


def test_a_virtual_machine_tells_nothing_of_its_memory() -> None:
    assert host_probe.parse_memory_devices("# dmidecode 3.4\nNo SMBIOS nor DMI entry point found, sorry.\n") == {}


# Lines as ufw writes them to user.rules.
UFW = """### tuple ### deny tcp 9100 0.0.0.0/0 any 10.10.30.1 in comment=74657374
### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 OpenSSH - in
### tuple ### allow tcp 80,443 0.0.0.0/0 any 0.0.0.0/0 in
### tuple ### allow udp 9943:9944 0.0.0.0/0 any 0.0.0.0/0 in
### tuple ### allow tcp 4000:4010 0.0.0.0/0 any 10.0.0.0/8 in
### tuple ### allow tcp 25 0.0.0.0/0 any 0.0.0.0/0 out
"""


def test_ports_that_ufw_lets_in(root: Path) -> None:
    plant(root, {"/etc/ufw/ufw.conf": "# /etc/ufw/ufw.conf\nENABLED=yes\nLOGLEVEL=low\n", "/etc/ufw/user.rules": UFW})
    found = host_probe.firewall()
    assert found["ufw"] == "active"
    assert found["open_ports"] == [[22, 22], [80, 80], [443, 443], [4000, 4010]]


def test_ufw_that_is_installed_and_off(root: Path) -> None:
    plant(root, {"/etc/ufw/ufw.conf": "ENABLED=no\n"})
    assert host_probe.firewall() == {"ufw": "inactive", "firewalld": "absent", "open_ports": []}


def test_ports_that_firewalld_lets_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"systemctl": (0, "LoadState=loaded\nActiveState=active\n"), "firewall-cmd": (0, "4000/tcp 53/udp\n")}
    monkeypatch.setattr(host_probe, "run", answering(answers, []))
    assert host_probe.firewall() == {"ufw": "absent", "firewalld": "active", "open_ports": [[4000, 4000]]}


@pytest.mark.parametrize(
    ("answer", "files", "kind"),
    [
        ((0, "lxc\n"), {}, "lxc"),
        ((1, "none\n"), {}, ""),
        ((0, "wsl\n"), {}, ""),
        ((-1, "no such program"), {"/.dockerenv": ""}, "docker"),
        ((-1, ""), {"/run/.containerenv": ""}, "podman"),
        ((-1, ""), {"/proc/1/environ": "PATH=/bin\0container=lxc\0TERM=linux\0"}, "lxc"),
        ((-1, ""), {}, ""),
    ],
)
def test_containers(
    root: Path, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str], files: dict[str, str], kind: str
) -> None:
    plant(root, files)
    monkeypatch.setattr(host_probe, "run", lambda _command: answer)
    assert host_probe.container() == kind


def test_wsl(root: Path) -> None:
    plant(
        root,
        {"/proc/version": "Linux version 5.15.167.4-microsoft-standard-WSL2 (root@f9c826d3017f) (gcc (GCC) 11.2.0"},
    )
    assert host_probe.probe([])["wsl"] is True


def test_a_folder_of_weights(root: Path, tmp_path: Path) -> None:
    plant(root, {"/data/m/config.json": '{"model_type": "llama"}', "/data/m/a.safetensors": "12345"})
    plant(root, {"/data/broken/config.json": "{"})
    found = host_probe.model_folder("/data/m")
    assert found["config"] == {"model_type": "llama"}
    assert found["safetensors_bytes"] == 5
    assert host_probe.model_folder("/data/broken")["config"] is None
    assert host_probe.model_folder("/data/none") == {
        "exists": False,
        "config": None,
        "safetensors_bytes": 0,
        "elsewhere_bytes": 0,
        "readable": False,
    }


def test_weights_that_are_on_their_way_or_in_a_cache_need_no_more_space(root: Path) -> None:
    place = "/srv/models/Org/Own/" + "a" * 40
    cache = "/home/alice/.cache/huggingface/hub/models--Org--Own/snapshots/" + "c" * 40
    plant(root, {cache + "/model-1.safetensors": "1234567", cache + "/model-2.safetensors": "12"})
    assert host_probe.model_folder(place)["elsewhere_bytes"] == 9
    staged = place.replace("/Org/", "/.staging/Org/")
    plant(root, {staged + "/model-1.safetensors": "1234567", staged + "/model-2.safetensors.part": "123456"})
    assert host_probe.model_folder(place)["elsewhere_bytes"] == 13
    plant(root, {place + "/model-1.safetensors": "1234567"})
    assert host_probe.model_folder(place)["elsewhere_bytes"] == 0


def test_a_folder_that_only_root_may_enter(root: Path) -> None:
    plant(root, {"/open/config.json": "{}", "/closed/config.json": "{}"})
    for folder in (root, root / "open"):
        folder.chmod(0o755)
    (root / "closed").chmod(0o700)
    assert not host_probe.open_to_all(str(root / "closed/config.json"))


def test_free_space_of_a_folder_that_is_not_there() -> None:
    for path in ("/no/such/folder", "relative/to/nothing", ""):
        found = host_probe.disk(path)
        assert found["free"] > 0
        assert os.path.ismount(found["mount"])


# --- no host breaks it -------------------------------------------------------------------------------------------


def test_a_machine_without_anything(root: Path) -> None:
    found = host_probe.probe(["/opt"], ["/data/m"])
    assert found["memory"]["total"] == 0
    assert found["gpus"] == []
    assert found["numa"][0]["node"] == 0


def test_a_fact_that_fails_does_not_end_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise OSError("unforeseen")

    monkeypatch.setattr(probe_gpu, "gpus", fail)
    monkeypatch.setattr(probe_nvidia, "facts", fail)
    for name in ("memory", "numa", "listeners", "firewall", "pythons", "os_release", "disk"):
        monkeypatch.setattr(host_probe, name, fail)
    found = host_probe.probe(["/opt"])
    assert found["errors"]["memory"] == "OSError: unforeseen"
    assert found["disk"]["/opt"]["free"] == 0


def test_programs_that_hang_or_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as soon:
        soon.setattr(host_probe, "TIMEOUT", 0.2)
        assert host_probe.run(["sleep", str(HANGS)]) == (probe_gpu.TIMED_OUT, "no answer within 0.2 seconds")
    monkeypatch.setattr(host_probe, "TIMEOUT", HANGS)
    assert host_probe.run(["/no/such/program"])[0] == -1
    assert host_probe.run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == (3, "out\nerr\n")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_no_text_breaks_the_readers(text: str) -> None:
    for parse in (
        probe_gpu.parse,
        probe_gpu.mebibytes,
        host_probe.parse_memory_devices,
        host_probe.cpu_text,
        host_probe.kilobytes,
        host_probe.number,
        host_probe.ufw_ports,
        host_probe.firewalld_ports,
    ):
        parse(text)


def test_it_is_written_for_old_pythons() -> None:
    """Ansible needs Python 3.8 on hosts; no later syntax, or the report of an old host would be a traceback."""
    for module in (host_probe, probe_gpu, probe_nvidia):
        assert module.__file__
        ast.parse(Path(module.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))


def test_this_machine() -> None:
    """The real thing, through Ansible."""
    done = subprocess.run(
        ["ansible", "-m", "modelhost.serving.host_probe", "-a", "paths=/,/opt", "-c", "local", "localhost"],
        cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "errors: {}" in done.stdout


def test_a_release_candidate_is_no_python_for_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, says in (("python3.11", "Python 3.11.0rc1"), ("python3.12", "Python 3.12.3")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {says}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert [name for name in host_probe.pythons() if name in ("3.11", "3.12")] == ["3.12"]
