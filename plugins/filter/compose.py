# MIT licence (see LICENSE)
"""Filters about described machines; the work is done in module_utils/plan.py."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.modelhost.serving.plugins.module_utils import hardware, plan


def machine_facts(wish: Any, variable: str = "") -> dict[str, Any]:
    """Facts of a machine that somebody describes, or that an earlier plan saved."""
    try:
        return plan.facts_of(wish)
    except hardware.DescriptionError as error:
        raise AnsibleFilterError(f"{variable}: {error}" if variable else str(error)) from error


class FilterModule:
    """Filters of `modelhost.serving`."""

    def filters(self) -> dict[str, Any]:
        return {"machine_facts": machine_facts}
