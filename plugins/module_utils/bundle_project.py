# MIT licence (see LICENSE)
"""The project itself as a part of a bundle: which of its files, and none that holds secrets. Runs on the controller."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_plan import BundleError
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_store import WORK
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_tools import anonymous
from ansible_collections.modelhost.serving.plugins.module_utils.problems import HOW_TO_VAULT

#: What stays out of the project's archive where git cannot tell.
OUTSIDE = re.compile(r"(^|/)(\.git|\.cache|__pycache__|\.\w+_cache|\.ansible|\.venv|\.hypothesis)(/|$)|\.pyc$")
VAULT = "$ANSIBLE_VAULT"


def of_git(root: Path, *options: str) -> list[str]:
    """Files of the project as `git ls-files` lists them; none where it is no git checkout of its own."""
    if not (root / ".git").exists() or not shutil.which("git"):
        return []
    done = subprocess.run(["git", "ls-files", "-z", *options], cwd=root, capture_output=True, text=True, check=False)
    return sorted(name for name in done.stdout.split("\0") if name and os.path.lexists(root / name))


def project_files(root: Path) -> list[str]:
    """The project's files: those that git knows; without git all but caches."""
    known = of_git(root)
    if known:
        return known
    found = []
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root).as_posix()
        # A link to a folder is a file of the project, and not gone into.
        links = [it for it in folders if (Path(folder) / it).is_symlink()]
        names += links
        inside = [it for it in folders if it not in links and not OUTSIDE.search(f"{here}/{it}")]
        folders[:] = [it for it in inside if not (Path(folder) / it / WORK).exists()]
        found += [f"{here}/{it}".removeprefix("./") for it in names if not OUTSIDE.search(f"{here}/{it}")]
    return sorted(found)


def packed_files(root: Path, besides: Path, inventories: list[Path]) -> list[str]:
    """Those that go into a bundle: without the bundle itself, and without the inventories in use, which hold secrets.

    Raises BundleError where an inventory cannot be told from the project, or where another one holds a plain key.
    """
    inside = [path for path in inventories if path.is_relative_to(root)]
    if root in inside:
        why = "it lies in the project's own folder, and what is of the one could not be told from what is of the other"
        fix = "move it into a folder of its own, such as inventories/site/"
        raise BundleError("the inventory", str(root), why, fix)
    files = [it for it in project_files(root) if not (root / it).is_relative_to(besides)]
    files = [it for it in files if not any((root / it).is_relative_to(path) for path in inside)]
    for name in files:
        if re.search(r"\.(ya?ml|json)$", name) and (
            "/" not in name or re.search(r"(^|/)(inventor|group_|host_)", name)
        ):
            refuse_plain_keys(root / name, name)
    return files


class Loader(yaml.SafeLoader):
    """YAML of inventories, in which `!vault` and `!unsafe` stand."""


Loader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


def refuse_plain_keys(path: Path, name: str) -> None:
    """BundleError where a file has a user's key that is neither vaulted nor an expression."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if "litellm_users" not in text or text.startswith(VAULT):
        return
    try:
        data = yaml.load(text, Loader)
    except yaml.YAMLError:
        return  # Ansible could not read it either
    for user in users_of(data):
        key = user.get("key")
        if key is not None and "{{" not in str(key):
            why = f"the key of {user.get('name')} in litellm_users stands there as plain text, and it would be packed"
            raise BundleError(name, None, why, HOW_TO_VAULT)


def users_of(data: Any) -> list[dict[str, Any]]:
    """The items of every litellm_users, however deep they stand."""
    if isinstance(data, list):
        return [user for item in data for user in users_of(item)]
    if not isinstance(data, dict):
        return []
    own = data.get("litellm_users")
    found = [user for user in own if isinstance(user, dict)] if isinstance(own, list) else []
    return found + [user for item in data.values() for user in users_of(item)]


def project_archive(root: Path, name: str, files: list[str]) -> bytes:
    """Files of the project in one archive, the same bytes for the same files."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as archive:
        for file in files:
            info = anonymous(archive.gettarinfo(root / file, f"{name}/{file}"))
            info.mtime, info.mode = 946684800, 0o755 if info.mode & 0o100 else 0o644
            if info.isfile():
                with (root / file).open("rb") as handle:
                    archive.addfile(info, handle)
            else:
                archive.addfile(info)
    return packed.getvalue()
