#!/usr/bin/python
# MIT licence (see LICENSE)
"""Documentation of the action plugin of the same name; nothing of it runs on a host."""

DOCUMENTATION = r"""
module: report_site
author: the modelhost authors
short_description: Say what runs where
description:
  - Shows engines, gateways and users with their addresses, where keys lie, and the lines that
    point Claude Code at them. Never shows a key.
options: {}
"""
EXAMPLES = r"""
- name: Say what runs where
  modelhost.serving.report_site:
  run_once: true
"""
RETURN = r"""
msg:
  description: The report.
  returned: always
  type: list
  elements: str
"""
