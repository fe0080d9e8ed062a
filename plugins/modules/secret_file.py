#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: a secret in a file, made once and never shown."""

from __future__ import annotations

import os
import secrets

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.modelhost.serving.plugins.module_utils import secret_text

DOCUMENTATION = r"""
module: secret_file
author: the modelhost authors
short_description: Keep one secret in one file
description:
  - Writes a secret to a file if the file is not there yet, and then keeps it. The secret is
    made on the host from the operating system's random source; it is never returned, logged
    or shown in a diff.
options:
  path:
    description: The file.
    type: path
    required: true
  prefix:
    description: What a generated secret begins with.
    type: str
    default: "sk-"
  template:
    description: The file's content, where C({}) stands for the secret.
    type: str
    default: "{}"
  content:
    description: The secret to keep instead of a generated one. The file is rewritten when it differs.
    type: str
  secret_path:
    description: >-
      Read the secret from this file of the host instead of generating one, so that the same
      secret can stand in two forms. In check mode the file may be missing.
    type: path
  state:
    description: V(absent) removes the file.
    choices: [present, absent]
    type: str
    default: present
extends_documentation_fragment: [ansible.builtin.files]
"""
EXAMPLES = r"""
- name: Make the engine's own key
  modelhost.serving.secret_file:
    path: /etc/modelhost/vllm/coder.key
    mode: "0600"
"""
RETURN = r"""
path:
  description: The file.
  returned: always
  type: str
"""

#: Random bytes of a generated secret (256 bits).
BYTES = 32


def wanted(params: dict, present: str | None, check_mode: bool) -> str | None:
    """What the file should hold; None: what it holds now is right."""
    template = params["template"]
    if params["content"] is not None:
        secret = params["content"]
    elif params["secret_path"] is not None:
        found = secret_text.read(params["secret_path"])
        if found is None:
            if not check_mode:
                raise ValueError("secret_path: there is no file %s" % params["secret_path"])
            found = ""
        secret = found.strip()
    elif present is not None and present.strip():
        return None
    else:
        secret = params["prefix"] + secrets.token_urlsafe(BYTES)
    text = template.replace("{}", secret) + "\n"
    return None if text == present else text


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "prefix": {"type": "str", "default": "sk-", "no_log": False},
            "template": {"type": "str", "default": "{}"},
            "content": {"type": "str", "no_log": True},
            "secret_path": {"type": "path", "no_log": False},
            "state": {"choices": ["present", "absent"], "default": "present"},
        },
        mutually_exclusive=[["content", "secret_path"]],
        add_file_common_args=True,
        supports_check_mode=True,
    )
    path = module.params["path"]
    present = secret_text.read(path)
    if module.params["state"] == "absent":
        if present is not None and not module.check_mode:
            os.unlink(path)
        module.exit_json(path=path, changed=present is not None)

    try:
        text = wanted(module.params, present, module.check_mode)
    except ValueError as error:
        module.fail_json(msg=str(error))
    changed = text is not None
    if module.check_mode and present is None:
        module.exit_json(path=path, changed=True)
    if text is not None and not module.check_mode:
        secret_text.write(module, path, text)
    arguments = module.load_file_common_arguments(module.params)
    arguments["path"] = path
    changed = module.set_fs_attributes_if_different(arguments, changed)
    module.exit_json(path=path, changed=changed)


if __name__ == "__main__":
    main()
