# MIT licence (see LICENSE)
"""Filters about vLLM instances; the work is done in module_utils/vllm_flags.py."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.modelhost.serving.plugins.module_utils import hardware, runtime, vllm_backends, vllm_flags


def effective_instances(
    instances: list[dict[str, Any]], catalog: dict[str, Any], version: str, **options: Any
) -> list[dict[str, Any]]:
    """Every instance with its command line, environment and paths."""
    try:
        return vllm_flags.effective_instances(instances, catalog, version, **options)
    except KeyError as error:
        raise AnsibleFilterError(f"vllm_instances: there is no {error} in the catalogue") from error


def entries(instances: list[dict[str, Any]], catalog: dict[str, Any]) -> list[dict[str, Any]]:
    """The catalogue entries of the instances, each once."""
    found = {entry["id"]: entry for entry in (vllm_flags.resolve(instance, catalog) for instance in instances)}
    return list(found.values())


class FilterModule:
    """Filters of `modelhost.serving`."""

    def filters(self) -> dict[str, Any]:
        return {
            "vllm_effective_instances": effective_instances,
            "machine": hardware.machine,
            "vllm_entries": entries,
            "vllm_backends": vllm_backends.backends,
            "model_path": vllm_flags.model_path,
            "vllm_official_lock": vllm_flags.official_lock,
            "wheel_fits": runtime.wheel_fits,
            "systemd_quote": vllm_flags.systemd_quote,
        }
