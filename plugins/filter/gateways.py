# MIT licence (see LICENSE)
"""Filter about gateways; the work is done in module_utils/gateways.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import gateways


def gateway_url(hostvars: Any, gateway: str, client: str = "") -> str:
    """The address of a gateway as a client sees it."""
    return gateways.url(hostvars, gateway, client)


class FilterModule:
    """Filters of `modelhost.serving`."""

    def filters(self) -> dict[str, Any]:
        return {"gateway_url": gateway_url}
