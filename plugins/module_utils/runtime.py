# MIT licence (see LICENSE)
"""How services run on a host: from a virtual environment (`venv`) or in a container (`docker`). Pure.

`auto` takes the virtual environment wherever it can run, because it has fewer parts: a C library that the builds are
made for, a systemd that knows the units' sandbox. Anything older gets a container.
"""

from __future__ import annotations

import re
from typing import Any

#: vLLM's wheels are manylinux_2_34, those of LiteLLM's dependencies manylinux_2_28.
ENGINE_GLIBC, GATEWAY_GLIBC = (2, 34), (2, 28)
#: LoadCredential= and ProtectProc= of the units (systemd's NEWS for 247).
VENV_SYSTEMD = 247
#: Units that only run containers use nothing younger (Ubuntu 18.04 has it).
DOCKER_SYSTEMD = 237

RUNTIMES = ("venv", "docker")


def version(text: Any) -> tuple[int, ...]:
    """`2.31` → (2, 31)"""
    return tuple(int(part) for part in str(text or "").split(".") if part.isdigit())


def wheel_glibc(name: str) -> tuple[int, int]:
    """The oldest C library that a wheel runs with, by the tag in its file name; of several tags the oldest counts."""
    found = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)_", name)]
    if not found:
        raise ValueError(f"{name} has no manylinux tag")
    return min(found)


def wheel_fits(name: str, glibc: Any) -> bool:
    """Whether a wheel runs with a host's C library; where that is not known, nothing speaks against it."""
    return glibc is None or version(glibc) >= wheel_glibc(name)


def automatic(probe: dict[str, Any], glibc: tuple[int, ...]) -> str:
    """What `auto` means on a host with these facts; without facts the virtual environment is the best guess."""
    if probe.get("glibc") is None:
        return "venv"
    old = version(probe["glibc"]) < glibc or 0 < int(probe.get("systemd") or 0) < VENV_SYSTEMD
    return "docker" if old else "venv"


def resolved(wish: Any, probe: dict[str, Any], glibc: tuple[int, ...]) -> str:
    """`auto` or nothing worked out; anything else as it is."""
    return automatic(probe, glibc) if wish in (None, "", "auto") else str(wish)


def of_engines(probe: dict[str, Any], variables: Any) -> dict[str, str]:
    """Name of each instance → its runtime; what an instance says wins over the host's `vllm_runtime`."""
    common = variables.get("vllm_runtime")
    instances = variables.get("vllm_instances")
    return {
        str(item.get("name")): resolved(item.get("runtime") or common, probe, ENGINE_GLIBC)
        for item in (instances if isinstance(instances, list) else [])
        if isinstance(item, dict)
    }


def of_gateway(probe: dict[str, Any], variables: Any) -> str:
    """The gateway's runtime on this host."""
    return resolved(variables.get("litellm_runtime"), probe, GATEWAY_GLIBC)


def engines_use_containers(host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]]) -> bool:
    """Whether an engine of this host runs in a container."""
    return host in groups.get("engines", []) and "docker" in of_engines(probe, variables).values()


def uses_containers(host: str, probe: dict[str, Any], variables: Any, groups: dict[str, list[str]]) -> bool:
    """Whether anything of ours on this host runs in a container."""
    gateway = host in groups.get("gateways", []) and of_gateway(probe, variables) == "docker"
    return gateway or engines_use_containers(host, probe, variables, groups)


def needs(variables: Any, host: str, groups: dict[str, list[str]]) -> dict[str, bool]:
    """What containers need of a host: `docker`, an engine for them; `nvidia`, GPUs inside them."""
    probe = variables.get("host_preflight_probe") or {}
    gpus = bool(probe.get("nvidia_devices") or probe.get("nvidia_driver"))
    on_gpus = gpus and str(variables.get("vllm_variant") or "auto") != "cpu"
    return {
        "docker": uses_containers(host, probe, variables, groups),
        "nvidia": on_gpus and engines_use_containers(host, probe, variables, groups),
    }
