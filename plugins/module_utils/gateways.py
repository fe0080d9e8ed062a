# MIT licence (see LICENSE)
"""Where the gateways of an inventory are reached. Runs on the controller."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils.vllm_backends import is_loopback

#: The role's defaults; kept equal to roles/litellm/defaults/main.yml by a test.
PORT = 4000
BIND_ADDRESS = "127.0.0.1"


def url(hostvars: Any, gateway: str, client: str = "") -> str:
    """A gateway's address as `client` (an inventory name) sees it; empty: as anyone else does."""
    variables = hostvars[gateway]
    port = variables.get("litellm_port") or PORT
    bind = str(variables.get("litellm_bind_address") or BIND_ADDRESS)
    wildcard = bind in ("0.0.0.0", "::")
    if client == gateway:
        return f"http://{BIND_ADDRESS if wildcard else bind}:{port}"
    if variables.get("litellm_public_url"):
        return str(variables["litellm_public_url"]).rstrip("/")
    if wildcard or (client and is_loopback(bind)):
        bind = str(variables.get("ansible_host") or gateway)
    return f"http://{bind}:{port}"
