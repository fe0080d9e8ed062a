#!/usr/bin/env python3
"""A local hub for tests: model repositories from a folder, in the dialects that hosts fetch weights in. See README.md.

It speaks the Hugging Face hub's HTTP API as huggingface_hub asks it, ModelScope's, S3 and plain HTTP, from the same
files. Faults on demand break one answer at a time. It needs nothing but Python's standard library (3.8 and later).
"""

from __future__ import annotations

import argparse
import base64
import binascii
import calendar
import fnmatch
import gzip
import hashlib
import hmac
import http.client
import http.server
import json
import os
import re
import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, Optional

#: Files that the hub keeps as LFS objects, whatever their size.
LFS_NAMES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack")
TEXT_NAMES = ("*.json", "*.txt", "*.md", "*.jinja", "*.py")
#: Settings of a repository, in its folder; never served.
SETTINGS = ".hub.json"
#: Faults that spoil the bytes of a file rather than replace an answer.
OF_BODIES = ("cut", "reset", "stall", "slow", "corrupt", "length", "norange")
PIECE = 1 << 20
CDN_SECRET = b"signs the links to large files"


# What is served


@dataclass
class File:
    """A file of a repository, with what the hub says about it."""

    path: str
    size: int
    sha256: str
    blob_id: str
    lfs: bool
    disk: Optional[str] = None
    content: Optional[bytes] = None

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id

    def read(self, start: int, count: int) -> bytes:
        if self.content is not None:
            return self.content[start : start + count]
        with open(str(self.disk), "rb") as handle:
            handle.seek(start)
            return handle.read(count)


@dataclass
class Repository:
    """One revision of a repository."""

    name: str
    revision: str
    files: dict[str, File]
    gated: bool = False
    private: bool = False
    #: Who may read a gated or private one.
    tokens: list[str] = field(default_factory=list)

    @property
    def modelscope_revision(self) -> str:
        """ModelScope has its own commits of a model: not one is known to the hub."""
        return hashlib.sha1(b"modelscope " + self.revision.encode()).hexdigest()


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """What git holds in the place of an LFS object."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (sha256.encode(), size)


class Library:
    """The repositories below a folder: `<org>/<repo>/`, and older revisions as `<org>/<repo>@<revision>/`."""

    def __init__(self, root: Path, lfs_bytes: int) -> None:
        self.root = root
        self.lfs_bytes = lfs_bytes
        self._hashed: dict[str, tuple[tuple[int, int], tuple[str, str]]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        return sorted(
            f"{path.parent.name}/{path.name}"
            for path in self.root.glob("*/*")
            if path.is_dir() and not path.parent.name.startswith(".") and "@" not in path.name
        )

    def repository(self, name: str, revision: Optional[str] = None) -> Optional[Repository]:
        """A revision of a repository, by default its newest; None where there is none."""
        newest = self._load(name, name)
        if newest is None or revision in (None, "main", "master", newest.revision, newest.modelscope_revision):
            return newest
        for folder in sorted((self.root / name).parent.glob(f"{Path(name).name}@*")):
            older = self._load(name, f"{Path(name).parent}/{folder.name}")
            if older and revision in (folder.name.partition("@")[2], older.revision, older.modelscope_revision):
                return older
        return None

    def _load(self, name: str, folder: str) -> Optional[Repository]:
        top = self.root / folder
        if ".." in folder.split("/") or not top.is_dir():
            return None
        settings: dict[str, Any] = {}
        files: dict[str, File] = {}
        for path in sorted(path for path in top.rglob("*") if path.is_file()):
            relative = path.relative_to(top).as_posix()
            if relative == SETTINGS:
                settings = json.loads(path.read_text())
            else:
                files[relative] = self._file(relative, path)
        revision = settings.get("revision") or folder.partition("@")[2]
        if not re.fullmatch("[0-9a-f]{40}", revision):
            revision = hashlib.sha1(repr([(file.path, file.etag) for file in files.values()]).encode()).hexdigest()
        allowed = {key: settings[key] for key in ("gated", "private", "tokens") if key in settings}
        return Repository(name, revision, files, **allowed)

    def _file(self, relative: str, path: Path) -> File:
        state = path.stat()
        lfs = state.st_size >= self.lfs_bytes or any(fnmatch.fnmatch(path.name, name) for name in LFS_NAMES)
        key = (state.st_mtime_ns, state.st_size)
        with self._lock:
            known = self._hashed.get(str(path))
            if known is None or known[0] != key:
                known = (key, self._hash(path, state.st_size))
                self._hashed[str(path)] = known
        sha256, blob_id = known[1]
        if lfs:
            blob_id = git_blob(pointer(sha256, state.st_size))
        return File(relative, state.st_size, sha256, blob_id, lfs, disk=str(path))

    @staticmethod
    def _hash(path: Path, size: int) -> tuple[str, str]:
        sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
        with path.open("rb", buffering=0) as handle:
            for piece in iter(lambda: handle.read(PIECE), b""):
                sha256.update(piece)
                # The names of large files are made of their pointers.
                if size < PIECE:
                    blob.update(piece)
        return sha256.hexdigest(), blob.hexdigest()


class Throttle:
    """Bytes a second for all that passes through it together."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._free = 0.0
        self._lock = threading.Lock()

    @property
    def piece(self) -> int:
        """How much to send at once: about twenty times a second, so that it costs little and yet is smooth."""
        return max(4096, min(PIECE, int(self.rate / 20))) if self.rate else PIECE

    def take(self, count: int) -> None:
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            start = max(self._free, now - 0.05)
            self._free = start + count / self.rate
        if start > now:
            time.sleep(start - now)  # clock: it keeps its rate so


# Amazon's signature, version 4


def aws_signature(
    method: str, path: str, query: list[tuple[str, str]], headers: dict[str, str], payload: str, scope: str, date: str,
    secret: str,
) -> str:  # fmt: skip
    """The signature of a request. `path` as it is sent; `query` without the signature; `headers`: those signed."""
    quoted = sorted(
        (urllib.parse.quote(key, safe="-_.~"), urllib.parse.quote(value, safe="-_.~")) for key, value in query
    )
    canonical = [method, path, "&".join(f"{key}={value}" for key, value in quoted)]
    canonical += [f"{name}:{' '.join(headers[name].split())}" for name in sorted(headers)]
    canonical += ["", ";".join(sorted(headers)), payload]
    request = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    key = ("AWS4" + secret).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    text = "\n".join(("AWS4-HMAC-SHA256", date, scope, request))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


# Answers


@dataclass
class Answer:
    """What a request is answered, before faults and ranges."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | File = b""
    #: `<org>/<repo>/<path>` where it is about a file.
    subject: str = ""


def as_json(data: Any, status: int = 200, headers: Optional[dict[str, str]] = None) -> Answer:
    body = json.dumps(data, ensure_ascii=False).encode()
    return Answer(status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, body)


def hub_error(status: int, message: str, code: str = "") -> Answer:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return as_json({"error": message}, status, headers)


def modelscope_error(status: int, code: int, message: str) -> Answer:
    return as_json({"Code": code, "Message": message, "RequestId": "", "Success": False}, status)


def s3_error(status: int, code: str) -> Answer:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return Answer(status, {"Content-Type": "application/xml"}, text.encode())


class Hub:
    """The server. As a context manager it listens while the context lasts; `url` is its address.

    Settings (also by `POST /_settings`):
    rate          bytes a second for all answers together; 0: no limit
    page_size     entries of a listing before the next page
    lfs_bytes     files of this size and more are LFS objects
    gzip          small texts are compressed for clients that accept it; such answers ignore ranges, as the CDN does
    tokens        tokens of users; any other token is refused; None: every token is taken for a user's
    cdn           links to large files lead to the second port; False: they are served where they are asked for
    cdn_seconds   how long such links live
    basic         `user:password` of the plain HTTP layout; empty: open
    s3            bucket, prefix, access_key, secret_key, region
    """

    #: Clients, by address, that a fault keeps waiting just now, and the hub that does so; of all hubs of this process.
    standing: dict[tuple[str, int], Hub] = {}

    def __init__(
        self,
        root: str | Path,
        port: int = 0,
        bind: str = "127.0.0.1",
        cdn_port: int = 0,
        certificate: str = "",
        **settings: Any,
    ) -> None:
        self.settings: dict[str, Any] = {
            "rate": 0,
            "page_size": 1000,
            "lfs_bytes": PIECE,
            "gzip": False,
            "tokens": None,
            "cdn": True,
            "cdn_seconds": 3600,
            "basic": "",
            "s3": {
                "bucket": "weights",
                "prefix": "models",
                "access_key": "AKIAHUBTEST",
                "secret_key": "hub-test-secret",
                "region": "us-east-1",
            },
        }
        self.throttle = Throttle(0)
        self.configure(settings)
        self.library = Library(Path(root), self.settings["lfs_bytes"])
        self.requests: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._go = threading.Event()
        self.left = threading.Condition()
        self.scheme = "https" if certificate else "http"
        self.servers = [Server((bind, number), self, where) for number, where in ((port, "hub"), (cdn_port, "cdn"))]
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            for server in self.servers:
                server.context = context
        self.port, self.cdn_port = (server.server_address[1] for server in self.servers)
        self.url = f"{self.scheme}://{'127.0.0.1' if bind == '0.0.0.0' else bind}:{self.port}"

    def __enter__(self) -> Hub:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()
        self.go_on()

    def stand(self, address: tuple[str, int], seconds: Optional[float]) -> None:
        """Keep a client waiting: for so long (None: without an end), or until go_on()."""
        go = self._go
        self.standing[address] = self
        go.wait(seconds)
        self.standing.pop(address)

    def stands(self) -> bool:
        """Whether a client is kept waiting."""
        return self in list(self.standing.values())

    def go_on(self) -> None:
        """End the waiting of all clients that `stall` and `hang` keep waiting now."""
        go, self._go = self._go, threading.Event()
        go.set()

    def settle(self) -> None:
        """Return when nobody is connected any more, and nobody is left who was not heard yet."""
        for server in self.servers:
            with socket.create_connection(("127.0.0.1", server.server_port)) as last:
                # Connections are taken in the order in which they were made: when this one is ended, all were taken.
                last.shutdown(socket.SHUT_WR)
                last.recv(1)
        with self.left:
            self.left.wait_for(lambda: not any(server.open for server in self.servers))

    def configure(self, settings: dict[str, Any]) -> None:
        unknown = set(settings) - set(self.settings)
        if unknown:
            raise ValueError(f"no such setting: {', '.join(sorted(unknown))}")
        for name, value in settings.items():
            self.settings[name] = {**self.settings["s3"], **value} if name == "s3" else value
        if "rate" in settings:
            self.throttle.rate = self.settings["rate"]

    def revision(self, name: str) -> str:
        """The newest revision of a repository."""
        repository = self.library.repository(name)
        if repository is None:
            raise KeyError(name)
        return repository.revision

    def fault(self, kind: str, match: str = "*", times: Optional[int] = 1, **options: Any) -> dict[str, Any]:
        """Break the next `times` answers about what matches; see README.md. None: all of them."""
        if kind not in (*OF_BODIES, "status", "html", "loop", "hang", "refuse", "listing"):
            raise ValueError(f"no such fault: {kind}")
        fault = {"kind": kind, "match": match, "times": times, **options}
        with self._lock:
            self.faults.append(fault)
        return fault

    def sent(self, match: str = "*") -> int:
        """Bytes that went out of files that match (`<org>/<repo>/<path>` or `<path>`)."""
        answers = [entry for entry in self.requests if entry["status"] in (200, 206)]
        return sum(entry["sent"] for entry in answers if matches(match, entry["subject"]))

    def clear(self) -> None:
        """Forget requests and faults."""
        with self._lock:
            self.requests[:] = []
            self.faults[:] = []

    def note(self, entry: dict[str, Any]) -> None:
        with self._lock:
            entry["number"] = len(self.requests)
            self.requests.append(entry)

    def due(self, entry: dict[str, Any], answer: Answer) -> Optional[dict[str, Any]]:
        """The fault that this answer gets, if any."""
        of_file = isinstance(answer.body, File) and entry["method"] == "GET"
        with self._lock:
            for fault in self.faults:
                if (
                    fault["kind"] != "listing"
                    and fault["times"] != 0
                    and fault.get("method", entry["method"]) == entry["method"]
                    and fault.get("where", entry["where"]) == entry["where"]
                    and (of_file or fault["kind"] not in OF_BODIES)
                    and (matches(fault["match"], answer.subject) or fnmatch.fnmatch(entry["path"], fault["match"]))
                ):
                    if fault.get("skip"):
                        fault["skip"] -= 1
                        continue
                    if fault["times"]:
                        fault["times"] -= 1
                    return fault
        return None

    # Dialects

    def answer(self, request: Handler) -> tuple[str, Answer]:
        """The dialect in which a request is answered, and the answer."""
        raw = request.path.partition("?")[0]
        parts = [urllib.parse.unquote(part) for part in raw.lstrip("/").split("/")]
        query = dict(urllib.parse.parse_qsl(request.path.partition("?")[2], keep_blank_values=True))
        if request.server.where == "cdn":
            return "cdn", self.answer_cdn(request, parts, query)
        if parts[0].startswith("_"):
            return "control", self.answer_control(request, parts)
        if parts[0] == "files" and len(parts) > 4:
            return "files", self.answer_files(request, parts[1:])
        if parts[0] == self.settings["s3"]["bucket"]:
            return "s3", self.answer_s3(request, raw, parts[1:])
        if parts[:3] == ["api", "v1", "models"] or (parts[0] == "models" and parts[3:4] == ["resolve"]):
            return "modelscope", self.answer_modelscope(request, parts, query)
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return "api", self.answer_api(request, parts[2:], query)
        if parts[:3] == ["api", "resolve-cache", "models"] and len(parts) > 6:
            return "resolve", self.answer_resolve(request, parts[3:5], parts[5], "/".join(parts[6:]), cached=True)
        if parts[2:3] == ["resolve"] and len(parts) > 4:
            return "resolve", self.answer_resolve(request, parts[:2], parts[3], "/".join(parts[4:]))
        return "other", hub_error(404, "Sorry, we can't find the page you are looking for.")

    def find(self, request: Handler, name: str, revision: str, files: bool) -> Repository | Answer:
        """A repository of the hub that the client may see (or, `files`, download from), else the hub's refusal."""
        token = request.headers.get("Authorization", "").partition("Bearer ")[2]
        if token and self.settings["tokens"] is not None and token not in self.settings["tokens"]:
            return hub_error(401, "Invalid credentials in Authorization header")
        newest = self.library.repository(name)
        if newest is None or (newest.private and token not in newest.tokens):
            if token:
                return hub_error(404, "Repository not found", "RepoNotFound")
            return hub_error(401, "Invalid username or password.", "RepoNotFound")
        if newest.gated and files and token not in newest.tokens:
            what = f"Access to model {name} is restricted"
            if token:
                return hub_error(403, f"{what} and you are not in the authorized list. Ask for access.", "GatedRepo")
            return hub_error(401, f"{what}. You must have access to it and be authenticated to access it.", "GatedRepo")
        repository = self.library.repository(name, revision)
        if repository is None or revision in (repository.modelscope_revision, "master"):
            return hub_error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.lie(repository)

    def lie(self, repository: Repository) -> Repository:
        """The repository as a `listing` fault describes it."""
        for fault in self.faults:
            if fault["kind"] != "listing" or not fnmatch.fnmatch(repository.name, fault["match"]):
                continue
            for path, change in fault["set"].items():
                if change is None:
                    repository.files.pop(path, None)
                    continue
                content = change.get("content")
                if path not in repository.files:
                    data = (content or "").encode()
                    digest = hashlib.sha256(data).hexdigest()
                    repository.files[path] = File(path, len(data), digest, git_blob(data), False, content=data)
                for key, value in change.items():
                    if key != "content":
                        setattr(repository.files[path], key, value)
        return repository

    def answer_api(self, request: Handler, parts: list[str], query: dict[str, str]) -> Answer:
        name, rest = "/".join(parts[:2]), parts[2:]
        revision = rest[1] if len(rest) > 1 else "main"
        found = self.find(request, name, revision, files=False)
        if isinstance(found, Answer):
            return found
        if rest[:1] == ["tree"]:
            return self.tree(request, found, "/".join(rest[2:]), query)
        if rest and rest[:1] != ["revision"]:
            return hub_error(404, "Sorry, we can't find the page you are looking for.")
        siblings: list[dict[str, Any]] = []
        for file in found.files.values():
            siblings.append({"rfilename": file.path})
            if query.get("blobs", "").lower() == "true":
                siblings[-1].update(size=file.size, blobId=file.blob_id)
                if file.lfs:
                    lfs = {
                        "sha256": file.sha256,
                        "size": file.size,
                        "pointerSize": len(pointer(file.sha256, file.size)),
                    }
                    siblings[-1]["lfs"] = lfs
        return as_json(
            {
                "_id": found.revision[:24],
                "id": name,
                "modelId": name,
                "author": parts[0],
                "sha": found.revision,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "private": found.private,
                "gated": "manual" if found.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": ["safetensors"],
                "siblings": siblings,
            }
        )

    def tree(self, request: Handler, repository: Repository, top: str, query: dict[str, str]) -> Answer:
        entries: dict[str, dict[str, Any]] = {}
        recursive = query.get("recursive", "").lower() in ("true", "1")
        for file in repository.files.values():
            if top and not file.path.startswith(top + "/"):
                continue
            below = file.path[len(top) + 1 if top else 0 :].split("/")
            for depth in range(1, len(below) if recursive else min(len(below), 2)):
                folder = "/".join(filter(None, (top, *below[:depth])))
                oid = git_blob(folder.encode())
                entries.setdefault(folder, {"type": "directory", "oid": oid, "size": 0, "path": folder})
            if recursive or len(below) == 1:
                entries[file.path] = {"type": "file", "oid": file.blob_id, "size": file.size, "path": file.path}
                if file.lfs:
                    size = len(pointer(file.sha256, file.size))
                    entries[file.path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": size}
        if top and not entries:
            return hub_error(404, f"{top} does not exist", "EntryNotFound")
        start, size = int(query.get("cursor", 0)), self.settings["page_size"]
        page = list(entries.values())[start : start + size]
        headers = {}
        if start + size < len(entries):
            address = f"{self.scheme}://{request.headers.get('Host')}{request.path.partition('?')[0]}"
            following = urllib.parse.urlencode({**query, "cursor": start + size})
            headers["Link"] = f'<{address}?{following}>; rel="next"'
        return as_json(page, headers=headers)

    def answer_resolve(
        self, request: Handler, repo: list[str], revision: str, path: str, cached: bool = False
    ) -> Answer:
        name = "/".join(repo)
        subject = f"{name}/{path}"
        found = self.find(request, name, revision, files=True)
        if isinstance(found, Answer):
            found.subject = subject
            return found
        file = found.files.get(path)
        headers = {"X-Repo-Commit": found.revision}
        if file is None:
            headers.update({"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return Answer(404, headers, b"Entry not found", subject)
        headers.update({"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.etag}"'})
        if cached or (file.lfs and not self.settings["cdn"]):
            return self.content(file, subject, headers)
        if file.lfs:
            return self.to_cdn(request, name, file, headers)
        # The hub's own cache of small files is asked by a relative link.
        link = f"/api/resolve-cache/models/{name}/{found.revision}/{urllib.parse.quote(path)}"
        link += "?etag=" + urllib.parse.quote(headers["X-Linked-Etag"])
        return Answer(307, {**headers, "Location": link, "Content-Type": "text/plain"}, b"Temporary Redirect", subject)

    @staticmethod
    def content(file: File, subject: str, headers: Optional[dict[str, str]] = None) -> Answer:
        kind = "text/plain; charset=utf-8" if text(file) else "application/octet-stream"
        name = os.path.basename(file.path).encode("ascii", "replace").decode()
        found = {"ETag": f'"{file.etag}"', "Content-Type": kind, "Accept-Ranges": "bytes"}
        found["Content-Disposition"] = f"inline; filename*=UTF-8''{urllib.parse.quote(name)}; filename=\"{name}\";"
        return Answer(200, {**found, **(headers or {})}, file, subject)

    # Large files

    def to_cdn(self, request: Handler, name: str, file: File, headers: dict[str, str]) -> Answer:
        """The link to a large file, signed, on another port."""
        host = request.headers.get("Host", "127.0.0.1").partition(":")[0]
        expires = str(int(time.time() + self.settings["cdn_seconds"]))
        query = {"name": file.path, "Expires": expires, "Signature": self.sign(name, file.path, expires)}
        link = f"{self.scheme}://{host}:{self.cdn_port}/{name}/{file.sha256}?{urllib.parse.urlencode(query)}"
        text = f"Found. Redirecting to {link}".encode()
        return Answer(302, {**headers, "Location": link, "Content-Type": "text/plain"}, text, f"{name}/{file.path}")

    @staticmethod
    def sign(name: str, path: str, expires: str) -> str:
        return hmac.new(CDN_SECRET, f"{name}\n{path}\n{expires}".encode(), hashlib.sha256).hexdigest()

    def answer_cdn(self, request: Handler, parts: list[str], query: dict[str, str]) -> Answer:
        name, path, expires = "/".join(parts[:2]), query.get("name", ""), query.get("Expires", "0")
        subject = f"{name}/{path}"
        refused: Optional[Answer] = None
        if request.headers.get("Authorization"):
            refused = s3_error(400, "InvalidArgument")
        elif not hmac.compare_digest(self.sign(name, path, expires), query.get("Signature", "")):
            refused = s3_error(403, "SignatureDoesNotMatch")
        elif float(expires) < time.time():  # clock: links expire
            refused = s3_error(403, "AccessDenied")
        for revision in (folder.name.partition("@")[2] for folder in (self.library.root / name).parent.glob("*")):
            repository = None if refused else self.library.repository(name, revision or "main")
            file = self.lie(repository).files.get(path) if repository else None
            if file and file.sha256 == parts[2]:
                return self.content(file, subject)
        refused = refused or s3_error(404, "NoSuchKey")
        refused.subject = subject
        return refused

    # Plain HTTP: the layout of the store

    def stored(self, parts: list[str]) -> Optional[Answer]:
        """A file of the store's layout, `<org>/<repo>/<revision>/<path>`, or its manifest."""
        name, path = "/".join(parts[:2]), "/".join(parts[3:])
        repository = self.library.repository(name, parts[2]) if len(parts) > 3 else None
        if repository is None or parts[2] != repository.revision:
            return None
        repository = self.lie(repository)
        file = repository.files.get(path)
        if path == ".modelhost.json":
            names = ("path", "size", "sha256", "blob_id", "lfs")
            manifest = {
                "format": 1,
                "repo": name,
                "revision": repository.revision,
                "source": "hub https://huggingface.co",
                "verified": "hub",
                "files": [{key: getattr(file, key) for key in names} for file in repository.files.values()],
            }
            data = json.dumps(manifest, indent=1).encode()
            file = File(path, len(data), hashlib.sha256(data).hexdigest(), git_blob(data), False, content=data)
        return self.content(file, f"{name}/{path}") if file else None

    def answer_files(self, request: Handler, parts: list[str]) -> Answer:
        if self.settings["basic"]:
            kind, _, given = request.headers.get("Authorization", "").partition(" ")
            if kind != "Basic" or decoded(given) != self.settings["basic"]:
                return Answer(401, {"WWW-Authenticate": 'Basic realm="files"'}, b"", "/".join(parts[:2] + parts[3:]))
        return self.stored(parts) or Answer(404, {"Content-Type": "text/html"}, b"<html>404 Not Found</html>")

    # S3

    def answer_s3(self, request: Handler, raw: str, parts: list[str]) -> Answer:
        refused = self.refused_by_s3(request, raw)
        if refused:
            return s3_error(403, refused)
        prefix = [part for part in self.settings["s3"]["prefix"].split("/") if part]
        found = self.stored(parts[len(prefix) :]) if parts[: len(prefix)] == prefix else None
        return found or s3_error(404, "NoSuchKey")

    def refused_by_s3(self, request: Handler, raw: str) -> str:
        """The code of S3's refusal, empty where the signature (in the address or in a header) is right."""
        query = urllib.parse.parse_qsl(request.path.partition("?")[2], keep_blank_values=True)
        given = dict(query)
        header = request.headers.get("Authorization", "")
        if header.startswith("AWS4-HMAC-SHA256 "):
            fields = dict(part.strip().split("=", 1) for part in header.partition(" ")[2].split(","))
            credential, signed, signature = fields["Credential"], fields["SignedHeaders"], fields["Signature"]
            date, seconds = request.headers.get("X-Amz-Date", ""), 900
            payload = request.headers.get("X-Amz-Content-SHA256", "UNSIGNED-PAYLOAD")
        elif "X-Amz-Signature" in given:
            query = [(key, value) for key, value in query if key != "X-Amz-Signature"]
            credential, signed = given.get("X-Amz-Credential", ""), given.get("X-Amz-SignedHeaders", "")
            signature, date, seconds = (
                given["X-Amz-Signature"],
                given.get("X-Amz-Date", ""),
                int(given["X-Amz-Expires"]),
            )
            payload = "UNSIGNED-PAYLOAD"
            if header:
                return "InvalidArgument"
        else:
            return "AccessDenied"
        settings = self.settings["s3"]
        key, _, scope = credential.partition("/")
        if key != settings["access_key"]:
            return "InvalidAccessKeyId"
        if scope.split("/")[1:] != [settings["region"], "s3", "aws4_request"]:
            return "AuthorizationHeaderMalformed"
        headers = {name: request.headers.get(name, "") for name in signed.split(";")}
        arguments = (request.command, raw, query, headers, payload, scope, date, settings["secret_key"])
        if "host" not in headers or not hmac.compare_digest(aws_signature(*arguments), signature):
            return "SignatureDoesNotMatch"
        try:
            age = time.time() - calendar_seconds(date)
        except ValueError:
            return "AccessDenied"
        return "" if -900 < age < seconds else "AccessDenied"

    # ModelScope

    def answer_modelscope(self, request: Handler, parts: list[str], query: dict[str, str]) -> Answer:
        api = parts[0] == "api"
        name, rest = ("/".join(parts[3:5]), parts[5:]) if api else ("/".join(parts[1:3]), [])
        revision = query.get("Revision", "master") if api else parts[4]
        path = query.get("FilePath", "") if api else "/".join(parts[5:])
        newest = self.library.repository(name)
        cookie = re.search("m_session_id=([^;]*)", request.headers.get("Cookie", ""))
        token = cookie.group(1) if cookie else request.headers.get("Authorization", "").partition("Bearer ")[2]
        if newest is None or ((newest.private or newest.gated) and token not in newest.tokens):
            return modelscope_error(404, 10010205001, "获取模型信息失败，信息不存在")
        found = self.library.repository(name, revision)
        if found is None or revision in (found.revision, "main"):
            found = None
        else:
            self.lie(found)
        if rest == ["repo", "files"]:
            # A revision that it does not know is answered with success, and no list.
            files = None if found is None else self.modelscope_files(found)
            data = {"Files": files, "IsVisual": 0, "LatestCommitter": None}
            return as_json({"Code": 200, "Data": data, "Message": "success", "RequestId": "", "Success": True})
        if api and rest != ["repo"]:
            return modelscope_error(404, 404, "Not Found")
        file = found.files.get(path) if found else None
        if file is None:
            return modelscope_error(404, 10990101007, "获取模型文件失败，文件内容为空")
        if file.lfs and self.settings["cdn"]:
            return self.to_cdn(request, name, file, {"X-Linked-Etag": file.sha256, "X-Linked-Size": str(file.size)})
        return self.content(file, f"{name}/{path}")

    @staticmethod
    def modelscope_files(repository: Repository) -> list[dict[str, Any]]:
        common = {"CommitMessage": "update", "CommittedDate": 1767225600, "CommitterName": "hub", "InCheck": False}
        common["Revision"] = repository.modelscope_revision
        folders = {path.rsplit("/", 1)[0] for path in repository.files if "/" in path}
        entries = [
            {**common, "Path": path, "Name": path.rsplit("/", 1)[-1], "Type": "tree", "Mode": "16384", "Size": 0,
             "Sha256": "", "IsLFS": False}
            for path in sorted(folders)
        ]  # fmt: skip
        for file in repository.files.values():
            entry = {"Path": file.path, "Name": file.path.rsplit("/", 1)[-1], "Type": "blob", "Mode": "33188"}
            entries.append({**common, **entry, "Size": file.size, "Sha256": file.sha256, "IsLFS": file.lfs})
        return entries

    # Control

    def answer_control(self, request: Handler, parts: list[str]) -> Answer:
        """`/_faults`, `/_requests`, `/_settings`: read, add (POST), forget (DELETE)."""
        method, what = request.command, parts[0]
        try:
            data = json.loads(request.given or b"null")
            if what == "_faults":
                if method == "POST":
                    for fault in data if isinstance(data, list) else [data]:
                        self.fault(**fault)
                elif method == "DELETE":
                    self.faults.clear()
                return as_json({"faults": self.faults})
            if what == "_requests":
                if method == "DELETE":
                    self.requests.clear()
                return as_json({"requests": self.requests})
            if what == "_settings":
                if method == "POST":
                    self.configure(data)
                return as_json(self.settings)
            if what == "_health":
                return as_json({"repositories": {name: self.revision(name) for name in self.library.names()}})
        except (TypeError, ValueError) as error:
            return as_json({"error": str(error)}, 400)
        return as_json({"error": "no such control"}, 404)


def matches(pattern: str, subject: str) -> bool:
    """Whether a pattern names a file, with its repository or without."""
    return bool(subject) and any(fnmatch.fnmatch(name, pattern) for name in (subject, subject.split("/", 2)[-1]))


def text(file: File) -> bool:
    return not file.lfs and any(fnmatch.fnmatch(file.path, name) for name in TEXT_NAMES)


def decoded(base64_text: str) -> str:
    try:
        return base64.b64decode(base64_text).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def calendar_seconds(date: str) -> float:
    return calendar.timegm(time.strptime(date, "%Y%m%dT%H%M%SZ"))


# The server


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    context: Optional[ssl.SSLContext] = None

    def __init__(self, address: tuple[str, int], hub: Hub, where: str) -> None:
        self.hub = hub
        self.where = where
        self.open = 0
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.hub.left:
            self.open += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self.hub.left:
            self.open -= 1
            self.hub.left.notify_all()

    def server_bind(self) -> None:
        # HTTPServer would look up the machine's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.context:  # here, in the connection's own thread
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):  # connections that clients break off
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "hub"
    sys_version = ""
    disable_nagle_algorithm = True
    server: Server
    given: bytes

    def log_message(self, *arguments: Any) -> None:
        """Requests are kept, not printed."""

    def do_GET(self) -> None:
        hub = self.server.hub
        self.given = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        where, answer = hub.answer(self)
        if where == "control":
            self.send(answer, {}, None)
            return
        entry: dict[str, Any] = {
            "time": time.time(),
            "where": where,
            "method": self.command,
            "path": self.path,
            "subject": answer.subject,
            "range": self.headers.get("Range"),
            "authorization": self.headers.get("Authorization", "").partition(" ")[0],
            "cookie": "Cookie" in self.headers,
            "agent": self.headers.get("User-Agent", ""),
            "status": None,
            "fault": None,
            "sent": 0,
        }
        hub.note(entry)
        fault = hub.due(entry, answer)
        entry["fault"] = fault and fault["kind"]
        self.send(self.replaced(answer, fault) if fault else answer, entry, fault)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def replaced(self, answer: Answer, fault: dict[str, Any]) -> Answer:
        """The answer of a fault that replaces it."""
        kind = fault["kind"]
        if kind == "status":
            options = {"X-Error-Code": "code", "X-Error-Message": "message", "Retry-After": "retry_after"}
            headers = {header: str(fault[option]) for header, option in options.items() if option in fault}
            body = json.dumps({"error": fault.get("message", http.client.responses[fault["status"]])}).encode()
            return Answer(fault["status"], {**headers, "Content-Type": "application/json"}, body, answer.subject)
        if kind == "html":
            page = b"<html><body>Please log in to the network.</body></html>"
            return Answer(200, {"Content-Type": "text/html"}, page, answer.subject)
        if kind == "loop":
            return Answer(302, {"Location": self.path}, b"", answer.subject)
        return answer

    def send(self, answer: Answer, entry: dict[str, Any], fault: Optional[dict[str, Any]]) -> None:
        kind = fault["kind"] if fault else None
        if fault and kind == "hang":
            self.server.hub.stand(self.client_address, fault.get("seconds"))
        if kind == "refuse":
            self.hang_up(reset=False)
            return
        size = answer.body.size if isinstance(answer.body, File) else len(answer.body)
        start, end, status, headers = 0, size, answer.status, dict(answer.headers)
        compressed = self.compressed(answer)
        if compressed is not None:
            headers.update({"Content-Encoding": "gzip", "Transfer-Encoding": "chunked", "Vary": "Accept-Encoding"})
            end = 0
        elif isinstance(answer.body, File) and kind != "norange" and not (fault and fault.get("norange")):
            wanted = self.range(size, headers.get("ETag"))
            if wanted:
                start, end = wanted
                status = 206 if start < end else 416
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}" if start < end else f"bytes */{size}"
                if status == 416:
                    start = end = 0
        length = end - start
        if fault and kind == "length":
            length += fault.get("delta", -1)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Last-Modified", formatdate(1767225600, usegmt=True))
        if compressed is None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        entry["status"] = status
        if self.command == "HEAD":
            return
        if compressed is not None:
            entry["sent"] = len(compressed)
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(compressed), compressed))
            return
        if kind == "length":
            end = min(end, start + length)
            self.close_connection = True
        self.send_body(answer.body, start, end, entry, fault or {})

    def compressed(self, answer: Answer) -> Optional[bytes]:
        """A small text in the form that clients which accept gzip get, else None."""
        if not self.server.hub.settings["gzip"] or "gzip" not in self.headers.get("Accept-Encoding", ""):
            return None
        if not isinstance(answer.body, File) or answer.status != 200 or not text(answer.body):
            return None
        return gzip.compress(answer.body.read(0, answer.body.size))

    def range(self, size: int, etag: Optional[str]) -> Optional[tuple[int, int]]:
        """The bytes that are asked for, as [start, end); (0, 0): there are none; None: all."""
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").strip())
        if not found or found.groups() == ("", "") or self.headers.get("If-Range", etag) != etag:
            return None
        first, last = found.groups()
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        return (start, end) if start < end else (0, 0)

    def send_body(self, body: bytes | File, start: int, end: int, entry: dict[str, Any], fault: dict[str, Any]) -> None:
        """Send [start, end) of a body, and break what the fault says."""
        throttles = [self.server.hub.throttle]
        kind, length = fault.get("kind"), end - start
        if kind == "slow":
            throttles.append(Throttle(fault["rate"]))
        after = min(length, int(fault.get("after", length // 2))) if kind in ("cut", "reset", "stall") else -1
        spoilt = min(max(int(fault.get("at", (start + end) // 2)), start), end - 1) if kind == "corrupt" else -1
        piece = min(throttle.piece for throttle in throttles)
        by_kernel = isinstance(body, File) and body.disk and self.server.context is None
        disk = os.open(str(body.disk), os.O_RDONLY) if isinstance(body, File) and by_kernel else -1
        position, sent = start, 0
        try:
            while True:
                if sent == after:
                    if kind != "stall":
                        self.hang_up(reset=kind == "reset")
                        return
                    self.server.hub.stand(self.client_address, fault.get("seconds"))
                    after = -1
                if position >= end:
                    return
                count = min(piece, end - position, *([after - sent] if after > sent else []))
                for throttle in throttles:
                    throttle.take(count)
                # Counted before it goes, so that whoever has received it finds it counted.
                entry["sent"] = sent + count
                if by_kernel and not position <= spoilt < position + count:
                    count = os.sendfile(self.connection.fileno(), disk, position, count)
                else:
                    data = bytearray(
                        body.read(position, count) if isinstance(body, File) else body[position : position + count]
                    )
                    if position <= spoilt < position + count:
                        data[spoilt - position] ^= 0xFF
                    self.connection.sendall(data)
                    count = len(data)
                if not count:  # the file became shorter while it was sent
                    self.close_connection = True
                    return
                position += count
                sent += count
        except OSError:
            self.close_connection = True  # the client went away
        finally:
            entry["sent"] = sent
            if by_kernel:
                os.close(disk)

    def hang_up(self, reset: bool) -> None:
        """End the connection: in order, or with a reset, which also throws away what is on its way."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, type=Path, help="folder with <org>/<repo>/ in it")
    parser.add_argument("--port", type=int, default=8091)
    parser.add_argument("--cdn-port", type=int, help="where large files come from; by default the next port")
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--certificate", default="", help="certificate and key in one file: serve HTTPS")
    parser.add_argument("--rate", type=float, default=0, help="bytes a second for all together")
    parser.add_argument("--settings", default="{}", help="further settings, as JSON")
    parser.add_argument("--faults", default="[]", help="faults from the start, as JSON")
    given = parser.parse_args()
    cdn_port = given.port + 1 if given.cdn_port is None else given.cdn_port
    settings = {"rate": given.rate, **json.loads(given.settings)}
    hub = Hub(given.root, given.port, given.bind, cdn_port, given.certificate, **settings)
    for fault in json.loads(given.faults):
        hub.fault(**fault)
    with hub:
        for name in hub.library.names():
            print(f"{hub.url}/{name} {hub.revision(name)}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
