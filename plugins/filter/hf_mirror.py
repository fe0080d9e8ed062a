# MIT licence (see LICENSE)
"""Filters of the role hf_mirror; the work is done in module_utils/hf_mirror_validation.py."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import hf_mirror_validation
from ansible_collections.modelhost.serving.plugins.module_utils.problems import report


def hf_mirror_peers(groups: dict[str, list[str]], hostvars: Any, host: str) -> list[dict[str, Any]]:
    """The inventory's own mirrors, as sources of this host."""
    return hf_mirror_validation.peers(groups, hostvars, host)


def hf_mirror_problems(variables: dict[str, Any], host: str) -> str:
    """What is wrong with the variables, as text; nothing, if nothing is."""
    found = hf_mirror_validation.problems(host, variables)
    return report([item for item in found if item["level"] == "error"])


class FilterModule:
    """`modelhost.serving.hf_mirror_peers`, `modelhost.serving.hf_mirror_problems`."""

    def filters(self) -> dict[str, Any]:
        return {"hf_mirror_peers": hf_mirror_peers, "hf_mirror_problems": hf_mirror_problems}
