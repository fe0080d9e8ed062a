# MIT licence (see LICENSE)
"""Filters about Claude Code; the work is done in module_utils/claude_code.py."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.modelhost.serving.plugins.module_utils import claude_code


def backend(backends: list[dict[str, Any]], instance: str = "") -> dict[str, Any]:
    """The engine that a user's client is pointed at: the named one, or the first."""
    names = list(dict.fromkeys(b["instance"] for b in backends))
    if not names:
        raise AnsibleFilterError(
            "claude_code_backends is empty: there is no engine to point Claude Code at. Add a host with vllm_instances "
            "to the group engines."
        )
    if instance and instance not in names:
        raise AnsibleFilterError(
            f"claude_code_users: there is no instance {instance!r}. Known are: {', '.join(names)}."
        )
    # Replicas share a name, and the least context of them is what every one can do.
    same = [b for b in backends if b["instance"] == (instance or names[0])]
    return min(same, key=lambda b: int(b.get("max_model_len") or 1 << 62))


def environment(found: dict[str, Any], base_url: str, **options: Any) -> dict[str, str]:
    """The environment for one engine, as `claude_code_backend` gives it."""
    context = int(options.pop("max_context_tokens", 0) or found.get("max_model_len") or 0)
    if not context:
        raise AnsibleFilterError(
            f"The context of instance {found['instance']!r} is not known. Set max_model_len of the instance, or "
            "claude_code_max_context_tokens."
        )
    return claude_code.environment(base_url, "local-claude-" + found["instance"], context, **options)


class FilterModule:
    """Filters of `modelhost.serving`."""

    def filters(self) -> dict[str, Any]:
        return {
            "claude_code_backend": backend,
            "claude_code_environment": environment,
            "claude_code_settings": claude_code.settings,
            "claude_code_snippet": claude_code.snippet,
        }
