# MIT licence (see LICENSE)
"""What a host must have for what its inventory asks of it. Pure; runs on the controller."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import catalog, vllm_flags
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem

#: Floors, each with its source.
MIN_SYSTEMD = 247  # LoadCredential=, ProtectProc= (systemd's NEWS)
MIN_GLIBC = (2, 34)  # vLLM's wheels are manylinux_2_34
GIB = 1024**3
#: Memory in GiB that an engine on CPU takes beside weights and KV cache (measured: 2.5–2.9 with a 1 GiB cache).
ENGINE_OVERHEAD_GIB = 2.0
#: Memory in GiB of one LiteLLM worker (measured 0.45) with room for requests.
GATEWAY_GIB = 1.0

SUPPORTED = {("ubuntu", "22.04"), ("ubuntu", "24.04"), ("debian", "12")}


def version(text: str) -> tuple[int, ...]:
    """`2.36` → (2, 36)."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def gib(count: float) -> str:
    """Bytes as GiB with one decimal."""
    return f"{count / GIB:.1f} GiB"


def platform_problems(host: str, probe: dict[str, Any]) -> list[dict[str, Any]]:
    """Distribution, architecture, systemd, rights."""
    found = []
    system = (probe["distribution"], probe["distribution_version"])
    if system not in SUPPORTED:
        found.append(
            problem(
                host,
                "operating system",
                probe["distribution_name"] or None,
                "this system was never tried with this project",
                "expect surprises; tried are Debian 12, and Ubuntu 22.04 and 24.04 by rendering",
                "warning",
            )
        )
    if not probe["is_root"]:
        found.append(
            problem(
                host,
                "ansible_become",
                None,
                "the tasks do not run as root on this host",
                "let the connecting user sudo, and pass --ask-become-pass if it needs a password",
            )
        )
    if not probe["systemd_is_init"] or int(probe["systemd"] or 0) < MIN_SYSTEMD:
        found.append(
            problem(
                host,
                "systemd",
                probe["systemd"] or "not running",
                f"the services are systemd units and need systemd {MIN_SYSTEMD} or later as the first process",
                "use Ubuntu 22.04 or later or Debian 12; in WSL2 set `systemd=true` in /etc/wsl.conf",
            )
        )
    if probe["architecture"] != "x86_64":
        found.append(
            problem(
                host,
                "architecture",
                probe["architecture"],
                "the lock files of this release hold x86-64 builds only",
                "use an x86-64 host",
            )
        )
    if probe["glibc"] and version(probe["glibc"]) < MIN_GLIBC:
        found.append(
            problem(
                host,
                "glibc",
                probe["glibc"],
                "vLLM's builds need glibc 2.34 or later",
                "use Ubuntu 22.04 or later or Debian 12",
            )
        )
    return found


def engine_problems(host: str, probe: dict[str, Any], variables: Any) -> list[dict[str, Any]]:
    """CPU, driver and memory against the instances."""
    found: list[dict[str, Any]] = []
    variant = str(variables.get("vllm_variant") or "auto")
    driver = probe["nvidia_driver"]
    if variant == "cuda" and not driver:
        found.append(
            problem(
                host,
                "vllm_variant",
                variant,
                "no NVIDIA driver is loaded on this host",
                "install the driver, or set vllm_variant: cpu",
            )
        )
    if variant == "auto":
        variant = "cuda" if driver else "cpu"
    if variant == "cpu" and probe["architecture"] == "x86_64" and "avx2" not in probe["cpu_flags"]:
        found.append(
            problem(
                host,
                "CPU",
                probe["cpu_model"] or None,
                "vLLM on CPU needs AVX2, and this CPU does not have it",
                "move the host out of the group `engines`",
            )
        )
    if variant != "cpu":
        return found
    entries = catalog.entries(variables.get("vllm_models") or [])
    need = GATEWAY_GIB * GIB
    parts = []
    for instance in variables.get("vllm_instances") or []:
        entry = vllm_flags.resolve(instance, entries)
        flags = vllm_flags.merge(
            ("", {"kv_cache_memory_bytes": 4 * GIB}),
            ("", entry.get("flags") or {}),
            ("", variables.get("vllm_flags") or {}),
            ("", instance.get("flags") or {}),
        )
        cache = float(flags.get("kv_cache_memory_bytes", (0, ""))[0])
        weights = float(entry.get("weights_gib") or 0) * GIB
        need += weights + cache + ENGINE_OVERHEAD_GIB * GIB
        parts.append(
            f"{instance['name']}: {gib(weights)} weights + {gib(cache)} KV cache "
            f"+ {ENGINE_OVERHEAD_GIB} GiB for the engine"
        )
    if parts and need > probe["memory"]["total"]:
        found.append(
            problem(
                host,
                "memory",
                gib(probe["memory"]["total"]),
                f"the instances need {gib(need)} ({'; '.join(parts)}; {GATEWAY_GIB} GiB for the gateway)",
                "choose a smaller model, a smaller kv_cache_memory_bytes, or a host with more memory",
            )
        )
    return found


def port_problems(host: str, probe: dict[str, Any], wanted: list[tuple[int, str, str]]) -> list[dict[str, Any]]:
    """Ports that somebody else holds; `wanted` holds (port, unit, variable)."""
    found = []
    for port, unit, variable in wanted:
        for owner in probe["listeners"].get(str(port), []):
            ours = owner["unit"] == unit or (
                not owner["process"] and owner["user"] == unit.split("@")[0] and unit in probe["active_units"]
            )
            if not ours:
                who = owner["unit"] or owner["process"] or "another program"
                found.append(
                    problem(
                        host,
                        variable,
                        port,
                        f"port {port} is taken on this host: {who} listens on {owner['address']}",
                        f"stop it, or set {variable} to a free port",
                    )
                )
                break
    return found


def problems(
    host: str, probe: dict[str, Any], settings: dict[str, Any], variables: Any, groups: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Everything that stands against this host."""
    found = platform_problems(host, probe)
    ports: list[tuple[int, str, str]] = []
    weights: dict[str, float] = {}
    if host in groups.get("engines", []):
        found += engine_problems(host, probe, variables)
        entries = catalog.entries(variables.get("vllm_models") or [])
        for index, instance in enumerate(variables.get("vllm_instances") or []):
            ports.append(
                (int(instance.get("port", 8000)), f"vllm@{instance['name']}.service", f"vllm_instances[{index}].port")
            )
            entry = vllm_flags.resolve(instance, entries)
            weights[entry["id"]] = float(entry.get("weights_gib") or 0)
    if host in groups.get("gateways", []):
        ports.append((int(variables.get("litellm_port") or 4000), "litellm@main.service", "litellm_port"))
    found += port_problems(host, probe, ports)
    if host in groups.get("clients", []):
        for index, user in enumerate(variables.get("claude_code_users") or []):
            if user.get("name") not in probe["accounts"]:
                found.append(
                    problem(
                        host,
                        f"claude_code_users[{index}].name",
                        user.get("name"),
                        "this host has no account of this name",
                        "create the account, or name another",
                    )
                )

    need: dict[str, float] = {}
    for path, space in probe["disk"].items():
        share = settings["min_disk_gib"] + (sum(weights.values()) if path.startswith("/var") else 0)
        need[space["mount"]] = max(need.get(space["mount"], 0), share)
    for mount, amount in need.items():
        free = min(space["free"] for space in probe["disk"].values() if space["mount"] == mount)
        if free < amount * GIB and not probe.get("deployed"):
            found.append(
                problem(
                    host,
                    f"disk space on {mount}",
                    gib(free) + " free",
                    f"releases, caches and weights need {amount:.1f} GiB there",
                    "free space, or lower host_preflight_min_disk_gib if you know better",
                )
            )
    return found
