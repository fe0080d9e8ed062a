#!/usr/bin/python
# MIT licence (see LICENSE)
"""Documentation of the action plugin of the same name; nothing of it runs on a host."""

DOCUMENTATION = r"""
module: compose_project
author: the modelhost authors
short_description: Write a Docker Compose project of what a host's engines and gateway would be
description:
  - From the inventory, and from the facts that the role C(host_preflight) keeps where there are any, writes a folder on
    the controller that runs the host's engines and a gateway by C(docker compose), with the flags that a deployment by
    this project gives to its units. The host is not contacted.
  - Keys are made once and kept. No key is returned, logged or shown in a diff.
options:
  directory:
    description: Folder on the controller; each host gets a folder in it.
    type: path
    required: true
  engine:
    description: What runs the models.
    type: str
    choices: [vllm, ollama]
    required: true
  hardware_source:
    description: Where the facts are from, in words, for the output and the files. Empty where there are none.
    type: str
    default: ""
  gpu:
    description: How GPUs are named, by the driver C(nvidia) of Docker or by CDI.
    type: str
    choices: [nvidia, cdi]
    default: nvidia
  allow_unpinned:
    description: Take an image by its tag alone where C(versions.yml) has no digest.
    type: bool
    default: false
  ollama_image:
    description: Another image of Ollama than that of C(versions.yml).
    type: str
    default: ""
  ollama_models:
    description: A folder of the host that holds Ollama's models; without it they are pulled.
    type: str
    default: ""
"""
EXAMPLES = r"""
- name: Write the project
  modelhost.serving.compose_project:
    directory: compose
    engine: vllm
"""
RETURN = r"""
directory:
  description: The project's folder.
  returned: success
  type: str
files:
  description: Names of the files that were written, or in check mode would have been.
  returned: success
  type: list
  elements: str
msg:
  description: What was exported, from what, and what to know about it.
  returned: always
  type: list
"""
