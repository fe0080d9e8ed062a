#!/usr/bin/python
# MIT licence (see LICENSE)
"""Documentation of the action plugin of the same name; nothing of it runs on a host."""

DOCUMENTATION = r"""
module: bundle_build
author: the modelhost authors
short_description: Build a folder with all that an inventory's hosts fetch
description:
  - From what the roles say that each host would fetch (C(tasks/needs.yml) of each), makes a folder on the controller
    with wheels, packages, npm's cache, images, weights and the project itself. No host is contacted.
  - Files that are there already are not fetched again, and files that no longer belong to it are removed. Without a
    C(manifest.json) a bundle is not finished.
  - In check mode only its size is told.
options:
  directory:
    description: The folder.
    type: path
    required: true
  apt_sources:
    description: Sources of packages by codename.
    type: dict
    default: {}
  python_mirror:
    description: Where uv's builds of Python are fetched from.
    type: str
    default: ""
  npm_registry:
    description: The npm registry.
    type: str
    default: ""
  images:
    description: Whether images are taken along.
    type: bool
    default: true
  models:
    description: Whether weights are taken along.
    type: bool
    default: true
  model_sources:
    description: Sources of weights, as C(hf_mirror_sources) has them.
    type: list
    elements: dict
    default: []
  signing_key:
    description: Key to sign the checksums with.
    type: str
    default: ""
  archive:
    description: Pack it as well.
    type: bool
    default: false
  split_size:
    description: Size of the parts of the archive.
    type: str
    default: ""
  reserve_gib:
    description: Space in GiB that stays free.
    type: float
    default: 1
"""
EXAMPLES = r"""
- name: Build the bundle
  modelhost.serving.bundle_build:
    directory: bundle
  run_once: true
  delegate_to: localhost
"""
RETURN = r"""
directory:
  description: The bundle's folder.
  returned: success
  type: str
bytes:
  description: Size of the whole, as far as it is known before.
  returned: success
  type: int
missing:
  description: Bytes of it that were not there yet.
  returned: success
  type: int
"""
