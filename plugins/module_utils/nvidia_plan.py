# MIT licence (see LICENSE)
"""What the role accelerator does with a host's NVIDIA driver, and why. Pure; runs on the controller.

Preflight tells what this says and the role does it, so that the two cannot differ.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils.own_files import read_yaml

ROOT = Path(__file__).resolve().parents[2]

#: CUDA's major version → the oldest driver that runs programs built with it.
#: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
DRIVERS = {11: 450, 12: 525, 13: 580}
#: The first PCI device number of the Turing generation. From there on NVIDIA recommends its open kernel modules, for
#: Blackwell there are no others; Volta and older need the proprietary ones.
#: https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/kernel-modules.html; the numbers are those of the
#: table of GPUs in https://github.com/NVIDIA/open-gpu-kernel-modules/blob/main/README.md
OPEN_FROM = 0x1E00
#: From this branch on NVIDIA's packages for Ubuntu carry no branch in their names.
#: https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/recent-updates.html
PLAIN_NAMES = 590
#: Systems that NVIDIA's repository has packages for and that this project knows the names of.
DISTRIBUTIONS = {("ubuntu", "22.04"), ("ubuntu", "24.04"), ("debian", "12")}
#: Ubuntu's archive has the current drivers, and their modules signed; Debian 12 stays at 535.
AUTOMATIC = {"ubuntu": "distribution"}

#: What the role's variables are when an inventory says nothing; a test holds them against its defaults.
DEFAULTS = {
    "provider": "auto",
    "allow_reboot": False,
    "nvidia_driver_source": "auto",
    "nvidia_driver_branch": "",
    "nvidia_driver_version": "",
    "nvidia_open_modules": "auto",
    "nvidia_replace_driver": False,
    "nvidia_expected_gpus": 0,
}


def version(text: Any) -> tuple[int, ...]:
    """`580.95.05` → (580, 95, 5)"""
    return tuple(int(part) for part in str(text or "").split(".") if part.isdigit())


@functools.cache
def cuda_major() -> int:
    """The CUDA that the pinned build of vLLM is made with, from its lock file."""
    lock = (ROOT / "roles" / "vllm" / "files" / "locks" / "cuda.txt").read_text(encoding="utf-8")
    found = re.search(r"(?m)^nvidia-cuda-runtime(?:-cu\d+)?==(\d+)\.", lock)
    return int(found.group(1)) if found else 0


def oldest_driver() -> int:
    """The oldest branch that runs the pinned build of vLLM."""
    return DRIVERS.get(cuda_major(), 0)


@functools.cache
def pins() -> dict[str, Any]:
    """The block `nvidia` of versions.yml."""
    found = read_yaml(ROOT / "versions.yml").get("nvidia") or {}
    assert isinstance(found, dict)
    return found


def options(variables: Any) -> dict[str, Any]:
    """The role's variables as an inventory has them, without the role's name before them."""
    found = {name: variables.get(f"accelerator_{name}") for name in DEFAULTS}
    return {name: DEFAULTS[name] if value is None else value for name, value in found.items()}


def provider(probe: dict[str, Any], wish: str, build: str = "auto") -> str:
    """Who prepares this host. wish: accelerator_provider. build: what vllm_variant says."""
    if wish != "auto":
        return wish
    there = bool(probe.get("nvidia_driver") or probe.get("nvidia_devices"))
    return "nvidia" if build == "cuda" or (there and build != "cpu") else "cpu"


# --- what is there -----------------------------------------------------------------------------------------------


def driver(probe: dict[str, Any]) -> str:
    """The version of the driver that runs."""
    return str(probe.get("nvidia_driver") or "")


def installed(probe: dict[str, Any]) -> dict[str, str]:
    """Packages of the driver."""
    found = (probe.get("nvidia") or {}).get("packages") or {}
    assert isinstance(found, dict)
    return found


def takes_open(probe: dict[str, Any], wish: str) -> bool:
    """Whether the open kernel modules are for this host's GPUs."""
    if wish != "auto":
        return wish == "open"
    numbers = [int(item["id"], 16) for item in (probe.get("nvidia") or {}).get("devices") or [] if item.get("id")]
    return all(number >= OPEN_FROM for number in numbers)


def server_names(packages: dict[str, str]) -> bool:
    """Whether the driver is Ubuntu's one for servers."""
    return any(re.match(r"nvidia-(?:utils|headless|driver|kernel-common).*-server", name) for name in packages)


def engines_running(probe: dict[str, Any]) -> list[str]:
    """Engines that run now."""
    return [unit for unit in probe.get("active_units") or [] if unit.startswith("vllm@")]


# --- names of packages -------------------------------------------------------------------------------------------


def driver_packages(probe: dict[str, Any], source: str, branch: str, opened: bool) -> list[str]:
    """Without a screen's parts (compute-only); of modules the ones that are built on the host."""
    if source == "distribution":
        return [f"nvidia-headless-no-dkms-{branch}-server{'-open' if opened else ''}", f"nvidia-utils-{branch}-server"]
    if probe.get("distribution") == "debian":
        # The last two are packages of their own there: what makes device nodes, and what keeps the driver loaded.
        kernel = "nvidia-kernel-open-dkms" if opened else "nvidia-kernel-dkms"
        return ["nvidia-driver-cuda", kernel, "nvidia-modprobe", "nvidia-persistenced"]
    end = f"-{branch}" if int(branch) < PLAIN_NAMES else ""
    names = [f"{name}{end}" for name in ("libnvidia-compute", "nvidia-utils", "nvidia-compute-utils")]
    return [*names, f"nvidia-dkms{end}{'-open' if opened else ''}"]


def anchor(packages: list[str]) -> str:
    """The package whose version stands for the driver's."""
    return next((name for name in packages if "utils" in name), packages[0])


def modules(source: str, branch: str, opened: bool, kernel: str) -> dict[str, str]:
    """Ubuntu's modules: made and signed by Canonical for one kernel, or to be built on the host."""
    if source != "distribution":
        return {}
    name = f"{branch}-server{'-open' if opened else ''}"
    prefix = f"linux-modules-nvidia-{name}-"
    return {"prefix": prefix, "signed": f"{prefix}{kernel}", "built": f"nvidia-dkms-{name}"}


def headers(probe: dict[str, Any]) -> list[str]:
    """What modules are built with here: the running kernel's headers, and what brings those of kernels to come."""
    own = [] if (probe.get("nvidia") or {}).get("headers") else [f"linux-headers-{probe.get('kernel', '')}"]
    return own + [f"linux-headers-{name}" for name in flavours(probe)]


def flavours(probe: dict[str, Any]) -> list[str]:
    """Kinds of kernels of which this host gets each new one: `generic`, `amd64`."""
    names = (probe.get("nvidia") or {}).get("kernels") or []
    return [name.removeprefix("linux-image-") for name in names if name.startswith("linux-image-")]


def module_choices(
    probe: dict[str, Any], what: dict[str, Any], allow_reboot: bool, rdepends: str = ""
) -> list[dict[str, Any]]:
    """Ways to the driver's modules, the best first: [{kind, packages, reboot}]. apt tells which can be gone.

    NVIDIA's repository has modules that are built here, and what is built with is all that is to be found. Ubuntu's
    archive builds modules for its newest kernel; those of older ones stay in it and may fit no driver any more.
    what: the plan. rdepends: what `apt-cache rdepends` says of the signed modules for the running kernel.
    """
    wanted, facts, found = what["modules"], probe.get("nvidia") or {}, []
    kinds = flavours(probe)
    if not wanted:
        return [{"kind": "built", "packages": what["headers"], "reboot": False}]
    coming = facts.get("next_kernel") or {}
    if what["version"] and coming.get("module") == what["version"]:
        # An earlier run installed it, and the host was not restarted since.
        found.append({"kind": "waiting", "packages": [], "reboot": True})
    if rdepends.strip():
        names = set(re.findall(r"(?m)^\s+(\S+)$", rdepends))
        # The metapackage beside the kernel's own brings modules with each new kernel.
        beside = sorted(name for name in names if name.removeprefix(wanted["prefix"]) in kinds)
        found.append({"kind": "signed", "packages": [wanted["signed"], *beside], "reboot": False})
    if kinds and allow_reboot:
        newest = [name for kind in kinds for name in (f"linux-image-{kind}", f"{wanted['prefix']}{kind}")]
        found.append({"kind": "newest", "packages": newest, "reboot": True})
    if not facts.get("secure_boot") or facts.get("mok"):
        found.append({"kind": "built", "packages": [wanted["built"], *what["headers"]], "reboot": False})
    return found


def kernel_packages(probe: dict[str, Any]) -> list[str]:
    """What has to be held with the driver: packages that would bring a kernel whose signed modules fit another driver
    alone. Modules that are built here follow each kernel."""
    signed = any(name.startswith("linux-modules-nvidia-") for name in installed(probe))
    return list((probe.get("nvidia") or {}).get("kernels") or []) if signed else []


def fabric_packages(probe: dict[str, Any], source: str, branch: str) -> list[str]:
    """The fabric manager, where GPUs are joined by NVSwitch. Ubuntu's is named after the branch and belongs to the
    drivers called -server."""
    if not switched(probe):
        return []
    return [f"nvidia-fabricmanager-{branch}"] if source == "distribution" else ["nvidia-fabricmanager"]


def fifth_generation(probe: dict[str, Any]) -> bool:
    """Whether GPUs are joined by NVSwitches that are no PCI devices (HGX B200, B300): by the mark of the bridges that
    lead to them, or by the GPUs' names where no bridge can be read."""
    names = [gpu.get("name") or "" for gpu in probe.get("gpus") or []]
    several = sum(bool(re.search(r"\bB[23]00\b", name)) for name in names) > 1
    return several or bool((probe.get("nvidia") or {}).get("bridges"))


def switched(probe: dict[str, Any]) -> bool:
    """Whether NVSwitch joins the GPUs, so that CUDA needs a fabric manager."""
    return bool(probe.get("nvswitch")) or fifth_generation(probe)


def switch_problem(probe: dict[str, Any]) -> list[dict[str, Any]]:
    """What NVSwitches of the fifth generation need and this role does not install, where it is missing."""
    facts = probe.get("nvidia") or {}
    lacking = [name for name, there in (("nvlsm", facts.get("nvlsm")), ("ib_umad", facts.get("ib_umad"))) if not there]
    if not fifth_generation(probe) or not lacking:
        return []
    why = (
        "the GPUs are joined by NVSwitches of the fifth generation, which need the subnet manager nvlsm and the "
        f"kernel's module ib_umad beside nvidia-fabricmanager; there is no {' and no '.join(lacking)}, so CUDA would "
        "end with error 802"
    )
    fix = (
        "sudo apt-get install nvlsm (NVIDIA's repository), echo ib_umad | sudo tee /etc/modules-load.d/ib_umad.conf, "
        "sudo modprobe ib_umad, and run this again: it brings nvidia-fabricmanager"
    )
    return [{"variable": "NVSwitch", "value": None, "problem": why, "fix": fix, "level": "error"}]


# --- the plan ----------------------------------------------------------------------------------------------------


def plan(probe: dict[str, Any], wishes: dict[str, Any]) -> dict[str, Any]:
    """What is done: action (none, keep, install, replace), why, and with what. `problems` are reasons not to.

    wishes: options() of the host.
    """
    facts = probe.get("nvidia") or {}
    loaded, least = driver(probe), oldest_driver()
    source = str(wishes["nvidia_driver_source"])
    chosen = AUTOMATIC.get(probe.get("distribution") or "", "nvidia") if source in ("auto", "keep") else source
    branch = str(wishes["nvidia_driver_branch"] or pins().get("driver", {}).get("branch") or least)
    asked = str(wishes["nvidia_driver_version"] or "")
    wanted = asked or (str(pins().get("driver", {}).get("version") or "") if chosen == "nvidia" else "")
    if asked and not wishes["nvidia_driver_branch"]:
        branch = asked.split(".")[0]
    result: dict[str, Any] = {
        "action": "none",
        "why": "",
        "source": chosen,
        "branch": branch,
        "version": loaded,
        "open": takes_open(probe, str(wishes["nvidia_open_modules"])),
        "packages": [],
        "modules": {},
        "headers": headers(probe),
        "fabric": [],
        "problems": [],
    }
    missing = switch_problem(probe)
    if probe.get("wsl"):
        result["why"] = "WSL: the driver is Windows's, and one inside would hide it; it is installed in Windows alone"
        return result
    if probe.get("container"):
        result["why"] = f"this is a container ({probe['container']}): the driver is its host's"
        return result
    if not loaded and not probe.get("nvidia_devices"):
        result["why"] = "no NVIDIA device on the PCI bus and no driver"
        return result
    if source == "keep" or (loaded and not replaces(wishes, loaded, wanted, least)):
        result["action"] = "keep"
        result["why"] = kept_because(facts, wishes, loaded, least)
        if loaded:
            # What was installed tells where more of exactly its version comes from.
            result["source"] = "distribution" if server_names(installed(probe)) else "nvidia"
            result["branch"] = loaded.split(".")[0]
            result["fabric"] = fabric_packages(probe, result["source"], result["branch"])
        result["problems"] = missing
        return result
    result["action"] = "replace" if loaded else "install"
    result["packages"] = driver_packages(probe, chosen, branch, result["open"])
    result["modules"] = modules(chosen, branch, result["open"], str(probe.get("kernel", "")))
    result["fabric"] = fabric_packages(probe, chosen, branch)
    # An archive may have a newer one meanwhile: what waits for a restart, with this kernel or the next, is completed,
    # not chased.
    waits = facts.get("module_on_disk") or (facts.get("next_kernel") or {}).get("module")
    there = installed(probe).get(anchor(result["packages"]), "") if waits else ""
    result["version"] = wanted or there.split(":")[-1].split("-")[0]
    kind = "open" if result["open"] else "proprietary"
    origin = "the distribution's packages" if chosen == "distribution" else "NVIDIA's repository"
    before = f"{loaded} is replaced by" if loaded else "no driver is loaded, so"
    end = "" if loaded else " is installed"
    result["why"] = f"{before} {result['version'] or branch} with {kind} kernel modules from {origin}{end}"
    result["problems"] = missing + obstacles(probe, wishes, result)
    return result


def replaces(wishes: dict[str, Any], loaded: str, wanted: str, least: int) -> bool:
    """Whether somebody asked for another driver than the one that works."""
    if not wishes["nvidia_replace_driver"]:
        return False
    return version(loaded) < (least,) or bool(wanted and wanted != loaded)


def kept_because(facts: dict[str, Any], wishes: dict[str, Any], loaded: str, least: int) -> str:
    """Why a driver stays."""
    if not loaded:
        return "accelerator_nvidia_driver_source is 'keep', and no driver is loaded: the host stays as it is"
    who = "NVIDIA's .run installer" if facts.get("runfile") else "somebody else or an earlier run"
    if version(loaded) < (least,):
        return f"driver {loaded} (from {who}) works and stays, although vLLM's build needs {least} or later"
    asked = "" if wishes["nvidia_driver_source"] == "auto" else ", whatever accelerator_nvidia_driver_source says"
    return f"driver {loaded} (from {who}) works and is new enough{asked}"


def obstacles(probe: dict[str, Any], wishes: dict[str, Any], what: dict[str, Any]) -> list[dict[str, Any]]:
    """What stands against it: [{variable, value, problem, fix, level}]."""
    facts, found = probe.get("nvidia") or {}, []
    system = (probe.get("distribution"), probe.get("distribution_version"))
    least, branch, source = oldest_driver(), what["branch"], what["source"]

    def add(variable: str, value: Any, why: str, fix: str, level: str = "error") -> None:
        found.append({"variable": variable, "value": value, "problem": why, "fix": fix, "level": level})

    if system not in DISTRIBUTIONS:
        why = "the role knows the driver's packages of Ubuntu 22.04 and 24.04 and of Debian 12 only"
        fix = f"install NVIDIA's driver {least} or later by hand and set accelerator_nvidia_driver_source: keep"
        add("accelerator_nvidia_driver_source", wishes["nvidia_driver_source"], why, fix)
        return found
    if not branch.isdigit() or int(branch) < least:
        why = f"vLLM's build is made with CUDA {cuda_major()}, which needs driver {least} or later"
        add("accelerator_nvidia_driver_branch", branch, why, f"set it to {least} or later, or leave it out")
        return found
    if source == "distribution" and system[0] == "debian":
        why = f"Debian 12 has driver 535, and vLLM's build needs {least} or later"
        add("accelerator_nvidia_driver_source", "distribution", why, "set it to nvidia or auto")
    if source == "nvidia" and what["version"] in ("", "unverified"):
        why = "versions.yml has no version for NVIDIA's repository yet (nvidia.driver.version)"
        fix = "fill it in, or set accelerator_nvidia_driver_version"
        add("accelerator_nvidia_driver_source", source, why, fix)
    if facts.get("runfile"):
        why = "a driver was installed here by NVIDIA's .run installer; packages beside it end in a mix of both"
        fix = "sudo nvidia-uninstall, restart, and run this again; or set accelerator_nvidia_driver_source: keep"
        add("NVIDIA driver", what["action"], why, fix)
    held = [name for name in facts.get("held") or [] if is_driver(name) and not fits(facts, name, what["version"])]
    if held and what["action"] == "install":
        why = f"these packages are held at another version: {', '.join(held)}"
        fix = f"sudo apt-mark unhold {' '.join(held)}, if nobody needs them as they are"
        add("held packages", None, why, fix)
    if facts.get("secure_boot") and not facts.get("mok") and not what["modules"]:
        why = (
            "Secure Boot is on, and the kernel refuses modules that are built here until the firmware knows the key "
            "that they are signed with"
        )
        fix = (
            "sudo apt-get install dkms mokutil openssl, sudo dkms generate_mok (Ubuntu 22.04: update-secureboot-policy "
            "--new-key), sudo mokutil --import /var/lib/dkms/mok.pub, restart, and confirm the key at the console"
        )
        if system[0] == "ubuntu":
            fix = f"set accelerator_nvidia_driver_source: distribution (Ubuntu signs its modules); or {fix}"
        add("Secure Boot", "enabled", why, f"{fix}; or switch Secure Boot off in the firmware")
    running = engines_running(probe)
    if what["action"] == "replace" and running and not wishes["allow_reboot"]:
        why = f"replacing the driver stops {', '.join(running)} until the host was restarted, and that is not allowed"
        fix = "set accelerator_allow_reboot: true, or stop the engines yourself before"
        add("accelerator_allow_reboot", False, why, fix)
    return found


def is_driver(name: str) -> bool:
    """Whether a package is of the driver, and not of the container toolkit or another product."""
    return not re.match(r"nvidia-container|libnvidia-container|nvidia-cuda|nvidia-docker", name)


def fits(facts: dict[str, Any], name: str, wanted: str) -> bool:
    """Whether an installed package is of the wanted version of the driver."""
    return bool(wanted) and (facts.get("packages") or {}).get(name, "").split(":")[-1].startswith(f"{wanted}-")


def of_version(packages: dict[str, str], wanted: str) -> list[str]:
    """Installed packages of exactly this version of the driver: what has to stay together."""
    return sorted(name for name in packages if wanted and fits({"packages": packages}, name, wanted))


def restart_reason(probe: dict[str, Any]) -> str:
    """Why the driver on disk can only be used after a restart; empty: it need not.

    What packages write to /run/reboot-required is not asked: they ask for a restart even where the new module could be
    loaded just so.
    """
    facts = probe.get("nvidia") or {}
    loaded, disk = facts.get("module_loaded") or "", facts.get("module_on_disk") or ""
    coming = facts.get("next_kernel") or {}
    there = disk or coming.get("module") or ""
    if loaded and there and loaded != there and not probe.get("gpus"):
        return f"module {loaded} is loaded and {there} is on disk"
    if not loaded and facts.get("other_driver"):
        return f"the kernel's own driver {facts['other_driver']} holds the GPUs"
    if not loaded and not disk and coming.get("module"):
        return f"there is no module for the running kernel, and one for {coming['name']}, the kernel of the next start"
    return ""
