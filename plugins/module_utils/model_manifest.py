# MIT licence (see LICENSE)
"""What lies in the store of weights: layout, manifest and the quick look at a staged model.

Runs on hosts under Python 3.8 and later with nothing but the standard library. The role model_store
copies this file beside its program, as `store/manifest.py`.
"""

from __future__ import annotations

import hashlib
import json
import os

#: The manifest's name inside a staged model. Engines do not look at hidden files.
NAME = ".modelhost.json"
FORMAT = 1
#: Folders of the store that hold no model.
STAGING = ".staging"
INCOMING = ".incoming"
LOCKS = ".locks"
#: Bytes read at once.
BLOCK = 1 << 20


class ManifestError(Exception):
    """A manifest that cannot be read; the message names the file."""


def path_of(folder: str) -> str:
    """Where the manifest of a staged model lies."""
    return os.path.join(folder, NAME)


def safe(path: object) -> bool:
    """Whether a file's name of a listing or manifest stays within its folder."""
    if not isinstance(path, str) or not path or "\0" in path or "\\" in path:
        return False
    return not os.path.isabs(path) and all(part not in ("", ".", "..") for part in path.split("/"))


def read(folder: str) -> dict | None:
    """The manifest of a staged model; None where there is none.

    Raises ManifestError where it cannot be understood.
    """
    path = path_of(folder)
    try:
        with open(path, encoding="utf-8") as handle:
            manifest = json.load(handle)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ManifestError("%s cannot be read: %s" % (path, error)) from error
    return check(manifest, path)


def check(manifest: object, where: str) -> dict:
    """The manifest itself, if it has the form that this release writes; else ManifestError."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ManifestError("%s is not a manifest of format %d" % (where, FORMAT))
    files = manifest.get("files")
    if not isinstance(files, list) or not files:
        raise ManifestError("%s names no files" % where)
    for item in files:
        if not (
            isinstance(item, dict)
            and safe(item.get("path"))
            and isinstance(item.get("size"), int)
            and isinstance(item.get("sha256"), str)
            and len(item["sha256"]) == 64
        ):
            raise ManifestError("%s has an entry that is not a file with size and SHA-256: %r" % (where, item))
    return manifest


def make(repo: str, revision: str, source: str, verified: str, files: list) -> dict:
    """A manifest. `files`: dicts with path, size (bytes), sha256, blob_id (git's, or None) and lfs."""
    return {
        "format": FORMAT,
        "repo": repo,
        "revision": revision,
        "source": source,
        "verified": verified,
        "files": sorted(files, key=lambda item: item["path"]),
    }


def write(folder: str, manifest: dict) -> None:
    """Put the manifest into the folder, all of it or nothing."""
    path = path_of(folder)
    with open(path + ".new", "w", encoding="utf-8") as handle:
        json.dump(manifest, handle, indent=1)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.chmod(path + ".new", 0o644)
    os.replace(path + ".new", path)


def differences(folder: str, manifest: dict) -> list:
    """Files of the manifest that are missing or have another size: [(path, what is wrong)]. Reads no content."""
    found = []
    for item in manifest["files"]:
        try:
            size = os.stat(os.path.join(folder, item["path"])).st_size
        except OSError:
            found.append((item["path"], "missing"))
            continue
        if size != item["size"]:
            found.append((item["path"], "%d bytes instead of %d" % (size, item["size"])))
    return found


def sha256(path: str, passed=None) -> str:
    """SHA-256 of a file. `passed(bytes)` is told after each block."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as handle:
        while True:
            block = handle.read(BLOCK)
            if not block:
                return digest.hexdigest()
            digest.update(block)
            if passed:
                passed(len(block))


def git_blob(size: int) -> hashlib._Hash:
    """The hash that git makes of a file of this size; feed it the content. Small files of a hub are named by it."""
    return (
        hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        if _KNOWS_PURPOSE
        else hashlib.sha1(b"blob %d\0" % size)
    )


def _knows_purpose() -> bool:
    try:
        hashlib.sha1(b"", usedforsecurity=False)
    except TypeError:  # Python 3.8
        return False
    return True


_KNOWS_PURPOSE = _knows_purpose()


def models_in(store: str) -> list:
    """Every folder <org>/<repo>/<revision> of the store, whether it has a manifest or not: [(repo, revision, path)]."""
    found = []
    for org in _folders(store):
        for name in _folders(os.path.join(store, org)):
            for revision in _folders(os.path.join(store, org, name)):
                found.append(("%s/%s" % (org, name), revision, os.path.join(store, org, name, revision)))
    return found


def _folders(path: str) -> list:
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return []
    return [name for name in names if not name.startswith(".") and os.path.isdir(os.path.join(path, name))]
