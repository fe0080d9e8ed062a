#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: what a mirror answers about the models that lie in its store."""

from __future__ import annotations

import hashlib
import json
import os
import re
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.modelhost.serving.plugins.module_utils import model_manifest

DOCUMENTATION = r"""
module: hf_mirror_listing
author: the modelhost authors
short_description: Write what a mirror answers about its models
description:
  - Looks at the manifests of a store of weights and writes, in the words of the Hugging Face hub, the answers about
    each model that is complete, and a piece of nginx's configuration in which each of their files is named. A file that
    is not named there is not served.
  - Files that are right already are left alone, those of models that are gone are removed.
options:
  store:
    description: The store, with C(<org>/<repo>/<revision>/) below it.
    type: path
    required: true
  path:
    description: Folder for the answers. It belongs to this module alone.
    type: path
    required: true
"""
EXAMPLES = r"""
- name: List what is served
  modelhost.serving.hf_mirror_listing:
    store: /var/lib/modelhost/models
    path: /var/cache/modelhost/hf_mirror
"""
RETURN = r"""
digest:
  description: SHA-256 of everything that was or would be written; another one means that nginx has to read it again.
  returned: always
  type: str
models:
  description: What is served, each as C(<org>/<repo>@<revision>).
  returned: always
  type: list
  elements: str
probe:
  description: Path below the mirror's address of one file that is served. Empty where there is none.
  returned: always
  type: str
"""

#: The piece of nginx's configuration.
LOCATIONS = "locations.conf"
#: Names that the hub allows.
NAME = re.compile(r"[\w][\w.-]*\Z", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}\Z")


def pointer(item: dict) -> bytes:
    """What git holds in place of a large file."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n"
    return (text % (item["sha256"], item["size"])).encode()


def git_id(content: bytes) -> str:
    """git's name of a file with this content."""
    digest = model_manifest.git_blob(len(content))
    digest.update(content)
    return digest.hexdigest()


def is_large(item: dict) -> bool:
    """Whether the hub names a file by its SHA-256. So do we where nobody told git's name of it."""
    return bool(item.get("lfs") or not item.get("blob_id"))


def entry(item: dict) -> dict:
    """A file as the hub's tree shows it."""
    shown = {"type": "file", "oid": item.get("blob_id"), "size": item["size"], "path": item["path"]}
    if is_large(item):
        small = pointer(item)
        shown["oid"] = shown["oid"] or git_id(small)
        shown["lfs"] = {"oid": item["sha256"], "size": item["size"], "pointerSize": len(small)}
    return shown


def folders(files: list) -> dict:
    """Folder → what lies directly in it, as the hub's tree shows it; "" is the top."""
    found: dict = {"": []}
    for item in files:
        above, parts = "", item["path"].split("/")
        for part in parts[:-1]:
            here = above + "/" + part if above else part
            if here not in found:
                found[here] = []
                found[above].append({"type": "directory", "oid": git_id(here.encode()), "size": 0, "path": here})
            above = here
        found[above].append(entry(item))
    return found


def answers(repo: str, revision: str, manifest: dict, name: str) -> dict:
    """File below the folder of answers → what the hub would say of the model, asked for the revision `name`."""
    files = sorted(manifest["files"], key=lambda item: item["path"])
    siblings = []
    for item in files:
        shown = entry(item)
        sibling = {"rfilename": item["path"], "size": item["size"], "blobId": shown["oid"]}
        if "lfs" in shown:
            sibling["lfs"] = {
                "sha256": item["sha256"],
                "size": item["size"],
                "pointerSize": shown["lfs"]["pointerSize"],
            }
        siblings.append(sibling)
    model = {
        "id": repo,
        "modelId": repo,
        "author": repo.split("/")[0],
        "sha": revision,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": siblings,
    }
    tree = folders(files)
    top = "api/models/%s" % repo
    found: dict = {"%s/revision/%s.json" % (top, name): model}
    for folder, inside in tree.items():
        below = "/" + folder if folder else ""
        found["%s/tree/%s%s.json" % (top, name, below)] = inside
        deeper = [
            item
            for key in sorted(tree)
            if key == folder or not folder or key.startswith(folder + "/")
            for item in tree[key]
        ]
        found["%s/tree/%s%s.recursive.json" % (top, name, below)] = deeper
    if name == "main":
        found[top + ".json"] = model
    return found


def quoted(text: str, variables: bool = True) -> str:
    """A word of nginx's configuration. Nothing gets into it but by this.

    variables: nginx looks for `$name` where the word stands (as everywhere but in a location's path) and knows no way
    to write a plain `$` there, so one is refused; and so is what ends a line.
    """
    if model_manifest.UNPRINTABLE.search(text) or (variables and "$" in text):
        raise ValueError("this cannot stand in nginx's configuration: %r" % text[:80])
    return '"%s"' % text.replace("\\", "\\\\").replace('"', '\\"')


def missing(code: str, revision: str = "") -> str:
    """How nginx says that something is not there."""
    commit = " add_header X-Repo-Commit %s always;" % quoted(revision) if revision else ""
    return "{ add_header X-Error-Code %s always;%s return 404; }" % (quoted(code), commit)


def place(path: str) -> str:
    """The path of a location, in which `$` means nothing."""
    return quoted(path, variables=False)


def locations(repo: str, revisions: dict, main: str, path: str) -> list:
    """nginx's configuration for one model. A location begins with `=` where it is the whole path, so that no name of a
    file can mean anything else, and none that no manifest holds is found."""
    lines = [
        # What the client asks of branches and commits that are not here.
        "location %s { root %s; default_type application/json; try_files $uri$hf_mirror_recursive.json @no_revision; }"
        % (place("/api/models/%s/" % repo), quoted(path)),
        "location %s %s" % (place("/%s/resolve/" % repo), missing("RevisionNotFound")),
        "location %s { rewrite ^/([^/]+/[^/]+)/resolve/main/(.*)$ /$1/resolve/%s/$2 last; }"
        % (place("/%s/resolve/main/" % repo), quoted(main).strip('"')),
    ]
    for revision, manifest in sorted(revisions.items()):
        top = "/%s/resolve/%s/" % (repo, revision)
        lines.append("location %s %s" % (place(top), missing("EntryNotFound", revision)))
        for item in manifest["files"]:
            tag = item["sha256"] if is_large(item) else item["blob_id"]
            lines.append(
                "location = %s { add_header ETag %s; add_header X-Repo-Commit %s;"
                " rewrite ^/([^/]+/[^/]+)/resolve/(.*)$ /$1/$2 break; }"
                % (place(top + item["path"]), quoted('"%s"' % tag), quoted(revision))
            )
    return lines


def staged(store: str, warn) -> dict:
    """Model → revision → manifest, of those that are complete."""
    found: dict = {}
    for repo, revision, path in model_manifest.models_in(store):
        if not all(NAME.match(part) for part in repo.split("/")) or not COMMIT.match(revision):
            continue  # Made here and not by a hub: nobody would ask a hub for it.
        try:
            manifest = model_manifest.read(path)
        except model_manifest.ManifestError as error:
            warn("not served: %s" % error)
            continue
        if manifest is None:
            continue
        wrong = model_manifest.differences(path, manifest)
        if wrong:
            warn("not served: %s is damaged (%s: %s); run playbooks/verify_models.yml" % ((path, *wrong[0])))
            continue
        found.setdefault(repo, {})[revision] = manifest
    return found


def newest(store: str, repo: str, revisions) -> str:
    """The revision that came last: what the mirror calls main."""
    return max(
        revisions, key=lambda name: (os.stat(model_manifest.path_of(os.path.join(store, repo, name))).st_mtime, name)
    )


def listing(store: str, path: str, warn) -> tuple:
    """(file → content, what is served, path of a file)."""
    files, lines, models, probe = {}, [], [], ""
    for repo, revisions in sorted(staged(store, warn).items()):
        main = newest(store, repo, revisions)
        for revision, manifest in sorted(revisions.items()):
            for name in [revision] + (["main"] if revision == main else []):
                for file, content in answers(repo, revision, manifest, name).items():
                    files[file] = json.dumps(content)
            models.append("%s@%s" % (repo, revision))
            probe = probe or "/%s/resolve/%s/%s" % (repo, revision, quote(manifest["files"][0]["path"]))
        lines += locations(repo, revisions, main, path)
    files[LOCATIONS] = "# Made by Ansible from the manifests of %s.\n%s\n" % (quoted(store), "\n".join(lines))
    return files, models, probe


def present(path: str) -> dict:
    """File → content, of what lies there."""
    found = {}
    for folder, _folders, names in os.walk(path):
        for name in names:
            full = os.path.join(folder, name)
            with open(full, encoding="utf-8", errors="replace") as handle:
                found[os.path.relpath(full, path)] = handle.read()
    return found


def keep(path: str, there: dict, wanted: dict) -> None:
    """Make the folder hold exactly this, file by file, none of them ever half."""
    for name, content in wanted.items():
        full = os.path.join(path, name)
        if there.get(name) == content:
            continue
        os.makedirs(os.path.dirname(full), mode=0o755, exist_ok=True)
        with open(full + ".new", "w", encoding="utf-8") as handle:
            handle.write(content)
        os.chmod(full + ".new", 0o644)
        os.replace(full + ".new", full)
    for name in set(there) - set(wanted):
        os.unlink(os.path.join(path, name))
    for folder, _folders, _names in os.walk(path, topdown=False):
        if folder != path and not os.listdir(folder):
            os.rmdir(folder)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "store": {"type": "path", "required": True},
            "path": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        wanted, models, probe = listing(module.params["store"], module.params["path"], module.warn)
    except ValueError as error:
        module.fail_json(msg="%s: choose folders without such signs" % error)
    there = present(module.params["path"])
    changed = there != wanted
    if changed and not module.check_mode:
        # What Ansible runs under may mask more than the server's account can bear.
        os.umask(0o022)
        keep(module.params["path"], there, wanted)
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    module.exit_json(changed=changed, digest=digest, models=models, probe=probe)


if __name__ == "__main__":
    main()
