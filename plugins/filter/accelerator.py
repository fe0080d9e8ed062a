# MIT licence (see LICENSE)
"""Filters about what the accelerator gives engines; the work is done in module_utils/accelerator.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import accelerator


class FilterModule:
    """Filters of `modelhost.serving`."""

    def filters(self) -> dict[str, Any]:
        return {"accelerator_environment": accelerator.environment}
