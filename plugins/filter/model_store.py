# MIT licence (see LICENSE)
"""Filters about the store of weights; the work is done in module_utils/model_store.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import model_store


class FilterModule:
    """Filters of `modelhost.serving`."""

    def filters(self) -> dict[str, Any]:
        return {
            "store_models": model_store.models,
            "store_entries": model_store.entries,
            "store_keep": model_store.keep,
        }
