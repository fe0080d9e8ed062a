# MIT licence (see LICENSE)
"""What engines need of NVIDIA's driver and GPUs. Pure; runs on the controller."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import capacity, catalog, hardware, vllm_flags
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem

ROOT = Path(__file__).resolve().parents[2]
GIB = 1024**3

#: CUDA's major version → the oldest driver that runs programs built with it.
#: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
DRIVERS = {11: 450, 12: 525, 13: 580}
#: The oldest compute capability that vLLM's build knows; CUDA 13 dropped what came before Turing.
MIN_CAPABILITY = 7.5
#: From here FP8 is computed natively (Ada, Hopper); below, vLLM computes in BF16 with weights stored as FP8.
FP8_CAPABILITY = 8.9


def version(text: str) -> tuple[int, ...]:
    """`580.95.05` → (580, 95, 5)"""
    return tuple(int(part) for part in str(text).split(".") if part.isdigit())


@functools.cache
def cuda_major() -> int:
    """The CUDA that the pinned build of vLLM is made with, from its lock file."""
    lock = (ROOT / "roles" / "vllm" / "files" / "locks" / "cuda.txt").read_text(encoding="utf-8")
    found = re.search(r"(?m)^nvidia-cuda-runtime(?:-cu\d+)?==(\d+)\.", lock)
    return int(found.group(1)) if found else 0


def driver_problems(host: str, probe: dict[str, Any], variables: Any, variant: str) -> list[dict[str, Any]]:
    """A driver that is missing, broken or too old."""
    found = []
    driver, devices = probe["nvidia_driver"], probe.get("nvidia_devices", 0)
    complaint = probe.get("nvidia_smi_complaint")
    asked = str(variables.get("vllm_variant") or "auto")
    least = DRIVERS.get(cuda_major(), 0)
    install = f"install NVIDIA's driver {least} or later (Ubuntu: sudo ubuntu-drivers install --gpgpu) and restart"
    if probe["wsl"]:
        install = f"install NVIDIA's driver {least} or later in Windows, and none inside WSL"
    elif probe.get("container"):
        install = "pass the GPUs and the driver of its host through to this container"
    if not driver and asked == "cuda":
        seen = f"{devices} NVIDIA device(s) are there, but " if devices else ""
        why = f"{seen}no NVIDIA driver is loaded"
        found.append(problem(host, "vllm_variant", asked, why, f"{install}, or set vllm_variant: cpu"))
    elif not driver and asked == "auto" and devices:
        why = f"{devices} NVIDIA device(s) are there, but no driver is loaded, so the engines would run on the CPU"
        found.append(problem(host, "vllm_variant", asked, why, f"{install}, or set vllm_variant: cpu if that is meant"))
    if variant != "cuda" or not driver:
        return found
    if complaint and not probe.get("gpus"):
        why = f"the driver does not answer: {complaint}"
        fix = "restart the host; if that does not help, install the driver again"
        found.append(problem(host, "NVIDIA driver", driver, why, fix))
    if version(driver) < (least,):
        why = f"vLLM's build is made with CUDA {cuda_major()}, which needs driver {least} or later"
        found.append(problem(host, "NVIDIA driver", driver, why, f"{install}, or set vllm_variant: cpu"))
    return found


def used_gpus(instance: dict[str, Any], gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The GPUs that an instance may use."""
    named = instance.get("devices")
    return [gpu for gpu in gpus if gpu["index"] in named] if named else gpus


def gpu_problems(host: str, probe: dict[str, Any], variables: Any) -> list[dict[str, Any]]:
    """GPUs against what each instance asks of them."""
    gpus = probe.get("gpus") or []
    if not gpus:
        if not probe["nvidia_driver"] or probe.get("nvidia_smi_complaint"):
            return []  # said with the driver
        why = "nvidia-smi is not there or shows no GPU"
        fix = "install the driver's tools (Ubuntu: nvidia-utils), or set vllm_variant: cpu"
        return [problem(host, "GPUs", None, why, fix)]
    found = []
    entries = catalog.entries(variables.get("vllm_models") or [])
    used: dict[int, dict[str, Any]] = {}
    machine = hardware.of_host({**variables, "host_preflight_probe": probe, "vllm_variant": "cuda"})
    assert machine
    instances = variables.get("vllm_instances") or []
    placed = vllm_flags.assessments(instances, entries, variables.get("vllm_flags"), machine)
    for index, instance in enumerate(instances):
        where = f"vllm_instances[{index}]"
        entry = vllm_flags.resolve(instance, entries)
        chosen = vllm_flags.chosen_flags(instance, entry, variables.get("vllm_flags"))
        flags = {name: value for name, (value, _origin) in chosen.items()}
        # Without `devices` it gets the first that no other instance names, as many as it needs.
        given = placed[index].get("devices")
        mine = [gpu for gpu in gpus if gpu["index"] in given] if given else used_gpus(instance, gpus)
        used.update({gpu["index"]: gpu for gpu in mine})
        needed = devices_of(flags)
        found += count_problems(host, where, instance, needed, gpus)
        found += capability_problems(host, where, entry, mine)
        share = placed[index].get("gpu_memory_utilization") or capacity.GPU_MEMORY_UTILIZATION
        share = float(flags.get("gpu_memory_utilization") or share)
        found += room_problems(host, where, share, mine, probe)
    return found + health_problems(host, list(used.values()), probe)


def devices_of(flags: dict[str, Any]) -> int:
    """GPUs that an engine with these flags takes."""
    needed = 1
    for flag in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        needed *= int(flags.get(flag) or 1)
    return needed


def count_problems(
    host: str, where: str, instance: dict[str, Any], needed: int, gpus: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Indices that do not exist, and more GPUs than there are."""
    there = [gpu["index"] for gpu in gpus]
    named = instance.get("devices") or []
    absent = [index for index in named if index not in there]
    if absent:
        why = f"this host has {len(there)} GPU(s), with the indices {', '.join(map(str, there))}"
        return [problem(host, f"{where}.devices", named, why, f"take out {', '.join(map(str, absent))}")]
    if needed > len(there) and not named:
        why = f"this needs {needed} GPUs, and this host has {len(there)} ({gpus[0]['name']})"
        fix = f"set it to {len(there)} or less, or leave it out"
        size = instance.get("tensor_parallel_size") or needed
        return [problem(host, f"{where}.tensor_parallel_size", size, why, fix)]
    return []


def capability_problems(
    host: str, where: str, entry: dict[str, Any], gpus: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """GPUs that are too old for a checkpoint."""
    found = []
    for gpu in {gpu["name"]: gpu for gpu in gpus}.values():
        if not gpu["compute_capability"]:
            continue
        has, least = float(gpu["compute_capability"]), float(entry.get("minimum_compute_capability") or MIN_CAPABILITY)
        fp8 = FP8_CAPABILITY if entry.get("quantization") == "fp8" else 0
        native = float(entry.get("native_compute_capability") or fp8)
        if has < least:
            why = f"this model needs compute capability {least}, and {gpu['name']} has {has}"
            fix = "choose another checkpoint of it (AWQ, GPTQ or BF16), or name newer GPUs in `devices`"
            if least == MIN_CAPABILITY:
                why = f"vLLM's build needs compute capability {least}, and {gpu['name']} has {has}"
                fix = "use a GPU of the Turing generation or later, or set vllm_variant: cpu"
            found.append(problem(host, f"{where}.model", entry["id"], why, fix))
        elif has < native:
            why = (
                f"{gpu['name']} (compute capability {has}) does not compute in this checkpoint's format, which needs "
                f"{native}: vLLM keeps the weights in it and computes in BF16, which saves memory and brings no speed"
            )
            fix = "expect that, or choose an AWQ or GPTQ checkpoint, which is made for such GPUs"
            found.append(problem(host, f"{where}.model", entry["id"], why, fix, "warning"))
    return found


def room_problems(
    host: str, where: str, share: float, gpus: list[dict[str, Any]], probe: dict[str, Any]
) -> list[dict[str, Any]]:
    """GPU memory that others hold: vLLM does not start where less is free than it shall take (`share`)."""
    found = []
    for gpu in gpus:
        free = gpu["memory_free"] + gpu.get("memory_engines", 0)
        if not gpu["memory_total"] or free >= share * gpu["memory_total"]:
            continue
        holders = [
            f"{item['process']} ({item['unit'] or 'process ' + str(item['pid'])}, {item['memory'] / GIB:.1f} GiB)"
            for item in probe.get("gpu_processes") or []
            if item["gpu_uuid"] == gpu["uuid"] and not item["unit"].startswith("vllm@")
        ]
        why = (
            f"the engine takes {share:g} of GPU {gpu['index']} ({share * gpu['memory_total'] / GIB:.1f} GiB), and only "
            f"{free / GIB:.1f} of {gpu['memory_total'] / GIB:.1f} GiB are free"
            + (f": {', '.join(holders)}" if holders else "")
        )
        lower = int(free / gpu["memory_total"] * 100 - 1) / 100
        fix = "stop what holds it, or name other GPUs in `devices`"
        if lower >= 0.2:
            fix += f", or set gpu_memory_utilization: {lower:g} if the model still fits"
        found.append(problem(host, f"{where}.flags.gpu_memory_utilization", share, why, fix))
    return found


def health_problems(host: str, gpus: list[dict[str, Any]], probe: dict[str, Any]) -> list[dict[str, Any]]:
    """GPUs and their connections as they are."""
    found = []
    for gpu in gpus:
        place = f"GPU {gpu['index']}"
        if gpu.get("mig"):
            why = "this GPU is divided by MIG, and an engine would see one part of it"
            fix = f"sudo nvidia-smi -i {gpu['index']} -mig 0, or name another GPU in `devices`"
            found.append(problem(host, place, gpu["name"], why, fix))
        if gpu.get("ecc_errors"):
            why = f"its memory had {gpu['ecc_errors']} uncorrectable error(s) since the driver was loaded"
            fix = (
                f"look at `nvidia-smi -q -d ECC,ROW_REMAPPER -i {gpu['index']}` and the kernel's log (Xid); restart "
                "the host, and have the card replaced if it comes again"
            )
            found.append(problem(host, place, gpu["name"], why, fix, "warning"))
        width, most = gpu.get("pcie_width"), gpu.get("pcie_width_max")
        if width and most and width < most:
            why = f"it has {width} of {most} PCI Express lanes: loading, and a model split over GPUs, are slower"
            fix = "see whether the card sits well and in a slot with all lanes; some cards use only eight by design"
            found.append(problem(host, place, gpu["name"], why, fix, "warning"))
    if probe.get("nvswitch") and probe.get("fabricmanager") != "active":
        contained = bool(probe.get("container"))
        state = "not installed" if probe.get("fabricmanager") == "absent" else "not running"
        why = f"the GPUs are joined by NVSwitch, and nvidia-fabricmanager is {state}: CUDA ends with error 802"
        fix = (
            f"install nvidia-fabricmanager of exactly the driver's version ({probe['nvidia_driver']}), then sudo "
            "systemctl enable --now nvidia-fabricmanager"
        )
        if contained:
            fix = "make sure that it runs on the host of this container"
        found.append(problem(host, "nvidia-fabricmanager", state, why, fix, "warning" if contained else "error"))
    return found
