#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: the gateway's file of key hashes, from the users' key files."""

from __future__ import annotations

import hashlib
import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.modelhost.serving.plugins.module_utils import secret_text

DOCUMENTATION = r"""
module: litellm_key_hashes
author: the modelhost authors
short_description: Write the file of SHA-256 hashes that the gateway checks keys against
description:
  - Reads one plain key per user from O(keys_dir), which only root may read, and writes their
    hashes together with the public model names, the limits and the last day of each user. Users that are
    not named have no access afterwards. No key and no hash is returned, logged or shown in a diff.
options:
  path:
    description: The file to write.
    type: path
    required: true
  keys_dir:
    description: Folder with one file per user, named like the user.
    type: path
    required: true
  models:
    description: All public model names.
    type: list
    elements: str
    required: true
  users:
    description: The users.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The user's name.
        type: str
        required: true
      models:
        description: Public model names that this user may ask for.
        type: list
        elements: str
        required: true
      limits:
        description: The limits of this user by name, such as C(requests_per_minute). What is not in it has no limit.
        type: dict
        default: {}
      expires:
        description: Last day on which the key works, such as V(2027-06-30).
        type: str
extends_documentation_fragment: [ansible.builtin.files]
"""
EXAMPLES = r"""
- name: Write the hashes of the users' keys
  modelhost.serving.litellm_key_hashes:
    path: /etc/modelhost/litellm/key_hashes.json
    keys_dir: /etc/modelhost/litellm/keys
    models: [local-claude-coder]
    users:
      - name: alice
        models: [local-claude-coder]
        limits: {requests_per_minute: 600, max_parallel_requests: 16}
        expires: "2027-06-30"
    owner: root
    group: litellm
    mode: "0640"
"""
RETURN = r"""
users:
  description: Names of the users that have access.
  returned: always
  type: list
"""


def hashed(key):
    """SHA-256 of a key; the line's end does not belong to it."""
    return hashlib.sha256(key.strip().encode("utf-8")).hexdigest()


def content(models, users, read):
    """The file's text; `read` gives a user's key. Two users with one key are refused."""
    entries = []
    owners: dict = {}
    for user in users:
        key = read(user["name"])
        if not key.strip():
            raise ValueError(
                "the key file of user %s is empty; delete it and run again to get a new key" % user["name"]
            )
        digest = hashed(key)
        if digest in owners:
            raise ValueError(
                "users %s and %s have the same key; delete one of the two key files and run again"
                % (owners[digest], user["name"])
            )
        owners[digest] = user["name"]
        entries.append(
            {
                "name": user["name"],
                "sha256": digest,
                "models": user["models"],
                "limits": user.get("limits") or {},
                "expires": user.get("expires"),
            }
        )
    return json.dumps({"models": models, "users": entries}, indent=1, sort_keys=True) + "\n"


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "keys_dir": {"type": "path", "required": True, "no_log": False},
            "models": {"type": "list", "elements": "str", "required": True},
            "users": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "models": {"type": "list", "elements": "str", "required": True},
                    "limits": {"type": "dict", "default": {}},
                    "expires": {"type": "str"},
                },
            },
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    path, users = module.params["path"], module.params["users"]
    names = [user["name"] for user in users]

    def read(name):
        with open(os.path.join(module.params["keys_dir"], name), encoding="utf-8") as handle:
            return handle.read()

    try:
        text = content(module.params["models"], users, read)
    except FileNotFoundError as error:
        if module.check_mode:
            # On a bare host the keys would have been made by an earlier task.
            module.exit_json(changed=True, users=names)
        module.fail_json(msg="There is no key file %s." % error.filename)
    except ValueError as error:
        module.fail_json(msg=str(error))

    present = secret_text.read(path)
    changed = text != present
    if changed and not module.check_mode:
        # Written beside and moved, so that the gateway never reads half a file.
        secret_text.write(module, path, text)
    if present is None and module.check_mode:
        module.exit_json(changed=True, users=names)
    arguments = module.load_file_common_arguments(module.params)
    arguments["path"] = path
    changed = module.set_fs_attributes_if_different(arguments, changed)
    module.exit_json(changed=changed, users=names)


if __name__ == "__main__":
    main()
