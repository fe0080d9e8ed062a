#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: a container image on the host, and its id. The action plugin of this name pulls with progress."""

import glob
import hashlib
import json
import os
import re
import subprocess

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: container_image
author: the modelhost authors
short_description: Have a container image on the host
description:
  - Gets an image by its digest from a registry, with progress on the screen, or from an archive whose checksum is
    known, and returns its id. Units name images by this id, so that nothing runs but what was asked for.
  - What is there already is not fetched again. A pull goes on in the background when the connection is lost; the next
    run waits for it.
  - Remembers which images it brought for which component, so that these and no others can be removed.
options:
  component:
    description: Whose image it is.
    type: str
    required: true
  state:
    description: V(absent) removes every image that was brought for O(component), unless something else uses it.
    type: str
    choices: [present, absent]
    default: present
  image:
    description: A reference with a digest (C(docker.io/vllm/vllm-openai@sha256:…)), or the id (C(sha256:…)) of an image
      that the host has. Beside O(archive) it says what that holds, so that it is found by either.
    type: str
    default: ""
  archive:
    description: An archive of one image as C(docker save) writes it, on the controller. Its copy on the host is removed
      when it is loaded.
    type: path
    default: ""
  archive_sha256:
    description: Checksum of O(archive), 64 hex digits.
    type: str
    default: ""
  archive_remote_src:
    description: O(archive) lies on the host, and stays there.
    type: bool
    default: false
  load:
    description: Load O(archive), which lies on this host. For the action plugin.
    type: bool
    default: false
  pulled:
    description: O(image) was pulled just now, and is ours to remove. For the action plugin.
    type: bool
    default: false
"""
EXAMPLES = r"""
- name: Get the engine's image
  modelhost.serving.container_image:
    component: vllm
    image: docker.io/vllm/vllm-openai@sha256:0123…
  register: image
"""
RETURN = r"""
id:
  description: The image's id; in check mode, and where it is not there yet, what was asked for.
  returned: always
  type: str
"""

#: A folder for each component with what references and archives became: an archive that was loaded is not needed again.
KEPT = "/var/lib/modelhost/images"
DOCKER = "docker"


def docker(module, *arguments):
    """(exit status, output) of a docker command."""
    status, out, err = module.run_command([DOCKER] + list(arguments))
    return status, (out + err).strip()


def id_of(module, image):
    """The id of an image that the host has, or nothing."""
    status, out = docker(module, "image", "inspect", "--format", "{{.Id}}", image)
    return out if status == 0 else ""


def marker(component, key):
    """Where the id of an image is kept; key: the archive's checksum or the reference."""
    return os.path.join(KEPT, component, hashlib.sha256(key.encode()).hexdigest()[:16] + ".json")


def remembered(path):
    """The id in a marker, or nothing."""
    try:
        with open(path, encoding="utf-8") as handle:
            return str(json.load(handle)["id"])
    except (OSError, ValueError, KeyError):
        return ""


def remember(component, key, image):
    """Write a marker."""
    path = marker(component, key)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as handle:
        json.dump({"id": image, "from": key}, handle)
    os.replace(path + ".new", path)


def remove(module, component):
    """Remove a component's images and their markers. True where there were any."""
    own = glob.glob(os.path.join(KEPT, component, "*.json"))
    others = {remembered(path) for path in glob.glob(os.path.join(KEPT, "*", "*.json")) if path not in own}
    for path in [] if module.check_mode else own:
        image = remembered(path)
        if image and image not in others and id_of(module, image):
            # All of its names; an image that a container of somebody else's uses stays.
            docker(module, "image", "rm", "--force", image)
        os.remove(path)
    return bool(own)


def sha256(path):
    """Checksum of a file that may be larger than memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def load(module, path, checksum):
    """Load an archive and return its image's id."""
    found = sha256(path)
    if found != checksum:
        module.fail_json(
            msg="%s has the SHA-256 %s, and %s was expected: nothing was loaded. Copy it again, or set its checksum."
            % (path, found, checksum)
        )
    with open(path, "rb") as handle:
        done = subprocess.run(
            [DOCKER, "load"], stdin=handle, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    out = done.stdout.decode("utf-8", "replace")
    names = re.findall(r"^Loaded image(?: ID)?: (\S+)$", out, re.M)
    if done.returncode or len(names) != 1:
        why = "holds %d images, and one is expected" % len(names) if names else "could not be loaded: " + out.strip()
        module.fail_json(msg="%s %s" % (path, why))
    return id_of(module, names[0])


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "component": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "image": {"type": "str", "default": ""},
            "archive": {"type": "path", "default": ""},
            "archive_sha256": {"type": "str", "default": ""},
            "archive_remote_src": {"type": "bool", "default": False},
            "load": {"type": "bool", "default": False},
            "pulled": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    component, image, archive, checksum = (
        module.params[name] for name in ("component", "image", "archive", "archive_sha256")
    )
    keys = ([checksum] if archive else []) + ([image] if image else [])
    if module.params["state"] == "absent":
        module.exit_json(changed=remove(module, component), id="")
    if not module.get_bin_path(DOCKER):
        if module.check_mode:
            module.exit_json(changed=True, id="")
        module.fail_json(msg="this host has no docker command; the role docker_engine installs it")
    # What was loaded may have been for another component, and has lost the name that it had in its registry.
    known = [remembered(path) for key in keys for path in glob.glob(marker("*", key))]
    found = next(filter(None, (id_of(module, name) for name in known + [image] if name)), "")
    loads = not found and module.params["load"]
    if loads and not module.check_mode:
        found = load(module, archive, checksum)
    # What was there before is somebody else's.
    if found and (loads or module.params["pulled"]) and not module.check_mode:
        for key in keys:
            remember(component, key, found)
    module.exit_json(changed=loads, id=found)


if __name__ == "__main__":
    main()
