# MIT licence (see LICENSE)
"""What engines need of NVIDIA's driver and GPUs. Pure; runs on the controller."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import (
    capacity,
    catalog,
    hardware,
    nvidia_plan,
    runtime,
    vllm_flags,
)
from ansible_collections.modelhost.serving.plugins.module_utils.nvidia_plan import (
    DRIVERS,
    cuda_major,
    oldest_driver,
    version,
)
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem

__all__ = ["DRIVERS", "cuda_major", "driver_problems", "gpu_problems", "version", "will_have_driver"]

GIB = 1024**3
#: The oldest compute capability that vLLM's build knows; CUDA 13 dropped what came before Turing.
MIN_CAPABILITY = 7.5
#: From here FP8 is computed natively (Ada, Hopper); below, vLLM computes in BF16 with weights stored as FP8.
FP8_CAPABILITY = 8.9
#: What programs do to themselves (a wrong address, an end before their time), and no fault of a card.
#: https://docs.nvidia.com/deploy/xid-errors/
PROGRAM_XIDS = {13, 31, 43, 45, 68, 69}
#: What `nvidia-smi -q` says of a GPU's fabric where all is well; nothing where it does not know the question.
READY = (None, "", "N/A", "Completed")
#: Data-centre Blackwell (B200, B300): FlashInfer fetches ready-made kernels for it from NVIDIA while the engine runs.
FETCHED_KERNELS = (10.0, 11.0)
#: The card is gone until the host starts again.
LOST_XID = 79


# --- the driver --------------------------------------------------------------------------------------------------


def plan_of(probe: dict[str, Any], variables: Any) -> dict[str, Any]:
    """What the role accelerator will do about the driver; empty where it is not its business."""
    wishes = nvidia_plan.options(variables)
    build = str(variables.get("vllm_variant") or "auto")
    if variables.get("accelerator_state", "present") != "present":
        return {}
    if nvidia_plan.provider(probe, str(wishes["provider"]), build) != "nvidia":
        return {}
    return nvidia_plan.plan(probe, wishes)


def will_have_driver(probe: dict[str, Any], variables: Any) -> bool:
    """Whether a driver is there, or this run installs one: what `vllm_variant: auto` goes by."""
    if probe.get("nvidia_driver"):
        return True
    plan = plan_of(probe, variables)
    return plan.get("action") == "install" and not plan["problems"]


def driver_comes(probe: dict[str, Any], variables: Any) -> bool:
    """Whether this run installs the first driver: until then GPUs cannot be asked."""
    return not probe.get("nvidia_driver") and will_have_driver(probe, variables)


def driver_problems(host: str, probe: dict[str, Any], variables: Any, variant: str) -> list[dict[str, Any]]:
    """A driver that is missing, broken or too old, and what is done about it."""
    driver, devices = probe["nvidia_driver"], probe.get("nvidia_devices", 0)
    complaint, asked = probe.get("nvidia_smi_complaint"), str(variables.get("vllm_variant") or "auto")
    least, plan = oldest_driver(), plan_of(probe, variables)
    found = [problem(host, **item) for item in named(plan.get("problems") or [])]
    if plan.get("action") in ("install", "replace") and not found:
        found += told(host, probe, variables, plan)
    elif not driver and devices and asked in ("auto", "cuda") and not found:
        why = "no driver is loaded" + (", so the engines would run on the CPU" if asked == "auto" else "")
        fix = f"{way_to_driver(probe, plan, least)}, or set vllm_variant: cpu" + (
            " if that is meant" if asked == "auto" else ""
        )
        found.append(
            problem(host, "vllm_variant", asked, f"{devices} NVIDIA device(s) are there, but {why}", fix),
        )
    elif not driver and asked == "cuda" and not devices:
        why = "no NVIDIA driver is loaded, and there is no NVIDIA device on the PCI bus"
        fix = "see that the card sits well and is switched on in the firmware, or that the virtual machine is given it"
        if probe["wsl"] or probe.get("container"):
            why, fix = "no NVIDIA driver is loaded", way_to_driver(probe, plan, least)
        found.append(problem(host, "vllm_variant", asked, why, f"{fix}; or set vllm_variant: cpu"))
    if variant != "cuda" or not driver or plan.get("action") == "replace":
        return found
    coming = (probe.get("nvidia") or {}).get("next_kernel") or {}
    if coming and not coming["module"]:
        kernel = coming["name"]
        why = f"the next start is with kernel {kernel}, for which there is no NVIDIA module: no driver would be there"
        fix = (
            "where the driver is held, an archive has modules of its newest driver only for a new kernel: keep the old "
            "kernel, or plan an update of the driver with this restart (accelerator_nvidia_replace_driver)"
        )
        found.append(problem(host, "NVIDIA driver", driver, why, fix, "warning"))
    if probe.get("nvidia_smi_slow"):
        why = (
            f"nvidia-smi gave {complaint}: the driver is loaded and slow, as where it starts all GPUs anew for each "
            "question because persistence is off"
        )
        fix = "sudo nvidia-smi -pm 1, and run this again (the role accelerator keeps it on from then on)"
        found.append(problem(host, "NVIDIA driver", driver, why, fix))
    elif complaint and not probe.get("gpus"):
        why = f"the driver does not answer: {complaint}"
        reason = nvidia_plan.restart_reason(probe)
        fix = "restart the host; if that does not help, install the driver again"
        if reason:
            why, fix = f"{why} ({reason})", "restart the host, or set accelerator_allow_reboot: true"
            allowed = bool(nvidia_plan.options(variables)["allow_reboot"])
            # The run restarts it and goes on.
            return [*found, problem(host, "NVIDIA driver", driver, why, fix, "warning" if allowed else "error")]
        found.append(problem(host, "NVIDIA driver", driver, why, fix))
    if version(driver) < (least,):
        why = f"vLLM's build is made with CUDA {cuda_major()}, which needs driver {least} or later"
        if plan.get("action") == "keep":
            why += "; a driver that works is not replaced unasked"
        fix = f"{way_to_driver(probe, plan, least)}, or set vllm_variant: cpu"
        found.append(problem(host, "NVIDIA driver", driver, why, fix))
    return found


def named(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A plan's problems in the words of problem()."""
    return [
        {
            "variable": item["variable"],
            "value": item["value"],
            "why": item["problem"],
            "fix": item["fix"],
            "level": item["level"],
        }
        for item in items
    ]


def way_to_driver(probe: dict[str, Any], plan: dict[str, Any], least: int) -> str:
    """How this host gets a driver that is new enough."""
    if probe["wsl"]:
        return f"install NVIDIA's driver {least} or later in Windows, and none inside WSL"
    if probe.get("container"):
        return "pass the GPUs and the driver of its host through to this container"
    if not plan:
        return "leave accelerator_provider and accelerator_state out, so that this run installs it"
    if probe["nvidia_driver"]:
        return (
            "set accelerator_nvidia_replace_driver: true (and accelerator_allow_reboot: true), or replace it yourself"
        )
    return (
        f"set accelerator_nvidia_driver_source: auto, or install NVIDIA's driver {least} or later yourself and restart"
    )


def told(host: str, probe: dict[str, Any], variables: Any, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """What the run will do, before it does it. No mistake, but something to know."""
    facts, wishes = probe.get("nvidia") or {}, nvidia_plan.options(variables)
    devices = probe.get("nvidia_devices", 0)
    why = f"{devices} NVIDIA device(s) are there; {plan['why']}" if devices else plan["why"]
    fix = "nothing: no restart is expected"
    if plan["modules"] and wishes["allow_reboot"]:
        fix = "nothing: the host is restarted only if the archive has modules for a newer kernel alone"
    if probe["nvidia_driver"] or facts.get("other_driver"):
        other = f"the kernel's own driver {facts.get('other_driver')} holds the GPUs"
        reason = "the old module is in use" if probe["nvidia_driver"] else other
        fix = f"the host is restarted, because {reason}"
        if not wishes["allow_reboot"]:
            fix = (
                f"the host has to be restarted, because {reason}: the run stops for it there; restart it and run "
                "again, or set accelerator_allow_reboot: true"
            )
    running = nvidia_plan.engines_running(probe)
    if plan["action"] == "replace" and running:
        fix += f"; {', '.join(running)} are stopped for it"
    return [problem(host, "NVIDIA driver", probe["nvidia_driver"] or None, why, fix, "warning")]


# --- the GPUs ----------------------------------------------------------------------------------------------------


def used_gpus(instance: dict[str, Any], gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The GPUs that an instance may use."""
    named = instance.get("devices")
    return [gpu for gpu in gpus if gpu["index"] in named] if named else gpus


def gpu_problems(host: str, probe: dict[str, Any], variables: Any) -> list[dict[str, Any]]:
    """GPUs against what each instance asks of them."""
    gpus = probe.get("gpus") or []
    if driver_comes(probe, variables):
        return device_problems(host, probe, variables)
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
    placed: list[dict[str, Any]] = [{} for _item in instances]
    if machine["devices"]:
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
        if runtime.of_engines(probe, variables).get(str(instance.get("name"))) == "venv":
            found += kernel_problems(host, f"{where}.runtime" if instance.get("runtime") else "vllm_runtime", mine)
        share = placed[index].get("gpu_memory_utilization") or capacity.GPU_MEMORY_UTILIZATION
        share = float(flags.get("gpu_memory_utilization") or share)
        found += room_problems(host, where, share, mine, probe)
    return (
        found + missing_problems(host, probe, variables) + health_problems(host, list(used.values()), probe, variables)
    )


def device_problems(host: str, probe: dict[str, Any], variables: Any) -> list[dict[str, Any]]:
    """What can be judged while only the PCI bus can be asked; the rest is judged when the driver is there."""
    devices, found = int(probe.get("nvidia_devices") or 0), missing_problems(host, probe, variables)
    entries = catalog.entries(variables.get("vllm_models") or [])
    for index, instance in enumerate(variables.get("vllm_instances") or []):
        chosen = vllm_flags.chosen_flags(instance, vllm_flags.resolve(instance, entries), variables.get("vllm_flags"))
        needed = devices_of({name: value for name, (value, _origin) in chosen.items()})
        if needed > devices:
            why = f"this needs {needed} GPUs, and this host has {devices} NVIDIA device(s)"
            size = instance.get("tensor_parallel_size") or needed
            where = f"vllm_instances[{index}].tensor_parallel_size"
            found.append(problem(host, where, size, why, f"set it to {devices} or less, or leave it out"))
    return found


def missing_problems(host: str, probe: dict[str, Any], variables: Any) -> list[dict[str, Any]]:
    """GPUs that somebody expects, or that sit on the bus and do not answer."""
    expected = int(nvidia_plan.options(variables)["nvidia_expected_gpus"] or 0)
    devices, there = int(probe.get("nvidia_devices") or 0), len(probe.get("gpus") or [])
    seen = there if probe.get("nvidia_driver") else devices
    lost = [item["pci"] for item in (probe.get("nvidia") or {}).get("xids") or [] if item["xid"] == LOST_XID]
    more = f"; the kernel's log says that {', '.join(lost)} fell off the bus (Xid 79)" if lost else ""
    fix = "restart the host; if it stays away, see to the card's seat and power, and have it replaced"
    if expected and seen < expected:
        why = f"this host shows {seen} GPU(s) of {expected}{more}"
        return [
            problem(host, "accelerator_nvidia_expected_gpus", expected, why, f"{fix}; or set the number that is right")
        ]
    if there and there < devices and not probe.get("wsl") and not probe.get("container"):
        why = f"{devices} NVIDIA devices are on the PCI bus, and the driver shows {there} GPU(s){more}"
        why += hidden(probe)
        return [problem(host, "GPUs", there, why, fix, "warning")]
    return []


def hidden(probe: dict[str, Any]) -> str:
    """Which devices of the PCI bus nvidia-smi does not show, and whether the driver took them, as a half-sentence."""
    facts, shown = probe.get("nvidia") or {}, [gpu.get("pci") or "" for gpu in probe.get("gpus") or []]
    away = [item["pci"] for item in facts.get("devices") or [] if not any(same_slot(item["pci"], at) for at in shown)]
    taken = [slot for slot in away if any(same_slot(slot, at) for at in facts.get("taken") or [])]
    parts = [f"without {', '.join(away)}"] if away else []
    parts += [f"the driver took {', '.join(taken)} and cannot use it"] if taken else []
    return "".join(f"; {part}" for part in parts)


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


def kernel_problems(host: str, where: str, gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """GPUs whose kernels no virtual environment brings: its engines reach nothing from which to fetch them."""
    for gpu in gpus:
        if gpu["compute_capability"] and FETCHED_KERNELS[0] <= float(gpu["compute_capability"]) < FETCHED_KERNELS[1]:
            why = (
                f"{gpu['name']} has compute capability {gpu['compute_capability']}, for which FlashInfer fetches "
                "kernels from NVIDIA while the engine runs, and engines here reach no network"
            )
            return [problem(host, where, "venv", why, "set it to docker, where an image brings its kernels")]
    return []


def room_problems(
    host: str, where: str, share: float, gpus: list[dict[str, Any]], probe: dict[str, Any]
) -> list[dict[str, Any]]:
    """GPU memory that others hold: vLLM does not start where less is free than it shall take (`share`)."""
    found = []
    for gpu in gpus:
        if gpu["memory_total"] is None or gpu["memory_free"] is None:
            # Told once, by memory_problems.
            continue
        free = gpu["memory_free"] + gpu.get("memory_engines", 0)
        if free >= share * gpu["memory_total"]:
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


def health_problems(
    host: str, gpus: list[dict[str, Any]], probe: dict[str, Any], variables: Any
) -> list[dict[str, Any]]:
    """GPUs and their connections as they are."""
    found = []
    facts = probe.get("nvidia") or {}
    for gpu in gpus:
        place = f"GPU {gpu['index']}"
        found += worn_problems(host, place, gpu, facts) + memory_problems(host, place, gpu)
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
    if nvidia_plan.switched(probe):
        found += fabric_problems(host, probe, plan_of(probe, variables))
    return found


def memory_problems(host: str, place: str, gpu: dict[str, Any]) -> list[dict[str, Any]]:
    """A GPU that does not tell how much memory it has."""
    if gpu["memory_total"] is not None:
        return []
    known = hardware.gpu_row(gpu["name"]).get("memory_gib")
    why = "nvidia-smi tells no size of its memory, as where it shares the CPU's"
    end = (
        f"; {known:g} GiB are reckoned with (catalog/hardware.yml)" if known else ", so nothing can be reckoned for it"
    )
    fix = "set max_model_len and gpu_memory_utilization for its engine yourself, and watch the engine's start"
    return [problem(host, place, gpu["name"], why + end, fix, "warning")]


def worn_problems(host: str, place: str, gpu: dict[str, Any], facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What a GPU remembers of its memory, its slot, and what the kernel's log says of it."""
    found, name = [], gpu["name"]
    if gpu.get("rows_failed"):
        why = "a row of its memory is defective, and there is no spare row left to take its place"
        found.append(problem(host, place, name, why, "have the card replaced, or name other GPUs in `devices`"))
    elif gpu.get("rows_pending"):
        why = "a row of its memory is defective and is replaced by a spare one when the GPU is reset"
        found.append(problem(host, place, name, why, "restart the host at the next occasion", "warning"))
    if gpu.get("ecc_errors_ever") and not gpu.get("ecc_errors"):
        errors = gpu["ecc_errors_ever"]
        why = f"its memory had {errors} uncorrectable error(s) in its life, none since the driver was loaded"
        found.append(problem(host, place, name, why, "watch it; have it replaced if the number grows", "warning"))
    generation, most = gpu.get("pcie_generation"), gpu.get("pcie_generation_card")
    if generation and most and generation < most:
        why = f"its slot runs PCI Express {generation}, and the card could {most}"
        fix = "see whether the slot, a riser or the firmware's setting limits it; else expect slower loading"
        found.append(problem(host, place, name, why, fix, "warning"))
    told_of = sorted({item["xid"] for item in facts.get("xids") or [] if same_slot(item["pci"], gpu.get("pci") or "")})
    faults = [str(number) for number in told_of if number not in PROGRAM_XIDS]
    if faults:
        why = f"the driver reported Xid {', '.join(faults)} since the host started"
        fix = "journalctl -k -b --grep Xid; what the numbers mean: https://docs.nvidia.com/deploy/xid-errors/"
        found.append(problem(host, place, name, why, fix, "warning"))
    return found


def same_slot(one: str, other: str) -> bool:
    """`0000:01:00` of the kernel's log and `00000000:01:00.0` of nvidia-smi."""
    return bool(one) and one.split(".")[0].split(":")[-2:] == other.split(".")[0].split(":")[-2:]


def fabric_problems(host: str, probe: dict[str, Any], plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The fabric manager: there, running, of exactly the driver's version. plan: what the role sees to, if anything."""
    mended = bool(plan.get("fabric"))
    driver, level = probe["nvidia_driver"], "warning" if mended else "error"
    has = (probe.get("nvidia") or {}).get("fabricmanager") or ""
    by_hand = (
        f"install nvidia-fabricmanager of exactly the driver's version ({driver}), then sudo systemctl enable --now "
        "nvidia-fabricmanager"
    )
    mends = f"nothing: the run installs the one of exactly the driver's version ({driver}), holds both and starts it"
    if probe.get("container"):
        level, by_hand = "warning", "make sure that it runs on the host of this container"
    # Else told with the plan.
    missing = [] if plan.get("action", "none") != "none" else nvidia_plan.switch_problem(probe)
    if missing:
        return [problem(host, **item) for item in named(missing)]
    if has and driver and has != driver:
        why = (
            f"the driver is {driver}, and a fabric manager of another version does not start: CUDA ends with error 802"
        )
        return [problem(host, "nvidia-fabricmanager", has, why, mends if mended else by_hand, level)]
    stuck = [gpu for gpu in probe.get("gpus") or [] if gpu.get("fabric") not in READY]
    if probe.get("fabricmanager") == "active" and stuck:
        states = ", ".join(f"GPU {gpu['index']}: {gpu['fabric']}" for gpu in stuck)
        why = f"the fabric manager runs and has not joined all GPUs ({states}): CUDA ends with error 802"
        fix = "look at journalctl -u nvidia-fabricmanager and nvidia-smi -q (Fabric); restart it, or the host"
        return [problem(host, "nvidia-fabricmanager", "active", why, fix, "warning" if mended else "error")]
    if probe.get("fabricmanager") == "active":
        return []
    state = "not installed" if probe.get("fabricmanager") == "absent" else "not running"
    why = f"the GPUs are joined by NVSwitch, and nvidia-fabricmanager is {state}: CUDA ends with error 802"
    return [problem(host, "nvidia-fabricmanager", state, why, mends if mended else by_hand, level)]
