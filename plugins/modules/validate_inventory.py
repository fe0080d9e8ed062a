#!/usr/bin/python
# MIT licence (see LICENSE)
"""Documentation of the action plugin of the same name; nothing of it runs on a host."""

DOCUMENTATION = r"""
module: validate_inventory
author: the modelhost authors
short_description: Check an inventory without a connection
description:
  - Holds every variable of every host against the roles' argument_specs, the catalogue and the
    flags of the pinned vLLM, and fails once, with every problem. No host is contacted.
options: {}
"""
EXAMPLES = r"""
- name: Check every variable
  modelhost.serving.validate_inventory:
  run_once: true
"""
RETURN = r"""
problems:
  description: How many errors there are.
  returned: failure
  type: int
"""
