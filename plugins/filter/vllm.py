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


def unit(engine: dict[str, Any], home: str, config_dir: str) -> dict[str, Any]:
    """An engine's unit, and the files that it must not be older than."""
    release = [f"{home}/current", f"{home}/current/.complete"] if engine["runtime"] == "venv" else []
    named = [engine["flags"].get(flag) or "" for flag in ("chat_template", "tool_parser_plugin")]
    shared = [path for path in named if path.startswith(f"{vllm_flags.SHARE}/")]
    guard = f"{vllm_flags.GUARD_DIR}/modelhost_engine_guard.py"
    return {
        "unit": f"vllm@{engine['name']}.service",
        # The mark in a release is new when the release was damaged and made anew.
        "depends": [*release, f"{config_dir}/{engine['name']}.env", guard, *shared],
    }


class FilterModule:
    """Filters of `modelhost.serving`."""

    def filters(self) -> dict[str, Any]:
        return {
            "vllm_effective_instances": effective_instances,
            "machine": hardware.machine,
            "vllm_entries": entries,
            "vllm_unit": unit,
            "vllm_backends": vllm_backends.backends,
            "model_path": vllm_flags.model_path,
            "vllm_official_lock": vllm_flags.official_lock,
            "wheel_fits": runtime.wheel_fits,
            "systemd_quote": vllm_flags.systemd_quote,
        }
