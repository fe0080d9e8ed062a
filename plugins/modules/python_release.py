#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: one versioned release of a Python program, from a hash-locked list."""

from __future__ import annotations

import hashlib
import os
import shutil

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: python_release
author: the modelhost authors
short_description: Install a Python program from a hash lock into its own release folder
description:
  - Makes C(/opt/modelhost/<component>/releases/<version>-<lock hash>/), a virtual environment
    with exactly what the lock names, every file checked against its hash by uv.
  - A release is never changed once it is complete. What is left of an interrupted one is
    removed and made again. The link C(current) is not touched; switching is the role's step.
  - Downloads go through C(with-mirrors), that is, with this host's mirrors, proxies and CA.
options:
  component:
    description: Folder below O(prefix).
    type: str
    required: true
  version:
    description: Version shown in the release's name.
    type: str
    required: true
  lock:
    description: Content of the lock, as C(uv pip compile --generate-hashes) writes it.
    type: str
    required: true
  excludes:
    description: Distributions that are left out although something depends on them.
    type: list
    elements: str
    default: []
  metadata_only:
    description: >-
      Distributions that are recorded as installed without any file, name to version: for a
      program that asks for its own version under a name its package does not carry.
    type: dict
    default: {}
  python:
    description: What uv should take as Python, C(3.11) or C(>=3.11.1,<3.14) or a path.
    type: str
    default: ">=3.11.1,<3.14"
  torch_backend:
    description: >-
      uv's C(--torch-backend), for instance V(cpu). It is tried where the host's own index and folders do not hold what
      the lock names. Empty never asks PyTorch's index.
    type: str
    default: ""
  prefix:
    description: Where components live.
    type: path
    default: /opt/modelhost
"""
EXAMPLES = r"""
- name: Install LiteLLM
  modelhost.serving.python_release:
    component: litellm
    version: 1.109.1
    lock: "{{ lookup('modelhost.serving.pin', 'litellm.lock', as_content=true) }}"
  register: __litellm_release
"""
RETURN = r"""
path:
  description: The release's folder.
  returned: always
  type: str
name:
  description: The release's name, C(<version>-<lock hash>).
  returned: always
  type: str
"""

#: Marks a release that was finished; holds nothing.
COMPLETE = ".complete"


def release_name(version: str, *ingredients: object) -> str:
    """<version>-<8 hex digits of what goes into the release>."""
    text = "\0".join(str(part) for part in ingredients)
    return "%s-%s" % (version, hashlib.sha256(text.encode()).hexdigest()[:8])


def write_metadata(environment: str, distributions: dict) -> None:
    """Record distributions that have no files of their own."""
    library = os.path.join(environment, "lib")
    (python,) = [name for name in os.listdir(library) if name.startswith("python")]
    for name, version in distributions.items():
        folder = os.path.join(library, python, "site-packages", "%s-%s.dist-info" % (name, version))
        os.makedirs(folder, exist_ok=True)
        files = {
            "METADATA": "Metadata-Version: 2.1\nName: %s\nVersion: %s\n" % (name, version),
            "INSTALLER": "modelhost\n",
            "RECORD": "",
        }
        for file_name, text in files.items():
            with open(os.path.join(folder, file_name), "w", encoding="utf-8") as handle:
                handle.write(text)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "component": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "lock": {"type": "str", "required": True},
            "excludes": {"type": "list", "elements": "str", "default": []},
            "metadata_only": {"type": "dict", "default": {}},
            "python": {"type": "str", "default": ">=3.11.1,<3.14"},
            "torch_backend": {"type": "str", "default": ""},
            "prefix": {"type": "path", "default": "/opt/modelhost"},
        },
        supports_check_mode=True,
    )
    params = module.params
    name = release_name(
        params["version"],
        params["lock"],
        sorted(params["excludes"]),
        sorted(params["metadata_only"].items()),
        params["python"],
    )
    path = os.path.join(params["prefix"], params["component"], "releases", name)
    if os.path.exists(os.path.join(path, COMPLETE)):
        module.exit_json(changed=False, path=path, name=name)
    if module.check_mode:
        module.exit_json(changed=True, path=path, name=name)

    if os.path.isdir(path):
        shutil.rmtree(path)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    tools = os.path.join(params["prefix"], "bin")
    uv = [os.path.join(tools, "with-mirrors"), os.path.join(tools, "uv")]
    module.run_command(uv + ["venv", "--python", params["python"], path], check_rc=True)

    # `environment`-like inputs lie in the module's own temporary folder, gone afterwards.
    lock = os.path.join(module.tmpdir, "lock.txt")
    excludes = os.path.join(module.tmpdir, "excludes.txt")
    for file_name, text in ((lock, params["lock"]), (excludes, "\n".join(params["excludes"]))):
        with open(file_name, "w", encoding="utf-8") as handle:
            handle.write(text + "\n")
    command = uv + [
        "pip",
        "install",
        "--python",
        os.path.join(path, "bin", "python"),
        "--require-hashes",
        "--no-deps",
        "--compile-bytecode",
        "-r",
        lock,
        "--excludes",
        excludes,
    ]
    attempts = [command]
    if params["torch_backend"]:
        # A mirror or a folder of wheels may hold that build of torch; PyTorch's own index is the way for all others.
        attempts.append([*command, "--torch-backend", params["torch_backend"]])
    errors = []
    for attempt in attempts:
        code, out, err = module.run_command(attempt)
        if code == 0:
            break
        errors.append(err.strip())
    else:
        module.fail_json(
            msg="uv could not install %s %s: %s" % (params["component"], params["version"], "\n".join(errors)),
            stdout=out,
            stderr=err,
            rc=code,
        )
    write_metadata(path, params["metadata_only"])
    # uv's lock is writable for everyone; nothing installs into a finished release any more.
    if os.path.exists(os.path.join(path, ".lock")):
        os.remove(os.path.join(path, ".lock"))
    with open(os.path.join(path, COMPLETE), "w", encoding="utf-8"):
        pass
    module.exit_json(changed=True, path=path, name=name)


if __name__ == "__main__":
    main()
