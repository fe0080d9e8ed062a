#!/usr/bin/python
# MIT licence (see LICENSE)
"""Documentation of the action plugin of the same name; nothing of it runs on the host."""

DOCUMENTATION = r"""
module: stage_models
author: the modelhost authors
short_description: Run the job of the store of weights, and show how far it is
description:
  - Starts the unit without waiting for it, then shows bytes, rate and time left until it ends. The unit does not need
    this run of Ansible; where an earlier run, or somebody, has started it, it is followed and not started again.
  - A connection that is lost is made again, for ten minutes.
options:
  unit:
    description: Name of the unit, of type C(oneshot).
    type: str
    required: true
  status:
    description: The file in which the job says how far it is.
    type: path
    required: true
  depends:
    description: Files that the job goes by. Where one of them is younger than a job that runs, that does something else
      than what is wanted now, and is started anew. What it has done so far is not lost.
    type: list
    elements: path
    default: []
  started:
    description: The file that the unit touches when it starts. Needed with O(depends).
    type: path
"""
EXAMPLES = r"""
- name: Bring the weights
  modelhost.serving.stage_models:
    unit: model-store@stage.service
    status: /run/modelhost-model-store/stage.json
"""
RETURN = r"""
results:
  description: What became of each model.
  returned: when the job ran
  type: list
  elements: dict
transferred:
  description: Bytes that came over the network.
  returned: when the job ran
  type: int
seconds:
  description: How long it took.
  returned: when the job ran
  type: float
"""
