# MIT licence (see LICENSE)
"""Filter for the dry run of the role model_store; the work is done in module_utils/model_store_forecast.py."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.modelhost.serving.plugins.module_utils import model_store_forecast


def store_forecast(found: dict[str, Any], asked: list[dict[str, Any]], rate: Any) -> dict[str, Any]:
    """`modelhost.serving.store_forecast`."""
    try:
        return model_store_forecast.forecast(found, asked, rate)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Filters of `modelhost.serving`."""

    def filters(self) -> dict[str, Any]:
        return {"store_forecast": store_forecast}
