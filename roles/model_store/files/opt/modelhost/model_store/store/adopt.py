# MIT licence (see LICENSE)
"""Weights that this host has already: caches of the hub's and ModelScope's clients, folders that people filled by hand,
other revisions in the store.

We run as root and read folders that others own. That is harmless because of one rule: a file is taken only if its
*content* has the hash that the hub (or the record of a trusted cache) names, and that is found out on a file that
nobody else can change any more. So a link to /etc/shadow, a swapped file or a cache full of lies brings nothing into
the store.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import re
import stat

from . import manifest, plan
from .job import JobError

#: Where models lie below a place. {name} is also tried as ModelScope's older clients write it (Qwen3-0___6B).
LAYOUTS = (
    "models--{org}--{name}/snapshots/*",
    "snapshots/*",
    "{org}/{name}/*",
    "{org}/{name}",
    "{org}--{name}",
    "{org}_{name}",
    "{org}--{name}/snapshots/*",
    "{name}",
    "",
)
BLOBS = ("models--*/blobs", "hub/models--*/blobs", "blobs")
PREFIXES = ("", "hub/", "models/", "hub/models/")
COMMIT = re.compile(r"^[0-9a-f]{40}$")
HASH = re.compile(r"^(?:[0-9a-f]{40}|[0-9a-f]{64})$")
SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})(\.\w+)$")
#: Smaller files are copied: nobody who edits a config.json in his cache shall edit ours.
SMALL = 16 << 20
#: A record of a cache that is larger than this is none.
RECORD = 64 << 20
FICLONE = 0x40049409


class Unfit(Exception):
    """A file that is not taken; the message says why."""


# --- finding ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def running() -> tuple:
    """Folders of models that stand on the command lines of what runs here, such as `vllm serve /data/some-model`."""
    found = set()
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError), open(path, "rb") as handle:  # It ended just now.
            words = [os.fsdecode(word) for word in handle.read().split(b"\0")]
            found.update(word for word in words if word.startswith("/") and os.path.isfile(word + "/config.json"))
    return tuple(sorted(found))


#: Files in which people tell services where their caches are.
SETTINGS = ("/etc/environment", "/etc/default/*", "/etc/profile.d/*", "/etc/systemd/system/*.service",
            "/etc/systemd/system/*.service.d/*.conf")  # fmt: skip
CACHE = re.compile(r"\b(?:HF_HOME|HF_HUB_CACHE|HUGGINGFACE_HUB_CACHE|MODELSCOPE_CACHE)=[\"']?(/[^\s\"']+)")


@functools.lru_cache(maxsize=1)
def configured() -> tuple:
    """Caches that this host's services are told to use, such as by Environment=HF_HOME=/data/hf in a unit."""
    found = {}
    for path in [path for pattern in SETTINGS for path in sorted(glob.glob(pattern))]:
        found.update(dict.fromkeys(glob.escape(name) for name in CACHE.findall(_text(path))))
    return tuple(found)


def _expand(places: list) -> list:
    """Places that exist: [(path, whether exactly this one was named)]."""
    found: dict = {}
    for place in places:
        for path in sorted(glob.glob(place)):
            if os.path.isdir(path):
                found[path] = found.get(path, False) or not glob.has_magic(place)
    return list(found.items())


def _folders(place: str, model: dict) -> list:
    """Folders below a place that may hold some revision of the model; the wanted one first."""
    org, name = model["repo"].split("/")
    found: dict = {}
    for prefix in PREFIXES:
        for layout in LAYOUTS:
            for spelling in dict.fromkeys((name, name.replace(".", "___"))):
                pattern = prefix + layout.format(org=glob.escape(org), name=glob.escape(spelling))
                for path in glob.glob(os.path.join(glob.escape(place), pattern)):
                    found.setdefault(os.path.normpath(path))
    right = [path for path in found if os.path.basename(path) == model["revision"]]
    return right + [path for path in found if path not in right]


def _text(path: str) -> str:
    """A record's text; empty where it is none."""
    try:
        handle = _open(path)
    except (OSError, Unfit):
        return ""
    with os.fdopen(handle, "rb") as file:
        return file.read(RECORD).decode("utf-8", "replace")


def _record(path: str) -> dict:
    """A record in JSON; empty where it is none."""
    try:
        found = json.loads(_text(path))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _claims(folder: str, path: str) -> tuple:
    """What the client that put this file here noted: (commit or "", hash or "")."""
    whole = os.path.join(folder, path)
    if os.path.basename(os.path.dirname(folder)) == "snapshots" and os.path.islink(whole):
        target = os.readlink(whole)
        if os.path.basename(os.path.dirname(target)) == "blobs" and HASH.match(os.path.basename(target)):
            return os.path.basename(folder), os.path.basename(target)
    note = _text(os.path.join(folder, ".cache", "huggingface", "download", path + ".metadata")).split("\n")
    if len(note) > 1 and COMMIT.match(note[0].strip()) and HASH.match(note[1].strip()):
        return note[0].strip(), note[1].strip()
    return "", ""


def _ours(folder: str) -> dict:
    """{path: entry} of our manifest of a folder; empty where there is none."""
    try:
        found = manifest.read(folder)
    except manifest.ManifestError:
        return {}
    return {item["path"]: item for item in found["files"]} if found else {}


def candidates(places: list, model: dict, files: list, recorded: bool = False) -> dict:
    """Files of this host that may be those of the model, by path: what has the right size and claims no other content.

    `files` are entries as in a manifest. Looks through the places, what programs serve now, other revisions beside the
    model's path, and what lies there without a manifest. A file whose hash nobody knows could be anything: it comes
    only with `recorded`, from the folder that listing() found in these places.
    """
    above = os.path.dirname(model["path"])
    roots = [path for path, _named in _expand(places)]
    if places and not recorded:
        roots += running()
    folders = [folder for root in roots for folder in _folders(root, model)]
    # Beside the model's path first: most of that was verified once.
    folders = list(dict.fromkeys(sorted(glob.glob(glob.escape(above) + "/*")) + folders))
    manifests = {folder: _ours(folder) for folder in folders}
    # The same blob may belong to another repository, or to the one whose snapshots are the place.
    patterns = [os.path.join(glob.escape(root), end) for root in roots for end in BLOBS]
    blobs = list(dict.fromkeys(path for pattern in patterns for path in glob.glob(pattern)))
    origins = _origins(places, model) if recorded else {}

    found: dict = {}
    for item in files:
        hashes = [item[name] for name in ("sha256", "blob_id") if item.get(name)]
        paths = [os.path.join(blob, value) for value in hashes for blob in blobs]
        for folder in folders if hashes else ():
            claim = manifests[folder].get(item["path"], {}).get("sha256") if item.get("sha256") else ""
            claim = claim or _claims(folder, item["path"])[1]
            if not claim or claim in hashes:
                paths.append(os.path.join(folder, item["path"]))
        if item["path"] in origins:
            paths.append(origins[item["path"]])
        fitting: dict = {}
        for path in paths:
            try:
                state = os.stat(path)
            except OSError:
                continue
            if stat.S_ISREG(state.st_mode) and state.st_size == item["size"]:
                fitting.setdefault((state.st_dev, state.st_ino), path)
        if fitting:
            found[item["path"]] = list(fitting.values())
    return found


# --- listing without any network --------------------------------------------------------------------------------------


def listing(places: list, model: dict):
    """What this host itself knows of a revision, for when no source answers: (entries, verified), or None.

    `verified` is `manifest` or `cache` where each file has a hash to be held against, and `recorded` where there is
    only the folder itself. Records count if somebody named their place without wildcards, or if nobody but root could
    have written them: else any user of this host could leave a model in his cache and have it served.
    """
    found = _best(places, model)
    return ([{name: item[name] for name in item if name != "origin"} for item in found[0]], found[1]) if found else None


def untrusted(places: list, model: dict) -> str:
    """A folder that holds the model, but whose records do not count; for the message where nothing else helps."""
    for folder, _files, _verified, trusted in _listings(places, model):
        if not trusted:
            return folder
    return ""


def _origins(places: list, model: dict) -> dict:
    """Where the files are of which nothing but their folder tells what they are."""
    found = _best(places, model)
    return {item["path"]: item["origin"] for item in found[0]} if found and found[1] == "recorded" else {}


def _best(places: list, model: dict):
    found = [(files, verified) for _folder, files, verified, trusted in _listings(places, model) if trusted]
    return min(found, key=lambda item: item[1] == "recorded") if found else None


def _listings(places: list, model: dict):
    for place, named in _expand(places):
        for folder in _folders(place, model):
            name = os.path.basename(folder)
            if not os.path.isfile(folder + "/config.json") or (COMMIT.match(name) and name != model["revision"]):
                continue
            files, verified = _listing(place, folder, model)
            if files and _complete(files, folder, model):
                trusted = named or (_only_root(folder) and _only_root(_records(folder)))
                yield folder, files, verified, trusted


def _records(folder: str) -> str:
    """Where the client keeps its records of a folder."""
    if os.path.basename(os.path.dirname(folder)) == "snapshots":
        return os.path.dirname(os.path.dirname(folder)) + "/trees"
    return folder + "/.cache/huggingface"


def _listing(place: str, folder: str, model: dict) -> tuple:
    """Files of one folder, with what is known of them."""
    own = _ours(folder)
    if own:
        if manifest.read(folder)["revision"] != model["revision"]:
            return [], ""
        return [{**item, "origin": os.path.join(folder, path)} for path, item in own.items()], "manifest"
    records = _records(folder)
    trees = records if records.endswith("/trees") else records + "/trees"
    tree = _record("%s/%s.json" % (trees, model["revision"])).get("files")
    if isinstance(tree, dict):
        # The hub's own list. What it has and the folder has not is named too: the copy is not complete then.
        if not all(isinstance(item, dict) and isinstance(item.get("size"), int) for item in tree.values()):
            return [], ""
        return [
            _entry(folder, path, item["size"], item.get("lfs_sha256"), item.get("blob_id"))
            for path, item in tree.items()
        ], "cache"

    inside = os.path.realpath(place) + os.sep
    known, rest = [], []
    for base, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(item for item in subfolders if not item.startswith("."))
        for name in sorted(names):
            whole = os.path.join(base, name)
            path = os.path.relpath(whole, folder)
            if name.startswith(".") or not os.path.isfile(whole):
                continue
            commit, claim = _claims(folder, path)
            size = os.stat(whole).st_size
            if commit == model["revision"]:
                known.append(_entry(folder, path, size, *((claim, None) if len(claim) == 64 else (None, claim))))
            elif not commit and os.path.realpath(whole).startswith(inside):
                # Nothing tells what it should be. At least it does not lead out of the place that was named.
                rest.append({**_entry(folder, path, size, None, None), "origin": os.path.realpath(whole)})
    return (known, "cache") if known else (rest, "recorded")


def _entry(folder: str, path: str, size: int, sha256, blob_id) -> dict:
    origin = os.path.join(folder, path)
    return {"path": path, "size": size, "sha256": sha256, "blob_id": blob_id, "lfs": bool(sha256), "origin": origin}


def _complete(files: list, folder: str, model: dict) -> bool:
    """Whether all that an engine needs is there."""
    try:
        wanted = plan.wanted([plan.File(item["path"], item["size"]) for item in files], model)
    except JobError:
        return False
    names = {item.path for item in wanted}
    index = _record(folder + "/model.safetensors.index.json").get("weight_map")
    needed = {"config.json"} | set(index.values() if isinstance(index, dict) else ())
    for name in names:
        match = SHARD.match(name)
        if match:
            stem, _number, count, ending = match.groups()
            needed.update("%s-%05d-of-%s%s" % (stem, number, count, ending) for number in range(1, int(count) + 1))
    # Somebody who names the files himself may not want all shards.
    if not needed <= names and not model.get("files"):
        return False
    origins = {item["path"]: item["origin"] for item in files}
    return all(_size(origins[item.path]) == item.size for item in wanted)


def _size(path: str) -> int:
    try:
        state = os.stat(path)
    except OSError:
        return -1
    return state.st_size if stat.S_ISREG(state.st_mode) else -1


def _only_root(path: str) -> bool:
    """Whether nobody but root (or the user that we are) can put anything there; what does not exist, nobody has."""
    if not os.path.exists(path):
        return True
    path = os.path.realpath(path)
    # In a folder above, such as /tmp, the sticky bit keeps others from exchanging what is not theirs.
    sticky = 0
    while True:
        state = os.stat(path)
        if state.st_uid not in (0, os.geteuid()) or (state.st_mode & 0o022 and not state.st_mode & sticky):
            return False
        if path == os.path.dirname(path):
            return True
        path, sticky = os.path.dirname(path), stat.S_ISVTX


# --- taking -----------------------------------------------------------------------------------------------------------


def _open(path: str, follow: bool = True) -> int:
    """Open a regular file for reading. Nothing else is ever opened: opening a device or a pipe can do things."""
    look = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        if not stat.S_ISREG(os.fstat(look).st_mode):
            raise Unfit("%s is not a regular file" % path)
        return os.open("/proc/self/fd/%d" % look, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(look)


def take(candidate: str, file: dict, target: str, passed=None, mode: str = "auto", reserve: int = 0) -> str:
    """Bring a file of this host to `target` if it is what the entry `file` says: its SHA-256, or "" if it is not taken.

    In this order: blocks shared with the original (reflink, where the file system can); for large files, if `mode` is
    `auto`, the same file under a second name (hard link); a copy, if it leaves `reserve` bytes free.
    A hard link makes the file root's, for whoever owns it could change it later. He can still read it and remove his
    name of it. The content of the original is never touched. `passed(bytes)` is told after each block, and takes them
    back if the file turns out to be another one.
    """
    count = 0

    def told(size: int) -> None:
        nonlocal count
        count += size
        if passed:
            passed(size)

    try:
        return _take(candidate, file, target, told, mode, reserve)
    except (Unfit, OSError) as error:
        told(-count)
        print("%s is not taken: %s" % (candidate, getattr(error, "strerror", None) or error), flush=True)
        return ""


def _take(candidate: str, file: dict, target: str, told, mode: str, reserve: int) -> str:
    hashed = bool(file.get("sha256") or file.get("blob_id"))
    source = _open(candidate, follow=hashed)
    before, temporary, linked = os.fstat(source), target + ".adopt", False
    try:
        if before.st_size != file["size"]:
            raise Unfit("it has %d bytes instead of %d" % (before.st_size, file["size"]))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if _reflink(source, temporary):
            sha256, sha1 = _hashes(temporary, told)
        elif mode == "auto" and before.st_size >= SMALL and _link(source, temporary, before):
            linked = True
            sha256, sha1 = _hashes(temporary, told)
        else:
            sha256, sha1 = _copy(source, temporary, told, reserve)
        if sha256 != (file["sha256"] or sha256) or (not file["sha256"] and sha1 != (file.get("blob_id") or sha1)):
            raise Unfit("it has another content than %s should have" % file["path"])
        after = os.fstat(source)
        if not hashed and (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise Unfit("it is being changed")
        os.replace(temporary, target)
        return sha256
    except BaseException:
        if linked:
            _restore(source, before)
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(source)


def _reflink(source: int, target: str) -> bool:
    """A file of ours that shares the blocks of the source until one of them is changed."""
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        fcntl.ioctl(handle, FICLONE, source)
        os.fchmod(handle, 0o644)
    except OSError:  # Another file system, or one that cannot.
        os.unlink(target)
        return False
    finally:
        os.close(handle)
    return True


def _link(source: int, target: str, before: os.stat_result) -> bool:
    """The same file under a second name, such that from now on only root can change it."""
    try:
        # With a folder's descriptor (which an absolute path does not use) Python follows the link to the very file
        # that is open.
        os.link("/proc/self/fd/%d" % source, target, src_dir_fd=source, follow_symlinks=True)
    except OSError:  # Another file system or mount.
        return False
    try:
        _own(source)
    except OSError:
        _restore(source, before)
        os.unlink(target)
        return False
    return True


def _own(source: int) -> None:
    """From now on only root can change this file. Raises OSError where somebody has it open for writing."""
    os.fchown(source, os.geteuid(), os.getegid())
    os.fchmod(source, 0o644)
    # The kernel grants a lease for reading only while nobody has the file open for writing.
    fcntl.fcntl(source, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    fcntl.fcntl(source, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def own(folder: str, paths: list) -> None:
    """Make a folder that somebody filled ours, with these files of it. Raises Unfit where that cannot be."""
    for base, folders, _names in os.walk(folder):
        for path in [base, *(os.path.join(base, name) for name in folders)]:
            if os.path.islink(path):
                raise Unfit("%s is a link" % path)
            os.chown(path, os.geteuid(), os.getegid())
            os.chmod(path, 0o755)
    for path in paths:
        try:
            source = _open(os.path.join(folder, path), follow=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Unfit("%s is a link or cannot be opened: %s" % (path, error.strerror)) from error
        try:
            _own(source)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise Unfit("somebody has %s open for writing" % path) from error
            if error.errno not in (errno.EINVAL, errno.ENOLCK, errno.ENOTSUP):  # It knows no leases (NFS).
                raise Unfit("%s: %s" % (path, error.strerror)) from error
        finally:
            os.close(source)


def _restore(source: int, before: os.stat_result) -> None:
    """Owner and mode as they were, for a file that was not taken after all."""
    with contextlib.suppress(OSError):
        os.fchown(source, before.st_uid, before.st_gid)
        os.fchmod(source, stat.S_IMODE(before.st_mode))


def _copy(source: int, target: str, told, reserve: int) -> tuple:
    """A copy, hashed while it is made."""
    place = os.statvfs(os.path.dirname(os.path.abspath(target)))
    if place.f_bavail * place.f_frsize < os.fstat(source).st_size + reserve:
        raise Unfit("it would have to be copied, and there is too little space")
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "wb") as handle:
        os.fchmod(handle.fileno(), 0o644)
        hashes = _read(source, told, handle.write)
        handle.flush()
        os.fsync(handle.fileno())
    return hashes


def _hashes(path: str, told) -> tuple:
    with open(path, "rb", buffering=0) as handle:
        return _read(handle.fileno(), told)


def _read(source: int, told, write=None) -> tuple:
    """SHA-256 and git's hash of a file's content."""
    size = os.fstat(source).st_size
    sha256, sha1 = hashlib.sha256(), manifest.git_blob(size)
    offset = 0
    while True:
        block = os.pread(source, manifest.BLOCK, offset)
        if not block:
            return sha256.hexdigest(), sha1.hexdigest()
        offset += len(block)
        sha256.update(block)
        # Git's hash is only asked of small files, and of large ones it takes as long again.
        if size < SMALL:
            sha1.update(block)
        if write:
            write(block)
        told(len(block))
