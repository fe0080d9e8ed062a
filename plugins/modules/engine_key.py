#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: the keys of engines, and which keys open each."""

from __future__ import annotations

import hashlib
import os
import secrets

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.modelhost.serving.plugins.module_utils import secret_text

DOCUMENTATION = r"""
module: engine_key
author: the modelhost authors
short_description: Keep engines' keys, and exchange them without a restart of the engines
description:
  - An engine's key lies in O(path), for gateways to be given. In O(accepted) stand the SHA-256 of the keys that open
    the engine, which its guard reads again whenever they change.
  - A key is exchanged in two steps, between which both the old and the new key open the engine, so that gateways can
    be told the new one. Keys are never returned, logged or shown in a diff.
options:
  engines:
    description: Names of the engines.
    type: list
    elements: str
    required: true
  path:
    description: File of an engine's key. C({}) stands for its name.
    type: path
    required: true
  accepted:
    description: File of the hashes. C({}) stands for the engine's name.
    type: path
    required: true
  state:
    description: >-
      V(present) makes a key where there is none, and sees that it opens the engine. V(rotated) makes a new key beside
      those that open the engine. V(settled) lets the present key alone open it.
    choices: [present, rotated, settled]
    type: str
    default: present
  group:
    description: Group that may read the hashes.
    type: str
"""
EXAMPLES = r"""
- name: Make each engine's own key
  modelhost.serving.engine_key:
    engines: [coder, small]
    path: /etc/modelhost/vllm/{}.key
    accepted: /etc/modelhost/vllm/accepted/{}/keys
    group: vllm
"""
RETURN = r"""
accepted:
  description: How many keys open each engine.
  returned: always
  type: dict
"""

#: Random bytes of a key (256 bits), for which a plain hash is enough.
BYTES = 32


def digest(key: str) -> str:
    """A key as the guard compares it."""
    return hashlib.sha256(key.encode("utf-8")).hexdigest()


def wanted(state: str, key: str, hashes: list[str]) -> tuple[str, list[str]]:
    """The key ("": none yet) and the hashes as they should be."""
    if state == "rotated" or not key:
        if key and digest(key) not in hashes:
            hashes = [*hashes, digest(key)]
        key = "sk-" + secrets.token_urlsafe(BYTES)
    if state == "settled":
        return key, [digest(key)]
    return key, hashes if digest(key) in hashes else [*hashes, digest(key)]


def keep(module: AnsibleModule, path: str, accepted: str) -> tuple[bool, int]:
    """Brings one engine's two files to the state; says whether that changed them, and how many keys open the engine."""
    present, there = (secret_text.read(path) or "").strip(), (secret_text.read(accepted) or "").split()
    key, hashes = wanted(module.params["state"], present, there)
    changed = key != present or hashes != there
    if module.check_mode and not (os.path.exists(path) and os.path.exists(accepted)):
        return True, len(hashes)
    if not module.check_mode:
        # The hashes first: a key that is handed on opens the engine already.
        if hashes != there:
            secret_text.write(module, accepted, "".join(item + "\n" for item in hashes))
        if key != present:
            secret_text.write(module, path, key + "\n")
    group = module.params["group"]
    for name, owner, mode in ((path, "root", "0600"), (accepted, group, "0640" if group else "0600")):
        attributes: dict = {"path": name, "mode": mode, "secontext": [], "attributes": None}
        attributes.update({"owner": "root", "group": owner} if os.geteuid() == 0 else {"owner": None, "group": None})
        changed = module.set_fs_attributes_if_different(attributes, changed)
    return changed, len(hashes)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "engines": {"type": "list", "elements": "str", "required": True},
            "path": {"type": "path", "required": True},
            "accepted": {"type": "path", "required": True},
            "state": {"choices": ["present", "rotated", "settled"], "default": "present"},
            "group": {"type": "str"},
        },
        supports_check_mode=True,
    )
    done = {}
    for name in module.params["engines"]:
        path, accepted = (module.params[option].replace("{}", name) for option in ("path", "accepted"))
        done[name] = keep(module, path, accepted)
    module.exit_json(
        changed=any(changed for changed, _count in done.values()),
        accepted={name: count for name, (_changed, count) in done.items()},
    )


if __name__ == "__main__":
    main()
