# MIT licence (see LICENSE)
"""The filter bundle_use; the work is done in module_utils/bundle_use.py."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.modelhost.serving.plugins.module_utils import bundle_use


def use(hostvars: Any, host: str, groups: dict[str, list[str]]) -> dict[str, Any]:
    """What a host takes from a bundle."""
    try:
        return bundle_use.use(hostvars, host, groups)
    except bundle_use.BundleError as error:
        raise AnsibleFilterError(f"bundle: {error.why} → {error.fix}") from error


class FilterModule:
    """`modelhost.serving.bundle_use`."""

    def filters(self) -> dict[str, Any]:
        return {"bundle_use": use}
