#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: the host's part of host_files."""

from __future__ import annotations

import base64
import json
import os
import zlib

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.modelhost.serving.plugins.module_utils import host_files

DOCUMENTATION = r"""
module: host_files_apply
author: the modelhost authors
short_description: The host's part of host_files
description: M(modelhost.serving.host_files) runs it; playbooks have no use for it.
options:
  payload:
    description: The set of files, packed. Never logged.
    type: str
    required: true
  derive:
    description: Path, sources and command (a list of words) of what programs make from them.
    type: list
    elements: dict
    default: []
  look:
    description: See M(modelhost.serving.host_files).
    type: list
    elements: path
    default: []
"""
EXAMPLES = r"""
# Only from the action plugin of modelhost.serving.host_files.
"""
RETURN = r"""
changes:
  description: See M(modelhost.serving.host_files).
  returned: always
  type: list
  elements: dict
there:
  description: See M(modelhost.serving.host_files).
  returned: always
  type: list
  elements: path
"""


def unpacked(payload: str) -> list:
    """The items, with their contents as bytes."""
    items = json.loads(zlib.decompress(base64.b64decode(payload)).decode())
    for item in items:
        if "data" in item:
            item["data"] = base64.b64decode(item["data"])
    return items


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "payload": {"type": "str", "required": True, "no_log": True},
            "derive": {"type": "list", "elements": "dict", "default": []},
            "look": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )

    def run(arguments: list) -> tuple:
        code, out, err = module.run_command(arguments)
        return code, out + err

    there = [path for path in module.params["look"] if os.path.lexists(path)]
    writer = host_files.Writer(unpacked(module.params["payload"]), module.check_mode, run, diff=module._diff)
    rules = module.params["derive"]
    try:
        if module.check_mode:
            writer.finish(rules)
        else:
            with host_files.alone():
                writer.finish(rules)
    except host_files.Refused as error:
        module.fail_json(msg=str(error), problems=error.problems, changes=error.changes, changed=bool(error.changes))
    result = {"changed": bool(writer.changes), "changes": writer.changes, "there": there}
    if writer.diff is not None:
        result["diff"] = writer.diff
    module.exit_json(**result)


if __name__ == "__main__":
    main()
