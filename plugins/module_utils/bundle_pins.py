# MIT licence (see LICENSE)
"""Which programs a bundle holds, by version and lock: written when it is built, compared when it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

#: Where versions.yml has each component.
COMPONENTS = {
    "uv": "uv",
    "vllm_cpu": "vllm.cpu",
    "vllm_cuda": "vllm.cuda",
    "huggingface_hub": "huggingface_hub",
    "litellm": "litellm",
    "node": "node",
    "claude_code": "claude_code",
}
#: uv's lock is a plain file of host_base.
UV_LOCK = "roles/host_base/files/etc/modelhost/uv.txt"


def lock_path(component: str, versions: dict[str, Any]) -> str:
    """A component's lock, relative to the project."""
    return str(entry(component, versions).get("lock") or UV_LOCK)


def entry(component: str, versions: dict[str, Any]) -> dict[str, Any]:
    """What versions.yml says of a component."""
    found: Any = versions
    for name in COMPONENTS[component].split("."):
        found = found[name]
    return dict(found)


def pins(versions: dict[str, Any], read: Callable[[str], str]) -> dict[str, str]:
    """{component: <version>-<8 digits of the lock's SHA-256>}. read(path) gives the text of a file of the project."""
    return {
        component: "%s-%s"
        % (
            entry(component, versions)["version"],
            hashlib.sha256(read(lock_path(component, versions)).encode()).hexdigest()[:8],
        )
        for component in COMPONENTS
    }
