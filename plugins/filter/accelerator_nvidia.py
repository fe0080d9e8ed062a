# MIT licence (see LICENSE)
"""Filters of the role accelerator, provider nvidia (documented in plugins/module_utils/nvidia_plan.py)."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import nvidia_plan


class FilterModule:
    """The filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "accelerator_provider": nvidia_plan.provider,
            "nvidia_plan": nvidia_plan.plan,
            "nvidia_module_choices": nvidia_plan.module_choices,
            "nvidia_kernel_packages": nvidia_plan.kernel_packages,
            "nvidia_of_version": nvidia_plan.of_version,
            "nvidia_restart_reason": nvidia_plan.restart_reason,
        }
