# MIT licence (see LICENSE)
"""What runs where, as lines for a person. Never holds a key. Runs on the controller."""
from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import vllm_backends

PORT = 4000
KEYS = "/etc/modelhost/litellm/keys"
CLIENTS = "/etc/modelhost/clients"


def reachable(host: str, bind: str, variables: Any) -> str:
    """The address under which others reach something that listens on `bind`."""
    if bind in ("0.0.0.0", "::"):
        return str(variables.get("ansible_host") or host)
    return bind


def lines(groups: dict[str, list[str]], hostvars: Any) -> list[str]:
    """The report."""
    text = ["", "Engines"]
    gateways = groups.get("gateways", [])
    for backend in vllm_backends.backends(groups, hostvars, ""):
        context = backend["max_model_len"]
        text.append(f"  {backend['host']}  {backend['unit']}  {backend['model']}"
                    + (f", {context} tokens of context" if context else "") + f"  {backend['url']}")
    if not gateways:
        text += ["", "API service only (no gateway). For each engine, with an OpenAI client:"]
        for backend in vllm_backends.backends(groups, hostvars, ""):
            text += [f"  base URL  {backend['url']}/v1",
                     f"  key       {backend['host']}:{backend['key_file']} (root only)",
                     f"  model     {backend['served_model_name']}"]
        return text + [""]
    text += ["", "Gateways"]
    for host in gateways:
        variables = hostvars[host]
        bind = str(variables.get("litellm_bind_address") or "127.0.0.1")
        url = f"http://{reachable(host, bind, variables)}:{variables.get('litellm_port') or PORT}"
        text.append(f"  {host}  litellm@main.service  {url}")
        users = variables.get("litellm_users") or []
        for user in users:
            models = ", ".join(user.get("models") or []) or "all models"
            text.append(f"    user {user['name']} ({models}): key in {KEYS}/{user['name']} (root only)")
        if not users:
            text.append("    no users yet: add them to litellm_users and run this again")
    first = gateways[0]
    users = hostvars[first].get("litellm_users") or []
    if users:
        name = users[0]["name"]
        text += ["", "Claude Code",
                 f"  hosts of the group `clients` are set up; elsewhere use the lines in {first}:{CLIENTS}/{name}.sh"]
    return text + [""]
