# MIT licence (see LICENSE)
"""A bundle's folder: what is in it by hash, and fetching of what is missing. Runs on the controller."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible.module_utils.urls import open_url
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_plan import BundleError, File, human

#: What only the build needs: records, half files, package lists.
WORK = ".build"
CHUNK = 1 << 20
WORKERS = 6
TRIES = 5
#: Seconds before the second attempt, about half of it; each further one waits twice as long.
PAUSE = 1.0
#: Seconds without a byte after which a connection is given up, and between two looks at how far something is.
TIMEOUT, PULSE = 60, 1


def digest(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


class Store:
    """The bundle's folder and the record of what lies in it."""

    def __init__(self, folder: Path, work: Path | None = None) -> None:
        self.folder, self.work = folder, work or folder / WORK
        self._file, self._lock, self._saved = folder / WORK / "state.json", threading.Lock(), 0.0
        try:
            self._known: dict[str, list[object]] = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}
        #: What this build wants, with SHA-256; and whether it had to do anything.
        self.wanted: dict[str, str] = {}
        self.changed = False

    def save(self) -> None:
        """Keep the record for the next build."""
        with self._lock:
            self._saved = time.monotonic()
            write(self._file, json.dumps(self._known, indent=0, sort_keys=True))

    def has(self, path: str, sha256: str = "", made_from: str = "") -> bool:
        """Whether a file is there as recorded (size and time), or as its hash says where there is no record."""
        file = self.folder / path
        try:
            seen = file.stat()
        except OSError:
            return False
        known = self._known.get(path)
        if not known or known[:2] != [seen.st_size, seen.st_mtime_ns]:
            # A copy of the bundle has other times, and is the same if its hashes are.
            if not sha256 and (not known or known[0] != seen.st_size):
                return False
            whole = digest(file)
            self._remember(path, whole, str(known[3]) if known and known[2] == whole else "")
        found, ingredients = self._known[path][2:4]
        return (not sha256 or found == sha256) and (not made_from or made_from == ingredients)

    def _remember(self, path: str, sha256: str, made_from: str = "") -> None:
        seen = (self.folder / path).stat()
        with self._lock:
            self._known[path] = [seen.st_size, seen.st_mtime_ns, sha256, made_from]

    def take(self, path: str) -> None:
        """Count a file that is there as part of the bundle."""
        self.wanted[path] = str(self._known[path][2])

    def keep(self, path: str, made_from: str = "", sha256: str = "") -> None:
        """Record a file that was just made or fetched, as part of the bundle."""
        self._remember(path, sha256 or digest(self.folder / path), made_from)
        self.take(path)
        self.changed = True
        # What was made takes long to make again; of many small files a few may be looked at twice.
        if made_from or time.monotonic() - self._saved > 2:
            self.save()

    def text(self, path: str, text: str) -> None:
        """A file of the bundle with this text."""
        file = self.folder / path
        if self.has(path, hashlib.sha256(text.encode()).hexdigest()):
            self.take(path)
            return
        write(file, text)
        self.keep(path)

    def leftovers(self, keep: Iterable[str] = ()) -> list[Path]:
        """Files in the bundle's folder that do not belong to it any more."""
        kept = {*self.wanted, *keep}
        found = []
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if name.split("/")[0] != WORK and (path.is_file() or path.is_symlink()) and name not in kept:
                found.append(path)
        return found

    def sweep(self, keep: Iterable[str] = ()) -> int:
        """Remove them, and folders that are empty then; how many."""
        found = self.leftovers(keep)
        for path in found:
            path.unlink()
            self._known.pop(path.relative_to(self.folder).as_posix(), None)
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and path.name != WORK and WORK not in path.relative_to(self.folder).parts:
                with contextlib.suppress(OSError):
                    path.rmdir()
        self.changed = self.changed or bool(found)
        return len(found)


# --- fetching ----------------------------------------------------------------------------------------------------


def credentials(url: str, environment: dict[str, str]) -> dict[str, str]:
    """Name and password for an address, from the index of uv or pip on the same server; .netrc is read besides."""
    names = re.compile(r"(UV_DEFAULT_INDEX|UV_INDEX|(UV|PIP)_(EXTRA_)?INDEX_URL)")
    for text in " ".join(value for name, value in environment.items() if names.fullmatch(name)).split():
        # uv's may have a name before them: corp=https://…
        index = urlsplit(re.sub(r"^[\w.-]+=", "", text))
        if index.username and index.hostname == urlsplit(url).hostname:
            return {
                "url_username": unquote(index.username),
                "url_password": unquote(index.password or ""),
                "force_basic_auth": "yes",
            }
    return {}


def opened(url: str, method: str = "GET", start: int = 0) -> Any:
    """An answer, from a byte on."""
    # Anything compressed on the way would have another size and hash.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    login = credentials(url, dict(os.environ))
    return open_url(url, method=method, headers=headers, timeout=TIMEOUT, follow_redirects="all", **login)


def size_of(url: str) -> int:
    """How large a file behind an address is; 0 where nobody says."""
    if url.startswith("file:"):
        return Path(unquote(urlsplit(url).path)).stat().st_size
    try:
        with contextlib.closing(opened(url, "HEAD")) as answer:
            return int(answer.headers.get("Content-Length") or 0)
    # A size is only for the estimate.
    except Exception:
        return 0


def sized(files: list[File]) -> list[File]:
    """The same files, all with their sizes."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(lambda it: it.size or size_of(it.url), files))
    return [File(it.path, it.url, size, it.sha256) for it, size in zip(files, sizes, strict=True)]


class Meter:
    """Bytes that have come, counted by many threads."""

    def __init__(self) -> None:
        self.bytes, self._lock = 0, threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.bytes += count


def parts(answer: Any) -> Iterator[bytes]:
    """What an answer holds, piece by piece."""
    while piece := answer.read(CHUNK):
        yield piece


def download(file: File, part: Path, meter: Meter, stop: threading.Event) -> str:
    """Fetch the rest of a file into `part`; its SHA-256."""
    whole = hashlib.sha256()
    start = part.stat().st_size if part.exists() else 0
    if start and file.size and start > file.size:
        part.unlink()
        start = 0
    if start:
        with part.open("rb") as handle:
            for piece in iter(lambda: handle.read(CHUNK), b""):
                whole.update(piece)
    if not (start and start == file.size):
        with contextlib.closing(opened(file.url, start=start)) as answer:
            if start and answer.getcode() != 206:
                whole, start = hashlib.sha256(), 0
            announced = answer.headers.get("Content-Length")
            with part.open("ab" if start else "wb") as handle:
                for piece in parts(answer):
                    if stop.is_set():
                        raise InterruptedError
                    handle.write(piece)
                    whole.update(piece)
                    meter.add(len(piece))
                arrived = handle.tell() - start
        # What came is kept; a wrong hash would throw it away.
        if announced and arrived < int(announced):
            raise ConnectionError(f"the connection ended after {arrived} of {announced} bytes")
    return whole.hexdigest()


def fetch_one(store: Store, file: File, meter: Meter, stop: threading.Event) -> None:
    """One file into the bundle, whatever interrupts it."""
    target = store.folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    part = store.work / "parts" / (file.sha256 or hashlib.sha256(file.url.encode()).hexdigest())
    part.parent.mkdir(parents=True, exist_ok=True)
    why = ""
    for attempt in range(TRIES):
        if attempt and stop.wait(PAUSE * 2**attempt):
            raise InterruptedError
        try:
            if file.url.startswith("file:"):
                shutil.copyfile(unquote(urlsplit(file.url).path), part)
                found = digest(part)
                meter.add(part.stat().st_size)
            else:
                found = download(file, part, meter, stop)
        except InterruptedError:
            raise
        # A server or a network can fail in any way; what it said is told after the last attempt.
        except Exception as error:
            why = str(error)
            if getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
                fix = "make room, or name a folder on another disk; the next run goes on where this ended"
                raise BundleError("bundle_dir", str(store.folder), f"{file.path}: {why}", fix) from error
            if getattr(error, "code", 0) == 416:
                part.unlink(missing_ok=True)
            if getattr(error, "code", 0) in (401, 403, 404, 410):
                break
            continue
        if file.sha256 and found != file.sha256:
            why = f"it has the SHA-256 {found} and should have {file.sha256}"
            part.unlink(missing_ok=True)
            continue
        os.replace(part, target)
        store.keep(file.path, sha256=found)
        return
    address = file.url.rpartition("@")[2] if "@" in urlsplit(file.url).netloc else file.url
    fix = "look at the network, proxies and certificates of this machine, and run this again: it goes on where it ended"
    raise BundleError(file.path, None, f"{address} could not be fetched: {why}", fix)


def fetch(store: Store, files: list[File], say: Callable[[str], None], what: str = "fetching") -> None:
    """All files that are not there yet, several at once; `say` hears how far it is."""
    missing = []
    for file in files:
        if store.has(file.path, file.sha256):
            store.take(file.path)
        else:
            missing.append(file)
    if not missing:
        return
    # What several folders have is fetched once; the largest first, for a last one would be waited for alone.
    first = {file.sha256 or file.url: file for file in reversed(missing)}
    order = sorted(first.values(), key=lambda it: -it.size)
    total, began, meter, stop = sum(it.size for it in order), time.monotonic(), Meter(), threading.Event()
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        waiting = {pool.submit(fetch_one, store, file, meter, stop) for file in order}
        try:
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, PULSE, concurrent.futures.FIRST_EXCEPTION)
                for one in done:
                    one.result()
                if waiting:
                    say(progress(what, meter.bytes, total, time.monotonic() - began))
        finally:
            stop.set()
            for one in waiting:
                one.cancel()
            store.save()
    for file in missing:
        if file.path not in store.wanted:
            link(store, first[file.sha256 or file.url].path, file.path)


def link(store: Store, source: str, target: str) -> None:
    """The same file under a second path, where the disk can do that without a copy."""
    place = store.folder / target
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        os.link(store.folder / source, place)
    except OSError:
        shutil.copyfile(store.folder / source, place)
    store.keep(target, sha256=store.wanted[source])


def progress(what: str, done: int, total: int, seconds: float) -> str:
    """`wheels: 412 MB of 1.53 GB, 34 MB/s, 33 s left`"""
    rate = done / seconds if seconds else 0
    left = f", about {duration((total - done) / rate)} left" if rate and total > done else ""
    return f"{what}: {human(done)} of {human(total)}, {human(rate)}/s{left}"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
