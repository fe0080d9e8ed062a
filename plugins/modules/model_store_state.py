#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: a quick look at the store of weights, and the removal of what nobody uses."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.modelhost.serving.plugins.module_utils import model_manifest

DOCUMENTATION = r"""
module: model_store_state
author: the modelhost authors
short_description: Say what lies in the store of weights, and remove revisions that nobody uses
description:
  - Holds names and sizes against the manifest of each model; reads no weights, so it takes no time. (The hashes are
    checked by C(playbooks/verify_models.yml).)
  - Revisions are only ever removed with O(prune), if this project put them there (they have its manifest), if
    they are not in O(keep), if nobody is staging them and if no process uses them.
options:
  store:
    description: The folder of all models.
    type: path
    required: true
  models:
    description: Models to look for, each with C(repo) (C(org/name)) and C(revision) (the commit); if known, with C(id)
      (its name in messages), C(path) (its folder, if that is not C(<store>/<repo>/<revision>)) and C(weights_bytes)
      (about how many bytes it has). Other keys are of no interest here.
    type: list
    elements: dict
    default: []
  built:
    description: Folders of models that the host builds by itself. They take their name when they are complete.
    type: list
    elements: path
    default: []
  keep:
    description: C(org/name/revision) of each model that some instance uses, beside O(models).
    type: list
    elements: str
    default: []
  prune:
    description: Remove the revisions of RV(unused) and the leftovers of RV(leftovers).
    type: bool
    default: false
"""
EXAMPLES = r"""
- name: Look at the store
  modelhost.serving.model_store_state:
    store: /var/lib/modelhost/models
    models:
      - {id: small, repo: Qwen/Qwen3-0.6B, revision: c1899de289a04d12100db370d81485cdf75e47ca}
  register: store
"""
RETURN = r"""
models:
  description: >-
    The models of O(models) in their order: C(id), C(repo), C(revision), C(path); C(staged), whether all files are there
    with the right size; C(manifest), whether it has one; C(verified), against what it was checked (C(hub),
    C(modelscope), C(manifest), C(cache) or C(recorded)); C(bytes) as the manifest has them; C(problems), a list of
    sentences; C(staging_bytes) of an interrupted download; C(missing_bytes), about what is still to be fetched.
  returned: always
  type: list
  elements: dict
unbuilt:
  description: Those of O(built) that are not there.
  returned: always
  type: list
  elements: path
unused:
  description: Revisions with our manifest that are not used (C(repo), C(revision), C(path), C(bytes), C(in_use)).
    C(in_use) says why one is not removed all the same; it is empty otherwise.
  returned: always
  type: list
  elements: dict
leftovers:
  description: What interrupted downloads and bundles of models that are not used left behind (C(path), C(bytes),
    C(in_use)).
  returned: always
  type: list
  elements: dict
foreign:
  description: Paths of revisions that are neither used nor have a manifest of ours. They are never removed.
  returned: always
  type: list
  elements: str
kept:
  description: With O(prune), what is not used and stays all the same, each with the reason.
  returned: always
  type: list
  elements: str
removed:
  description: Paths that were removed, or would be in check mode.
  returned: always
  type: list
  elements: str
removed_bytes:
  description: How many bytes they have.
  returned: always
  type: int
free_bytes:
  description: Free bytes of the file system of the store.
  returned: always
  type: int
"""

#: Where a revision is moved before its files go, so that no half of it is ever seen under its path.
REMOVING = ".removing"


def size(folder: str) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for base, _folders, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(base, name)).st_size
            except OSError:  # It is being downloaded, and was renamed just now.
                continue
    return total


def free(path: str) -> int:
    """Free bytes where a folder is or will be."""
    path = os.path.abspath(path)
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def look(store: str, model: dict) -> dict:
    """What is there of one model."""
    name = "%s/%s" % (model["repo"], model["revision"])
    path = model.get("path") or os.path.join(store, name)
    staging = size(os.path.join(store, model_manifest.STAGING, name))
    found = {
        "id": model.get("id") or name, "repo": model["repo"], "revision": model["revision"], "path": path,
        "staged": False, "manifest": False, "verified": "", "bytes": 0, "problems": [],
        "staging_bytes": staging, "missing_bytes": max(0, int(model.get("weights_bytes") or 0) - staging),
    }  # fmt: skip
    try:
        manifest = model_manifest.read(path)
    except model_manifest.ManifestError as error:
        found["problems"] = [str(error)]
        return found
    if manifest is None:
        if os.path.isdir(path):
            found["problems"] = ["%s has no manifest: an earlier release or a person put it there" % path]
        return found
    found.update(manifest=True, verified=manifest.get("verified", ""), missing_bytes=0)
    found["bytes"] = sum(item["size"] for item in manifest["files"])
    if (manifest.get("repo"), manifest.get("revision")) != (model["repo"], model["revision"]):
        found["problems"] = ["%s is of %s/%s" % (path, manifest.get("repo"), manifest.get("revision"))]
        return found
    wrong = dict(model_manifest.differences(path, manifest))
    found["problems"] = ["%s: %s" % item for item in sorted(wrong.items())]
    found["missing_bytes"] = sum(item["size"] for item in manifest["files"] if item["path"] in wrong)
    found["staged"] = not wrong
    return found


def users(paths: list) -> dict:
    """Which process has a folder on its command line or its files in memory: {folder: what it is}."""
    found: dict = {}
    for process in glob.glob("/proc/[0-9]*") if paths else []:
        if process == "/proc/%d" % os.getpid():
            continue
        text = b""
        for name in ("cmdline", "maps"):
            try:
                with open(os.path.join(process, name), "rb") as handle:
                    text += handle.read() + b"\n"
            except OSError:  # It ended, or it is a thread of the kernel.
                continue
        command = text.split(b"\n")[0].replace(b"\0", b" ").decode(errors="replace").strip()
        for path in paths:
            if os.fsencode(path) in text:
                found[path] = "process %s uses it (%s)" % (os.path.basename(process), command[:80])
    return found


def lock_path(store: str, name: str) -> str:
    """The lock that whoever stages C(org/name/revision) holds."""
    return os.path.join(store, model_manifest.LOCKS, name.replace("/", "--") + ".lock")


def locked(store: str, name: str) -> str:
    """Says so where somebody stages this model now."""
    try:
        with open(lock_path(store, name), "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return ""
    except OSError:
        return "it is being staged"
    return ""


def remove(store: str, path: str) -> None:
    """Take a folder away at once and then its files, with the folders above that are empty now."""
    place = os.path.join(store, REMOVING)
    os.makedirs(place, mode=0o755, exist_ok=True)
    target = os.path.join(place, os.path.relpath(path, store).replace("/", "--"))
    if os.path.lexists(target):
        shutil.rmtree(target)
    os.rename(path, target)
    above = os.path.dirname(path)
    while above != store:
        try:
            os.rmdir(above)
        except OSError:  # Another revision is there.
            break
        above = os.path.dirname(above)
    shutil.rmtree(target)


def work(params: dict, check_mode: bool) -> dict:
    """The whole look, and the removal if it is wanted."""
    store = os.path.abspath(params["store"])
    models = [look(store, model) for model in params["models"]]
    keep = set(params["keep"]) | {"%s/%s" % (model["repo"], model["revision"]) for model in models}
    own_paths = {os.path.abspath(model["path"]) for model in models}

    unused, foreign, leftovers = [], [], []
    for repo, revision, path in model_manifest.models_in(store):
        if "%s/%s" % (repo, revision) in keep or path in own_paths:
            continue
        try:
            manifest = None if os.path.islink(path) else model_manifest.read(path)
        except model_manifest.ManifestError:
            manifest = None
        if manifest is None:
            foreign.append(path)
        else:
            unused.append({"repo": repo, "revision": revision, "path": path, "bytes": size(path), "in_use": ""})
    for place in (model_manifest.STAGING, model_manifest.INCOMING):
        for repo, revision, path in model_manifest.models_in(os.path.join(store, place)):
            name = "%s/%s" % (repo, revision)
            if name not in keep:
                leftovers.append({"path": path, "bytes": size(path), "in_use": locked(store, name)})
    using = users([item["path"] for item in unused])
    for item in unused:
        item["in_use"] = using.get(item["path"]) or locked(store, "%s/%s" % (item["repo"], item["revision"]))

    idle = unused + leftovers if params["prune"] else []
    going = [item for item in idle if not item["in_use"]]
    unfinished = os.path.join(store, REMOVING)
    if params["prune"] and not check_mode:
        for item in going:
            remove(store, item["path"])
        # Also what a removal left that was interrupted.
        shutil.rmtree(unfinished, ignore_errors=True)
    return {
        "changed": bool(going),
        "models": models,
        "unbuilt": [path for path in params["built"] if not os.path.exists(path)],
        "unused": unused,
        "leftovers": leftovers,
        "foreign": foreign,
        "kept": ["%s: %s" % (item["path"], item["in_use"]) for item in idle if item["in_use"]],
        "removed": [item["path"] for item in going],
        "removed_bytes": sum(item["bytes"] for item in going),
        "free_bytes": free(store),
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "store": {"type": "path", "required": True},
            "models": {"type": "list", "elements": "dict", "default": []},
            "built": {"type": "list", "elements": "path", "default": []},
            "keep": {"type": "list", "elements": "str", "default": []},
            "prune": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        result = work(module.params, module.check_mode)
    except KeyError as error:
        module.fail_json(msg="an item of models has no %s" % error)
    except OSError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
