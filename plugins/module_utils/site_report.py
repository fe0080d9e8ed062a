# MIT licence (see LICENSE)
"""What runs where, as lines for a person. Never holds a key. Runs on the controller."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import gateways, vllm_backends

KEYS = "/etc/modelhost/litellm/keys"
CLIENTS = "/etc/modelhost/clients"


def lines(groups: dict[str, list[str]], hostvars: Any) -> list[str]:
    """The report."""
    text = ["", "Engines"]
    hosts = groups.get("gateways", [])
    for backend in vllm_backends.backends(groups, hostvars, ""):
        context = backend["max_model_len"]
        text.append(
            f"  {backend['host']}  {backend['unit']}  {backend['model']}"
            + (f", {context} tokens of context" if context else "")
            + f"  {backend['url']}"
        )
    if not hosts:
        text += ["", "API service only (no gateway). For each engine, with an OpenAI client:"]
        for backend in vllm_backends.backends(groups, hostvars, ""):
            text += [
                f"  base URL  {backend['url']}/v1",
                f"  key       {backend['host']}:{backend['key_file']} (root only)",
                f"  model     {backend['served_model_name']}",
            ]
        return text + [""]
    text += ["", "Gateways"]
    for host in hosts:
        variables = hostvars[host]
        text.append(f"  {host}  litellm@main.service  {gateways.url(hostvars, host)}")
        users = variables.get("litellm_users") or []
        for user in users:
            models = ", ".join(user.get("models") or []) or "all models"
            text.append(f"    user {user['name']} ({models}): key in {KEYS}/{user['name']} (root only)")
        if not users:
            text.append("    no users yet: add them to litellm_users and run this again")
    first = hosts[0]
    users = hostvars[first].get("litellm_users") or []
    if users:
        name = users[0]["name"]
        text += [
            "",
            "Claude Code",
            f"  hosts of the group `clients` are set up; elsewhere use the lines in {first}:{CLIENTS}/{name}.sh",
        ]
    return text + [""]
