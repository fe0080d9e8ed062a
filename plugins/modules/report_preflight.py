#!/usr/bin/python
# MIT licence (see LICENSE)
"""Documentation of the action plugin of the same name; nothing of it runs on a host."""

DOCUMENTATION = r"""
module: report_preflight
author: the modelhost authors
short_description: Judge all hosts at once
description:
  - Holds what the role C(host_preflight) found on each host against what the inventory asks of
    it, and fails once, with every problem of every host.
options:
  promise:
    description: The sentence that says how far the run has come, where there are problems.
    type: str
    default: Nothing was changed.
"""
EXAMPLES = r"""
- name: Report every problem of every host
  modelhost.serving.report_preflight:
  run_once: true
"""
RETURN = r"""
problems:
  description: How many errors there are.
  returned: failure
  type: int
"""
