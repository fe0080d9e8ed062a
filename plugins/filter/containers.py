# MIT licence (see LICENSE)
"""Filters about containers; the work is done in module_utils/containers.py and runtime.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import containers, runtime


class FilterModule:
    """Filters of `modelhost.serving`."""

    def filters(self) -> dict[str, Any]:
        return {
            "vllm_runtimes": runtime.of_engines,
            "litellm_runtime": runtime.of_gateway,
            "container_needs": runtime.needs,
            "engine_container": containers.engine,
            "gateway_container": containers.gateway,
            "pinned_image": containers.pinned,
        }
