#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: one versioned release of a Python program, from a hash-locked list."""

from __future__ import annotations

import hashlib
import os
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.modelhost.serving.plugins.module_utils import release_files

DOCUMENTATION = r"""
module: python_release
author: the modelhost authors
short_description: Install a Python program from a hash lock into its own release folder
description:
  - Makes C(/opt/modelhost/<component>/releases/<version>-<lock hash>/), a virtual environment
    with exactly what the lock names, every file checked against its hash by uv.
  - A release is whole or it is not there. It is made beside its place, every file is held against its
    distribution's RECORD, and only then it is put there. What is left of an interrupted one is removed.
  - Each later run looks at the sizes of all files. Where something is missing or differs, the release is
    made anew and takes the place of the damaged one; the file C(.complete) in it is new then.
  - The link C(current) is not touched; switching is the role's step.
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
  shared:
    description: >-
      Files, as paths below C(site-packages), of which two distributions may have different content, because nothing
      loads them. Any other such file ends the installation: which content it has would be a matter of luck.
    type: list
    elements: str
    default: []
  links:
    description: >-
      Symbolic links to make in the release, path to target. A relative target is a place in the release, and
      C({site}) in it stands for its C(site-packages).
    type: dict
    default: {}
  check:
    description: >-
      What of a finished release is held against its RECORDs in a later run: the V(sizes) of all files, or their
      V(contents), which reads all of it (the release for GPUs has 8 GB).
    type: str
    choices: [sizes, contents]
    default: sizes
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
damage:
  description: Why a finished release was made anew; empty where nothing was wrong.
  returned: always
  type: str
python:
  description: The Python that the release runs on, as a path without links; empty before there is one.
  returned: always
  type: str
"""


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


class Release:
    """One release: how it is made, beside its place, and put there."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module, self.params = module, module.params
        params = self.params
        ingredients = [
            params["lock"],
            sorted(params["excludes"]),
            sorted(params["metadata_only"].items()),
            params["python"],
        ]
        if params["links"]:
            ingredients.append(sorted(params["links"].items()))
        self.name = release_name(params["version"], *ingredients)
        self.path = os.path.join(params["prefix"], params["component"], "releases", self.name)
        self.fresh, self.control, self.old = (self.path + it for it in (".new", ".control", ".old"))
        tools = os.path.join(params["prefix"], "bin")
        self.uv = [os.path.join(tools, "with-mirrors"), os.path.join(tools, "uv")]

    def fail(self, why: str, **more: object) -> None:
        """End with a reason; nothing half made stays."""
        self.clear()
        self.module.fail_json(
            msg="%s %s cannot be installed: %s" % (self.params["component"], self.params["version"], why), **more
        )

    def clear(self) -> None:
        """Remove what an interrupted run left."""
        for folder in (self.fresh, self.control, self.old):
            if os.path.isdir(folder):
                shutil.rmtree(folder)

    def install(self, path: str, excludes: list, *more: str) -> None:
        """An environment with what the lock names. It can be moved: programs in it find their Python beside them."""
        self.module.run_command(
            [*self.uv, "venv", "--relocatable", "--python", self.params["python"], path], check_rc=True
        )
        # `environment`-like inputs lie in the module's own temporary folder, gone afterwards.
        files = {"lock.txt": self.params["lock"], "excludes.txt": "\n".join(excludes)}
        for name, text in files.items():
            with open(os.path.join(self.module.tmpdir, name), "w", encoding="utf-8") as handle:
                handle.write(text + "\n")
        lock, left_out = (os.path.join(self.module.tmpdir, name) for name in files)
        command = [*self.uv, "pip", "install", "--python", os.path.join(path, "bin", "python"), *more]
        command += ["--require-hashes", "--no-deps", "--compile-bytecode", "-r", lock, "--excludes", left_out]
        attempts = [command]
        if self.params["torch_backend"]:
            # A mirror or a folder of wheels may hold that build of torch; PyTorch's own index is the way for others.
            attempts.append([*command, "--torch-backend", self.params["torch_backend"]])
        errors = []
        for attempt in attempts:
            code, out, err = self.module.run_command(attempt)
            if code == 0:
                return
            errors.append(err.strip())
        self.fail("uv says: " + "\n".join(errors), stdout=out, stderr=err, rc=code)

    def make(self) -> None:
        """A whole release in its place."""
        self.clear()
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        self.install(self.fresh, self.params["excludes"])
        twofold = release_files.conflicts(self.fresh, self.params["shared"])
        if twofold:
            some = ["%s (%s)" % (path, " and ".join(names)) for path, names in sorted(twofold.items())[:5]]
            self.fail(
                "%d file(s) have two owners with different content, so the lock does not fit together: %s"
                % (len(twofold), ", ".join(some))
            )
        accepted = self.checked()
        write_metadata(self.fresh, self.params["metadata_only"])
        release_files.make_links(self.fresh, self.params["links"])
        # uv's lock is writable for everyone; nothing installs into a finished release any more.
        if os.path.exists(os.path.join(self.fresh, ".lock")):
            os.remove(os.path.join(self.fresh, ".lock"))
        # The mark must not outlive files that a power cut takes.
        os.sync()
        release_files.write_mark(self.fresh, accepted)
        if os.path.isdir(self.path):
            os.rename(self.path, self.old)
        os.rename(self.fresh, self.path)
        self.clear()

    def checked(self) -> dict:
        """What is as its wheel has it and not as its RECORD says, path to hash and size; all else is right now.

        Some wheels have a wrong RECORD. A second copy of those distributions, past uv's cache, tells a wrong RECORD
        from a file that was spoilt on its way.
        """
        found = release_files.wrong(self.fresh, True, {})
        if not found:
            return {}
        own = release_files.owners(self.fresh)
        suspects = {name for path in found for names in own[path].values() for name in names}
        names = {name: name.split("-")[0] for name in release_files.distributions(self.fresh)}
        others = [name for folder, name in names.items() if folder not in suspects]
        self.install(self.control, [*self.params["excludes"], *others], "--no-cache")
        accepted, spoilt = self.compared(found)
        if spoilt:
            self.module.run_command([*self.uv, "cache", "clean", *sorted(names[it] for it in suspects)], check_rc=True)
            shutil.rmtree(self.fresh)
            self.install(self.fresh, self.params["excludes"])
            found = release_files.wrong(self.fresh, True, {})
            accepted, spoilt = self.compared(found)
        if spoilt:
            self.fail(release_files.told(spoilt) + "; see whether this host's disk and memory are sound")
        return accepted

    def compared(self, found: dict) -> tuple:
        """Of what differs from RECORDs: what the second copy has too, and the rest."""
        site, accepted, spoilt = release_files.site_packages(self.fresh), {}, {}
        for path, why in found.items():
            here, there = (os.path.join(folder, site, path) for folder in (self.fresh, self.control))
            if os.path.isfile(here) and os.path.isfile(there):
                value = release_files.digest(here)
                if value == release_files.digest(there):
                    accepted[path] = [value, os.stat(here).st_size]
                    continue
            spoilt[path] = why
        return accepted, spoilt

    def result(self, changed: bool, damage: dict) -> None:
        """The module's answer."""
        python = os.path.join(self.path, "bin", "python")
        self.module.exit_json(
            changed=changed,
            path=self.path,
            name=self.name,
            damage=release_files.told(damage) if damage else "",
            python=os.path.realpath(python) if os.path.exists(python) else "",
        )


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
            "shared": {"type": "list", "elements": "str", "default": []},
            "links": {"type": "dict", "default": {}},
            "check": {"type": "str", "choices": ["sizes", "contents"], "default": "sizes"},
            "prefix": {"type": "path", "default": "/opt/modelhost"},
        },
        supports_check_mode=True,
    )
    release = Release(module)
    mark = release_files.read_mark(release.path)
    damage: dict = {}
    if mark is not None:
        damage = release_files.damage(release.path, mark, module.params["check"] == "contents", module.params["links"])
        if not damage:
            if not mark and not module.check_mode:
                release_files.renew_mark(release.path)
            release.result(False, {})
        module.warn("%s: %s; it is made anew" % (release.path, release_files.told(damage)))
    if not module.check_mode:
        release.make()
    release.result(True, damage)


if __name__ == "__main__":
    main()
