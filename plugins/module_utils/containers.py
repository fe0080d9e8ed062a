# MIT licence (see LICENSE)
"""What follows `docker run` for an engine or a gateway. Pure; runs on the controller.

The same flags, addresses, folders and account as without a container: the host's network (so `host` and `port` mean
what they mean elsewhere, and loopback is the host's), the folders under their own paths, the service's own account.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

#: What any service may do: nothing. The root file system is read-only, and programs do not gain rights.
LOCKED = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp:exec"]


def pinned(pin: dict[str, Any]) -> str:
    """A pin of versions.yml as Docker takes it: by its digest, because a tag may move."""
    return f"{pin['repository']}@{pin['digest']}"


def memory_bytes(text: Any, total: int) -> int:
    """systemd's notation of a memory limit in bytes; 0: none. total: the host's memory in bytes, for a share."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT%]?)", str(text))
    if not match:
        return 0
    amount = float(match.group(1))
    if match.group(2) == "%":
        return math.floor(amount / 100 * total)
    return math.floor(amount * UNITS.get(match.group(2), 1))


def mount(path: str, read_only: bool = True) -> list[str]:
    """A folder or file of the host under the same path; a missing one is an error, not a new folder of root's."""
    return ["--mount", f"type=bind,source={path},target={path}" + (",readonly" if read_only else "")]


def hide(path: str) -> list[str]:
    """Nothing in the place of a folder."""
    return ["--mount", f"type=tmpfs,target={path},tmpfs-mode=0000,tmpfs-size=4096"]


def paths_in(values: Iterable[Any]) -> list[str]:
    """Absolute paths that values name, as in `/srv/a.jinja` and `adapter=/srv/adapter`, each once."""
    found: list[str] = []
    for value in values:
        if isinstance(value, dict):
            found += paths_in(value.values())
        elif isinstance(value, (list, tuple)):
            found += paths_in(value)
        elif isinstance(value, str):
            found += re.findall(r"^(?:[\w.-]+=)?(/[^\0]+)$", value)
    return list(dict.fromkeys(found))


def passed(environment: dict[str, str], hidden: Iterable[str] = ()) -> list[str]:
    """`--env NAME` takes the value from the unit, so that it stands on no command line."""
    return [part for name in (*hidden, *environment) for part in ("--env", name)]


def common(unit: str, limit: int, stop: int) -> list[str]:
    """What engines and gateways share. limit: bytes of memory, 0 for none; stop: seconds that a stop may take."""
    line = ["--pull", "never", "--init", "--network", "host", *LOCKED]
    line += ["--label", f"modelhost.unit={unit}", "--stop-timeout", str(stop)]
    # Rotated by the daemon; the journal has it all, by way of the unit.
    line += ["--log-driver", "local", "--log-opt", "max-size=10m", "--log-opt", "max-file=2"]
    if limit:
        line += ["--memory", str(limit), "--memory-swap", str(limit)]
    return line


def gpu_arguments(item: dict[str, Any], wsl: bool) -> tuple[list[str], list[str]]:
    """Devices by CDI, and names of variables that lose their meaning. In WSL all GPUs are one device of Windows'.

    By CDI and not by `--gpus`: device nodes are part of the container then, and a reload of systemd does not take
    them away (nvidia-container-toolkit #48).
    """
    named = item["environment"].get("CUDA_VISIBLE_DEVICES", "")
    if wsl or not named:
        return ["--device", "nvidia.com/gpu=all"], []
    devices = [part for index in named.split(",") for part in ("--device", f"nvidia.com/gpu={index.strip()}")]
    # Inside, the chosen ones are numbered from 0.
    return devices, ["CUDA_VISIBLE_DEVICES"]


def engine(item: dict[str, Any], image: str, settings: dict[str, Any]) -> list[str]:
    """`docker run`'s arguments for an item of vllm_effective_instances.

    settings: variant (cpu, cuda), wsl, memory_max (systemd's notation), memory_total (bytes), state_dir, cache_dir.
    """
    total = int(settings.get("memory_total") or 0)
    line = common(f"vllm@{item['name']}.service", memory_bytes(settings["memory_max"], total), settings["stop_timeout"])
    # Engine processes exchange tensors there; the host's own is half of its memory too.
    line += ["--shm-size", str(total // 2 or 16 * UNITS["G"])]
    dropped: list[str] = []
    if settings["variant"] == "cuda":
        devices, dropped = gpu_arguments(item, bool(settings.get("wsl")))
        line += devices
    else:
        # Docker's seccomp profile lets a process bind memory to NUMA nodes only with this in its bounding set; the
        # engine's account does not hold it.
        line += ["--cap-add", "SYS_NICE"]
    line += mount(settings["state_dir"], read_only=False) + mount(settings["cache_dir"], read_only=False)
    for path in item["hidden_paths"]:
        line += hide(path)
    own = (settings["state_dir"], settings["cache_dir"])
    named = [*paths_in(item["flags"].values()), *paths_in(item["environment"].values())]
    for path in dict.fromkeys([item["model_path"], *(path for path in named if not path.startswith(own))]):
        line += mount(path)
    environment = {name: value for name, value in item["environment"].items() if name not in dropped}
    line += passed(environment, hidden=["VLLM_API_KEY"])
    # An account that the image does not know has no name, and PyTorch asks for one.
    line += ["--env", "USER=vllm", "--workdir", settings["state_dir"]]
    return [*line, "--entrypoint", "vllm", image, "serve", *item["argv"]]


def gateway(settings: dict[str, Any], image: str) -> list[str]:
    """`docker run`'s arguments for LiteLLM, up to its own.

    settings: unit, memory_max, memory_total, stop_timeout, state_dir, lib_dir, config_dir, keys_dir (users' keys, which
    the gateway never sees), environment (its names are passed), hidden (names that the unit reads from files).
    """
    total = int(settings.get("memory_total") or 0)
    line = common(settings["unit"], memory_bytes(settings["memory_max"], total), settings["stop_timeout"])
    line += mount(settings["state_dir"], read_only=False)
    line += mount(settings["lib_dir"]) + mount(settings["config_dir"])
    line += hide(settings["keys_dir"])
    line += passed(settings["environment"], settings["hidden"])
    return [*line, "--workdir", settings["state_dir"], "--entrypoint", "litellm", image]
