#!/usr/bin/python
# MIT licence (see LICENSE)
"""Documentation of the action plugin of the same name; nothing of it runs on a host."""

DOCUMENTATION = r"""
module: capacity_plan
author: the modelhost authors
short_description: Say what fits on each host of a play
description:
  - For each host of the play, from the facts that the role C(host_preflight) keeps or from its variable
    C(capacity_plan_hardware), says which models of the catalogue fit and why others do not, how many
    sessions and how fast, what to choose, and which flags the instances of the inventory get from where.
  - Prints a table and writes C(plan.json), C(plan.html) and C(facts/<host>.json) on the controller.
    Changes nothing on any host.
options:
  developers:
    description: How many people shall work with a host at the same time.
    type: int
    required: true
  output:
    description: Folder on the controller for the files.
    type: path
    required: true
"""
EXAMPLES = r"""
- name: Say what fits
  modelhost.serving.capacity_plan:
    developers: 4
    output: plan
  run_once: true
  delegate_to: localhost
"""
RETURN = r"""
plan:
  description: The plan as C(plan.json) holds it; docs/plan.md explains its keys.
  returned: success
  type: dict
"""
