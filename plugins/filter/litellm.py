# MIT licence (see LICENSE)
"""Filters about the gateway; the work is done in module_utils/litellm_config.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import litellm_config, litellm_validation
from ansible_collections.modelhost.serving.plugins.module_utils.problems import report


def own_problems(variables: dict[str, Any], names: list[str], host: str) -> str:
    """What is wrong with a gateway's variables, as text; empty if nothing. For the role alone."""
    instances = [{"name": name} for name in names]
    found = litellm_validation.problems(
        {host: variables, "": {"vllm_instances": instances}}, {"gateways": [host], "engines": [""]}
    )
    return report([item for item in found if item["level"] == "error"])


class FilterModule:
    """Filters of `modelhost.serving`."""

    def filters(self) -> dict[str, Any]:
        return {
            "litellm_config": litellm_config.config,
            "litellm_access": litellm_config.access,
            "litellm_environment_name": litellm_config.environment_name,
            "litellm_environment_value": litellm_config.environment_value,
            "litellm_instance_names": litellm_config.instance_names,
            "litellm_problems": own_problems,
        }
