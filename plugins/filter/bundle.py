# MIT licence (see LICENSE)
"""Filters of the role bundle; the work is done in module_utils/bundle_plan.py."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.modelhost.serving.plugins.module_utils import bundle_plan


def platforms(described: dict[str, Any], wished: list[Any], builder: dict[str, Any]) -> list[dict[str, str]]:
    """What a host's parts are built for: as wished, else as its facts say, else as the building machine is."""
    try:
        if wished:
            return [bundle_plan.checked(item) for item in wished]
        if described.get("distribution"):
            return [bundle_plan.checked(bundle_plan.platform_of(described))]
        return [{**bundle_plan.checked(bundle_plan.platform_of(builder)), "assumed": "yes"}]
    except bundle_plan.BundleError as error:
        raise AnsibleFilterError(f"{error.variable} = {error.value}: {error.why} → {error.fix}") from None


class FilterModule:
    """`modelhost.serving.bundle_platforms`, `modelhost.serving.bundle_facts`."""

    def filters(self) -> dict[str, Any]:
        return {"bundle_platforms": platforms, "bundle_facts": bundle_plan.facts_of}
