"""What preflight says of NVIDIA's driver and GPUs. No GPU is needed."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import preflight_gpu, problems
from nvidia_world import FACTS, HOST, PIN, UBUNTU

GIB = 1024**3


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
