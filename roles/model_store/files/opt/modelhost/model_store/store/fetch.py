# MIT licence (see LICENSE)
"""Gets files: from where a former run stopped, hashed while they come, from the next source where one fails."""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import json
import os
import random
import shutil
import threading
import time

from . import adopt, manifest
from .sources import Folder, Source, SourceError, explain

#: Bytes between two looks at the free space, and between two writes of a file to the disk itself.
LOOK = 64 << 20
SYNC = 32 << 20
#: A source that brings less than so many bytes in so many seconds is left, if there is another.
SLOW = (1 << 20, 60.0)
#: Seconds: the longest pause between two attempts.
PAUSE = 60.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: A source that gives wrong content this often for one file is not asked for it again.
WRONG = 2


class Full(Exception):
    """No space is left; the message names the disk and what to do."""


class Stopped(Exception):
    """Another thread found that going on makes no sense."""


class Wrong(Exception):
    """What came is not what the listing promised."""


class Direct(Source):
    """The one place of a file that no hub has."""

    def __init__(self, url: str):
        super().__init__({"type": "url", "url": url})

    def request(self, model: dict, path: str) -> tuple:
        return self.url, {}


def existing(path: str) -> str:
    """The path, or the nearest folder above that is there."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def free(path: str) -> int:
    """Bytes that are free where this path lies, for root as for others."""
    place = os.statvfs(existing(path))
    return place.f_bavail * place.f_frsize


def size_of(path: str) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def gib(count: float) -> str:
    """Bytes for people."""
    return "%.1f GiB" % (count / 2**30) if count >= 2**29 else "%.1f MiB" % (count / 2**20)


class Hashes:
    """What a file's content must hash to, fed piece by piece."""

    def __init__(self, file):
        self.file = file
        self.sha256 = hashlib.sha256()
        self.blob = manifest.git_blob(file.size) if file.sha256 is None and file.blob_id else None

    def update(self, piece) -> None:
        self.sha256.update(piece)
        if self.blob:
            self.blob.update(piece)

    def check(self) -> str:
        """The SHA-256. Raises Wrong where content and listing differ."""
        found, promised = self.sha256.hexdigest(), self.file.sha256
        if self.blob:
            found, promised = self.blob.hexdigest(), self.file.blob_id
        if promised and found != promised:
            raise Wrong("%s hashes to %s… instead of %s…" % (self.file.path, found[:12], promised[:12]))
        return self.sha256.hexdigest()


class Sink:
    """The growing file that a client writes to. What lies there already is read once, for the hash.

    `patient`: however slowly the bytes come, there is no other source.
    """

    def __init__(self, path: str, file, run: Run, patient: bool = True):
        self.file, self.run, self.path = file, run, path
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.handle = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by close()
        self.dirty = 0
        self.begun_anew = False
        self.patient, self.since, self.recent = patient, time.monotonic(), 0
        self.position = 0
        self.hashes = Hashes(file)
        if os.fstat(self.handle.fileno()).st_size > file.size:
            self.handle.truncate(0)
        self._read()
        run.sinks.add(self)

    def _read(self) -> None:
        """Hash what is there."""
        self.hashes = Hashes(self.file)
        self.handle.seek(0)
        count = 0
        for block in iter(lambda: self.handle.read(manifest.BLOCK), b""):
            self.hashes.update(block)
            count += len(block)
        self.run.status.passed(count - self.position)
        self.position = count

    def write(self, piece) -> int:
        """As of a file. Raises Wrong for more bytes than the listing promised, Stopped, Full."""
        self.run.look(len(piece))
        self.recent += len(piece)
        if self.recent >= SLOW[0]:
            self.since, self.recent = time.monotonic(), 0
        elif time.monotonic() - self.since > SLOW[1] and not self.patient:
            raise SourceError("it brings less than %s in %.0f s" % (gib(SLOW[0]), SLOW[1]), True)
        if self.position + len(piece) > self.file.size:
            raise Wrong("%s is longer than the %d bytes of the listing" % (self.file.path, self.file.size))
        rest = memoryview(piece)
        while rest:
            rest = rest[self.handle.write(rest) :]
        self.hashes.update(piece)
        self.position += len(piece)
        self.dirty += len(piece)
        self.run.status.passed(len(piece), network=True)
        return len(piece)

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Only as far as http_get needs it: before truncate()."""
        return self.handle.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        """The server cannot resume. Once is enough: the client would ask for ever where each answer breaks off."""
        if self.begun_anew:
            raise SourceError("it breaks off and cannot resume", False)
        self.begun_anew = True
        size = self.handle.tell() if size is None else size
        self.handle.truncate(size)
        self._read()
        return size

    def flush(self) -> None:
        """Nothing waits in here."""

    def close(self) -> None:
        self.run.sinks.discard(self)
        self.handle.close()


class Run:
    """What the threads of one job share."""

    def __init__(self, job: dict, status, sources: list):
        self.job, self.status, self.sources = job, status, sources
        self.stop = threading.Event()
        self.sinks: set = set()
        self.lock = threading.Lock()
        self.since = 0
        threading.Thread(target=self._write_out, daemon=True).start()

    def look(self, count: int) -> None:
        """Before bytes are written: is there still room for them?"""
        if self.stop.is_set():
            raise Stopped
        with self.lock:
            self.since += count
            if self.since < LOOK:
                return
            self.since = 0
        if free(self.job["store"]) < self.job["reserve_bytes"]:
            raise Full

    def _write_out(self) -> None:
        """Bring bytes to the disk while more come, so that the end does not wait for all of them."""
        while not self.stop.wait(1.0):
            for sink in list(self.sinks):
                if sink.dirty < SYNC:
                    continue
                sink.dirty = 0
                try:
                    os.fdatasync(sink.handle.fileno())
                except (OSError, ValueError):
                    continue  # it was closed just now; the final fsync counts

    # --- one file ------------------------------------------------------------------------------------------------

    def _attempt(self, source, model: dict, file, target: str, patient: bool) -> str:
        """One try; the file's SHA-256. What came of it stays in `<target>.part`."""
        part = target + ".part"
        if isinstance(source, Folder):
            return self._from_folder(source, model, file, target)
        from huggingface_hub.file_download import http_get

        from . import client

        sink = Sink(part, file, self, patient)
        try:
            if sink.position < file.size:
                url, headers = source.request(model, file.path)
                # A compressed answer could not be resumed.
                headers["accept-encoding"] = "identity"
                with client.expecting(file.size):
                    http_get(url, sink, resume_size=sink.position, headers=headers)
            if sink.position < file.size:
                raise SourceError("%s ended after %d of %d bytes" % (file.path, sink.position, file.size), False)
            return sink.hashes.check()
        except BaseException:
            # The next attempt counts what is there anew.
            self.status.passed(-sink.position)
            raise
        finally:
            sink.close()

    def _from_folder(self, source, model: dict, file, target: str) -> str:
        exact = os.path.join(source.place(model), file.path)
        # A link's target is not ours to take.
        real = os.path.join(os.path.realpath(source.place(model)), file.path)
        if source.item.get("move") and os.path.isfile(exact) and os.path.realpath(exact) == real:
            hashes = Hashes(file)
            with open(exact, "rb", buffering=0) as handle:
                for block in iter(lambda: handle.read(manifest.BLOCK), b""):
                    hashes.update(block)
                    self.status.passed(len(block))
                    if self.stop.is_set():
                        raise Stopped
            try:
                digest = hashes.check()
            except Wrong as error:
                self.status.passed(-size_of(exact))
                raise SourceError(str(error), True) from error
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.replace(exact, target + ".part")
            return digest
        os.makedirs(os.path.dirname(target), exist_ok=True)
        entry = file.entry()
        for candidate in adopt.candidates([source.path], model, [entry], recorded=True).get(file.path, []):
            # The original may be on a share that goes away, or somebody's: only a copy is ours.
            digest = adopt.take(candidate, entry, target + ".part", self.status.passed, "copy")
            if digest:
                return digest
        raise SourceError("it has no undamaged %s" % file.path, True)

    def fetch(self, model: dict, file, target: str, local=()) -> str:
        """Bring one file to its place, from `local` copies or else from a source; its SHA-256.

        Raises Full, Stopped, or SourceError with each source's word.
        """
        os.makedirs(os.path.dirname(target), exist_ok=True)
        for candidate in local:
            if self.stop.is_set():
                raise Stopped
            mode, reserve = self.job["adopt_mode"], self.job["reserve_bytes"]
            # Empty for another file of that name, or a damaged one.
            digest = adopt.take(candidate, file.entry(), target, self.status.passed, mode, reserve)
            if digest:
                self.status.say("%s: %s taken from %s" % (model["id"], file.path, candidate))
                return digest
        reasons = []
        places = [*self.sources, *([Direct(file.url)] if file.url else [])]
        for source in places:
            error, attempt, wrong = None, 0, 0
            most = size_of(target + ".part")
            while not source.gone:
                try:
                    patient = all(other.gone or other is source for other in places)
                    digest = self._attempt(source, model, file, target, patient)
                    os.replace(target + ".part", target)
                    return digest
                except (Full, Stopped):
                    raise
                except Wrong as found:
                    # Nothing of it is worth keeping: nobody knows which byte is wrong.
                    os.unlink(target + ".part")
                    wrong += 1
                    error = SourceError(str(found), wrong >= WRONG)
                except OSError as found:
                    if found.errno in NO_ROOM:
                        raise Full from found
                    error = explain(found)
                except Exception as found:  # whatever the client raises: the next attempt or source may do better
                    error = explain(found)
                if error.final:
                    break
                now = size_of(target + ".part")
                attempt = 1 if now > most else attempt + 1
                most = max(most, now)
                if attempt > self.job["retries"]:
                    source.gone = str(error)
                    break
                pause = max(error.after, min(PAUSE, 2.0 ** (attempt - 1)) * random.uniform(0.7, 1.3))
                self.status.say("%s from %s: %s; again in %.0f s" % (file.path, source, error, pause))
                if self.stop.wait(pause):
                    raise Stopped
            reasons.append("%s: %s" % (source, source.gone or error))
            self.status.say("%s: %s" % (file.path, reasons[-1]))
        raise SourceError("%s: %s" % (file.path, "; ".join(reasons)), True)

    # --- many files ----------------------------------------------------------------------------------------------

    def fetch_all(self, model: dict, files: list, folder: str, known: Known, local: dict | None = None) -> None:
        """Bring these files into the folder, largest first. Raises Full or SourceError; what is whole by then stays."""
        problems, full = [], False
        with concurrent.futures.ThreadPoolExecutor(max(1, self.job["workers"])) as pool:
            tasks = {
                pool.submit(
                    self.fetch, model, file, os.path.join(folder, file.path), (local or {}).get(file.path, ())
                ): file
                for file in sorted(files, key=lambda item: -item.size)
            }
            for task in concurrent.futures.as_completed(tasks):
                file = tasks[task]
                try:
                    known.add(file.path, task.result())
                except (Full, OSError):  # no room for the note of what is whole
                    full = True
                    self.stop.set()
                except Stopped:
                    continue  # the thread that found the reason says it
                except SourceError as error:
                    problems.append(str(error))
                    if all(source.gone for source in self.sources):
                        self.stop.set()
        if full:
            raise Full("there is no space left on the disk of %s" % self.job["store"])
        if problems:
            raise SourceError("\n".join(problems), True)


class Known:
    """What was hashed already, so that a run that follows an interrupted one need not read hundreds of GB again."""

    NAME = ".verified.json"

    def __init__(self, folder: str):
        self.folder = folder
        self.lock = threading.Lock()
        try:
            with open(os.path.join(folder, self.NAME), encoding="utf-8") as handle:
                self.files = json.load(handle)
        except (OSError, ValueError):
            self.files = {}

    def digest(self, path: str) -> str | None:
        """SHA-256 of a file that has not changed since it was hashed."""
        seen = self.files.get(path)
        try:
            now = os.stat(os.path.join(self.folder, path))
        except OSError:
            return None
        return seen[2] if seen and seen[:2] == [now.st_size, now.st_mtime_ns] else None

    def add(self, path: str, digest: str) -> None:
        """Remember it, at once and on disk."""
        state = os.stat(os.path.join(self.folder, path))
        with self.lock:
            self.files[path] = [state.st_size, state.st_mtime_ns, digest]
            with open(os.path.join(self.folder, self.NAME + ".new"), "w", encoding="utf-8") as handle:
                json.dump(self.files, handle)
            os.replace(os.path.join(self.folder, self.NAME + ".new"), os.path.join(self.folder, self.NAME))


def drop_parts(folder: str) -> int:
    """Remove half files; bytes that this freed."""
    count = 0
    for place, _folders, names in os.walk(folder):
        for name in names:
            if name.endswith(".part"):
                count += size_of(os.path.join(place, name))
                os.unlink(os.path.join(place, name))
    return count


def remove(folder: str) -> None:
    """A folder and all that is in it, or a link to one; not there is fine."""
    if os.path.islink(folder):
        os.unlink(folder)
    elif os.path.isdir(folder):
        shutil.rmtree(folder)
