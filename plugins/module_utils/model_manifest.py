# MIT licence (see LICENSE)
"""What lies in the store of weights: layout, manifest and the quick look at a staged model.

Runs on hosts under Python 3.8 and later with nothing but the standard library. The role model_store
copies this file beside its program, as `store/manifest.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re

#: The manifest's name inside a staged model. Engines do not look at hidden files.
NAME = ".modelhost.json"
FORMAT = 1
#: Folders of the store that hold no model.
STAGING = ".staging"
INCOMING = ".incoming"
LOCKS = ".locks"
#: Bytes read at once.
BLOCK = 1 << 20
#: The hub itself. What it lists is its makers' word; what others list is theirs.
HUB = "https://huggingface.co"
#: What the names in a listing were held against: see the classes of store/sources.py and store/adopt.py.
VERIFIED = ("hub", "modelscope", "manifest", "cache", "recorded")
KEYS = ("format", "repo", "revision", "source", "verified", "files")
FILE_KEYS = ("path", "size", "sha256", "blob_id", "lfs")
REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*\Z", re.ASCII)
REVISION = re.compile(r"[\w][\w.-]*\Z", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
BLOB_ID = re.compile(r"[0-9a-f]{40}\Z")
#: Control characters, line ends of Unicode and what turns the direction of writing: no hub has them in a file's name.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class ManifestError(Exception):
    """A manifest that cannot be read; the message names the file."""


def path_of(folder: str) -> str:
    """Where the manifest of a staged model lies."""
    return os.path.join(folder, NAME)


def safe(path: object) -> bool:
    """Whether a file's name of a listing or manifest stays within its folder."""
    if not isinstance(path, str) or not path or "\\" in path or UNPRINTABLE.search(path):
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


def file_fault(item: object) -> str:
    """What is wrong with one file of a listing or manifest, whoever made it; nothing if all is right.

    Each key is known by name and form, since names, sizes and hashes end in paths and in nginx's configuration.
    A hash may be None: plan.File says which is known where.
    """
    if not isinstance(item, dict):
        return "it is no mapping"
    unknown = sorted(str(key) for key in item if key not in FILE_KEYS)
    if unknown:
        return "no such key is known: %r" % unknown[0][:40]
    if not safe(item.get("path")):
        return "`path` is no name of a file below the folder"
    size = item.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        return "`size` is no number of bytes"
    for key, form, text in (("sha256", SHA256, "64"), ("blob_id", BLOB_ID, "40")):
        value = item.get(key)
        if value is not None and not (isinstance(value, str) and form.match(value)):
            return "`%s` is not %s hex digits" % (key, text)
    return "" if item.get("lfs") in (True, False, None) else "`lfs` is neither true nor false"


def check_files(files: list, where: str) -> None:
    """Raise ManifestError for a file that is not as it must be, or is named twice."""
    seen = set()
    for item in files:
        why = file_fault(item)
        if not why and item["path"] in seen:
            why = "it is named twice"
        if why:
            raise ManifestError("%s has an entry that cannot be used: %s: %s" % (where, why, repr(item)[:300]))
        seen.add(item["path"])


def check(manifest: object, where: str, repo: str | None = None, revision: str | None = None) -> dict:
    """The manifest itself, if it has the form that this release writes; else ManifestError.

    repo and revision: of the model that it must be about, where it is somebody else's.
    """
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ManifestError("%s is not a manifest of format %d" % (where, FORMAT))
    unknown = sorted(str(key) for key in manifest if key not in KEYS)
    if unknown:
        raise ManifestError("%s has a key that is not known: %r" % (where, unknown[0][:40]))
    for key, form in (("repo", REPO), ("revision", REVISION)):
        if not isinstance(manifest.get(key), str) or not form.match(manifest[key]):
            raise ManifestError("%s names no %s: %s" % (where, key, repr(manifest.get(key))[:80]))
    for key, wanted in (("repo", repo), ("revision", revision)):
        if wanted is not None and manifest[key] != wanted:
            raise ManifestError("%s is about the %s %s, and %s was asked for" % (where, key, manifest[key], wanted))
    source = manifest.get("source")
    if not isinstance(source, str) or UNPRINTABLE.search(source) or manifest.get("verified") not in VERIFIED:
        raise ManifestError("%s does not say in known words where it is from (source, verified)" % where)
    files = manifest.get("files")
    if not isinstance(files, list) or not files:
        raise ManifestError("%s names no files" % where)
    check_files(files, where)
    for item in files:
        if item.get("sha256") is None:
            raise ManifestError("%s names no SHA-256 of %s" % (where, item["path"]))
    return manifest


# --- what binds a revision to its files --------------------------------------------------------------------------


def digest_of(files: list, content: bool) -> str | None:
    """The digest over a list of files, as `source.files_digest` of the catalogue has it; None where it cannot be told.

    The one description of its form: a line for each file, sorted by the UTF-8 bytes of the line, each ending in a line
    feed: `<name> <size in bytes> <path>`; of that text the SHA-256, as `sha256:<64 hex digits>`. The name of a file's
    content is `sha256:<hex>`, or in the list of a hub `git:<blob id>` for each file that is no large one (LFS). So
    there are two: with `content` every name is a SHA-256, which any source can tell; else it is the hub's.
    """
    lines = []
    for item in files:
        large = content or item.get("lfs")
        value = item.get("sha256") if large else item.get("blob_id")
        if not value:
            return None
        lines.append(("%s:%s %d %s\n" % ("sha256" if large else "git", value, item["size"], item["path"])).encode())
    return "sha256:" + hashlib.sha256(b"".join(sorted(lines))).hexdigest()


def binding_fault(model: dict, files: list, official: bool) -> str:
    """Why a list of files may not be used for this model; nothing if it may.

    files: entries without the model's extra_files, whose hashes the catalogue has. official: the hub itself gave it.
    """
    bound = model.get("files_digest")
    if bound:
        found = {"listed": digest_of(files, False), "content": digest_of(files, True)}
        if any(value and value == bound[key] for key, value in found.items()):
            return ""
        if not any(found.values()):
            return "its list does not name every file's hash, so it cannot be held against the catalogue's files_digest"
        return (
            "what it lists for this revision is not what the catalogue's files_digest binds (%s): files, sizes or "
            "hashes are others" % ", ".join("%s %s" % item for item in sorted(found.items()) if item[1])
        )
    if model.get("code") and not official:
        return (
            "the engine runs Python code of this model (trust_remote_code), no source.files_digest of the catalogue "
            "says which code that is, and this is not the hub itself (%s). %s" % (HUB, how_to_bind(model["id"]))
        )
    return ""


def how_to_bind(name: str) -> str:
    """What to do about a model that nothing binds."""
    return (
        "Run `./run pins %s --write` on a machine that reaches the hub, or add {type: hub} to hf_mirror_sources" % name
    )


def of_model(model: dict, files: list) -> list:
    """Of these entries those that a digest counts: all but the model's extra_files."""
    extra = {item["path"] for item in model.get("extra_files", ())}
    return [item for item in files if item["path"] not in extra]


def only_from(source: str) -> str:
    """What is said of a model that nothing but its source vouches for."""
    return "verified against %s only: the catalogue binds no digest to this revision (./run pins writes it)" % source


def is_hub(item: dict) -> bool:
    """Whether an item of hf_mirror_sources is the hub itself and no mirror of it."""
    return item.get("type") == "hub" and str(item.get("url") or HUB).rstrip("/") == HUB


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
