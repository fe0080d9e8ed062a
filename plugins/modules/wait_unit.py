#!/usr/bin/python
# MIT licence (see LICENSE)
"""Documentation of the action plugin of the same name; nothing of it runs on the host."""

DOCUMENTATION = r"""
module: wait_unit
author: the modelhost authors
short_description: Wait until a systemd unit is active, and show how far it is
description:
  - Asks systemd on the host for the unit's state until it is C(active). While it waits it shows
    the phase, the time that has passed and the journal's last line.
  - Ends at once, with the end of the journal, when the unit has failed or was stopped.
  - A unit whose C(ExecStartPost=) waits for its service to answer is active only when it serves.
options:
  unit:
    description: Name of the unit.
    type: str
    required: true
  timeout:
    description: Seconds to wait at most.
    type: int
    default: 600
  phases:
    description: >-
      What lines of the journal mean, a list of C({pattern, phase}); the last match counts.
    type: list
    elements: dict
    default: []
  journal_lines:
    description: Lines of the journal that an error shows.
    type: int
    default: 40
"""
EXAMPLES = r"""
- name: Wait for the engine
  modelhost.serving.wait_unit:
    unit: vllm@coder.service
    timeout: 900
"""
RETURN = r"""
seconds:
  description: How long it took.
  returned: success
  type: float
"""
