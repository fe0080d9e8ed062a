# MIT licence (see LICENSE)
"""The engines of an inventory, as a gateway sees them. Runs on the controller."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import catalog, vllm_flags

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


def backends(groups: dict[str, list[str]], hostvars: Any, gateway: str) -> list[dict[str, Any]]:
    """One item for each instance on each host of the group `engines`."""
    found = []
    for host in groups.get("engines", []):
        variables = hostvars[host]
        entries = catalog.entries(variables.get("vllm_models") or [])
        for instance in variables.get("vllm_instances") or []:
            entry = vllm_flags.resolve(instance, entries)
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
                    "max_model_len": instance.get("max_model_len") or entry.get("max_model_len"),
                    "key_file": f"{CONFIG_DIR}/{instance['name']}.key",
                    "capabilities": entry.get("capabilities") or {},
                    "loopback_model": "builder" in entry["source"],
                }
            )
    return found
