#!/usr/bin/python
# MIT licence (see LICENSE)
"""Documentation of the action plugin of the same name; nothing of it runs on the host as a module."""

DOCUMENTATION = r"""
module: bundle_push
author: the modelhost authors
short_description: Bring files of a bundle to a host
description:
  - Brings files from the controller in chunks, over whatever connection the host has, and shows bytes, rate and time
    left.
  - What arrived is kept when a run is interrupted, and the next one goes on there. A file gets its name when its
    SHA-256 is right, so one that came in part is never used; one that arrived damaged is sent once more.
  - Looks for space on the host before it sends anything. What is there already is not sent again.
  - In check mode it says what it would bring.
options:
  bundle:
    description: The folder with the files. On the controller; with O(in_place) on the host.
    type: path
    required: true
  files:
    description: What shall be there.
    type: list
    elements: dict
    default: []
    suboptions:
      root:
        description: Folder of the host below which the file is put.
        type: path
        required: true
      path:
        description: Path below O(files[].root).
        type: str
        required: true
      source:
        description: Path below O(bundle), if it is another one.
        type: str
      size:
        description: Bytes.
        type: int
        required: true
      sha256:
        description: Checksum.
        type: str
        required: true
      unless:
        description: Paths of the host, any of which makes the file needless.
        type: list
        elements: path
        default: []
  in_place:
    description: The files lie on the host already. They are only checked, each once.
    type: bool
    default: false
  prune:
    description: Folders of the host in which nothing else stays.
    type: list
    elements: path
    default: []
"""
EXAMPLES = r"""
- name: Bring the wheels
  modelhost.serving.bundle_push:
    bundle: /media/usb/bundle
    files: "{{ wiring_bundle.files }}"
"""
RETURN = r"""
files:
  description: How many files were brought, or would be.
  returned: success
  type: int
bytes:
  description: How many bytes of them were missing.
  returned: success
  type: int
"""
