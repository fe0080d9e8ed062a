# MIT licence (see LICENSE)
"""The engines of an inventory, as a gateway sees them. Runs on the controller."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import catalog, hardware, vllm_flags

#: The role's default; kept equal to roles/vllm/defaults/main.yml by a test.
BIND_ADDRESS = "127.0.0.1"
CONFIG_DIR = "/etc/modelhost/vllm"


def is_loopback(address: str) -> bool:
    """Whether only the host itself reaches this address."""
    return address.startswith("127.") or address in ("localhost", "::1")


def address_for(gateway: str, host: str, variables: Any) -> str:
    """The address at which `gateway` reaches the engines of `host`."""
    bind = str(variables.get("vllm_bind_address") or BIND_ADDRESS)
    if is_loopback(bind) or gateway == host:
        return bind if bind not in ("0.0.0.0", "::") else BIND_ADDRESS
    if bind in ("0.0.0.0", "::"):
        return str(variables.get("vllm_advertise_address") or variables.get("ansible_host") or host)
    return bind


def checked_capabilities(entry: dict[str, Any]) -> dict[str, Any]:
    """What serving_verify checks of a model: tool calls only where more than a prompt stands behind them."""
    said = entry.get("capabilities") or {}
    if "tool_calling" not in said:
        return dict(said)
    return {**said, "tool_calling": said["tool_calling"] in ("native", "adapted")}


def backends(groups: dict[str, list[str]], hostvars: Any, gateway: str) -> list[dict[str, Any]]:
    """One item for each instance on each host of the group `engines`."""
    found = []
    for host in groups.get("engines", []):
        variables = hostvars[host]
        entries = catalog.entries(variables.get("vllm_models") or [])
        instances = variables.get("vllm_instances") or []
        machine = hardware.of_host(variables)
        known = machine and machine["devices"]
        fitting = vllm_flags.assessments(instances, entries, variables.get("vllm_flags"), machine) if known else []
        for at, instance in enumerate(instances):
            entry = vllm_flags.resolve(instance, entries)
            # A host that --limit left out was not looked at: the catalogue's context is the best guess.
            room = fitting[at] if fitting and fitting[at].get("fits") else {}
            names = instance.get("served_model_name") or entry["id"]
            address = address_for(gateway, host, variables)
            found.append(
                {
                    "host": host,
                    "instance": instance["name"],
                    "unit": f"vllm@{instance['name']}.service",
                    "model": entry["id"],
                    "served_model_name": names if isinstance(names, str) else names[0],
                    "url": f"http://{address}:{instance.get('port', 8000)}",
                    "max_model_len": instance.get("max_model_len")
                    or room.get("max_model_len")
                    or entry.get("max_model_len"),
                    "key_file": f"{CONFIG_DIR}/{instance['name']}.key",
                    "capabilities": checked_capabilities(entry),
                    "loopback_model": "builder" in entry["source"],
                }
            )
    return found
