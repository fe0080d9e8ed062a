"""What the wheels of a lock hold, read without downloading them: an index serves parts of a file.

Held against each other are the RECORDs (no path with two contents) and the metadata (nothing that a wheel asks for is
left out), for every Python that a lock claims. `./run lock` refuses a lock that fails; tests/unit/test_locks.py asks
the same of the locks that are there.
"""

from __future__ import annotations

import configparser
import csv
import email
import functools
import io
import re
import shutil
import subprocess
import tempfile
import urllib.parse
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import yaml
from ansible.plugins.loader import init_plugin_loader
from ansible.utils.collection_loader import AnsibleCollectionConfig
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
if AnsibleCollectionConfig.collection_finder is None:
    init_plugin_loader([str(ROOT / ".collections")])

from ansible_collections.modelhost.serving.plugins.module_utils.bundle_plan import File  # noqa: E402 (needs the loader)
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_tools import Uv  # noqa: E402

#: The oldest distribution whose C library fits every wheel (Ubuntu 22.04).
PLATFORM = {"codename": "jammy", "architecture": "x86_64"}
PYTHONS = ("3.11", "3.12", "3.13")
#: Bytes that are fetched at once; most RECORDs lie in the last of them.
BLOCK = 128 * 1024


@dataclass
class Lock:
    """A lock, and how the hosts install it."""

    path: Path
    excludes: list[str] = field(default_factory=list)
    #: Distributions whose requirements are changed on purpose.
    overridden: list[str] = field(default_factory=list)
    #: Files that may have two owners, because nothing loads them.
    shared: list[str] = field(default_factory=list)
    #: What no index but PyTorch's has; machines that do not reach it leave it out.
    elsewhere: list[str] = field(default_factory=list)

    @property
    def left_out(self) -> list[str]:
        """Distributions that are not looked at."""
        return [*self.excludes, *self.elsewhere]


def locks() -> dict[str, Lock]:
    """Every lock that a virtual environment is made from, by its component."""
    pins: dict[str, Any] = yaml.safe_load((ROOT / "versions.yml").read_text(encoding="utf-8"))
    role = yaml.safe_load((ROOT / "roles/vllm/vars/main.yml").read_text(encoding="utf-8"))
    gateway = ROOT / pins["litellm"]["lock"]
    overrides = re.findall(r"(?m)^([\w.-]+)", (gateway.parent / "overrides.in").read_text(encoding="utf-8"))
    found = {
        build: Lock(
            ROOT / pins["vllm"][build]["lock"],
            role["__vllm_excludes"][build],
            shared=pins["vllm"][build]["shared"],
            elsewhere=["torch"] if build == "cpu" else [],
        )
        for build in ("cpu", "cuda")
    }
    found["litellm"] = Lock(gateway, overridden=overrides)
    found["hf"] = Lock(ROOT / pins["huggingface_hub"]["lock"])
    found["node"] = Lock(ROOT / pins["node"]["lock"])
    found["controller"] = Lock(ROOT / "requirements.txt")
    found["tests"] = Lock(ROOT / "requirements-test.txt")
    return found


# --- one wheel ---------------------------------------------------------------------------------------------------


class Remote(io.RawIOBase):
    """A file behind an address, of which only what is read is fetched."""

    def __init__(self, session: requests.Session, url: str) -> None:
        self.session, self.url, self.place = session, url, 0
        self.blocks: dict[int, bytes] = {}
        answer = session.head(url, allow_redirects=True, timeout=60)
        answer.raise_for_status()
        self.url, self.size = answer.url, int(answer.headers["Content-Length"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        block, start = divmod(self.place, BLOCK)
        if self.place >= self.size:
            return 0
        if block not in self.blocks:
            last = min((block + 1) * BLOCK, self.size) - 1
            answer = self.session.get(self.url, headers={"Range": f"bytes={block * BLOCK}-{last}"}, timeout=60)
            answer.raise_for_status()
            if answer.status_code != 206:
                raise OSError(f"{self.url}: the index does not serve parts of a file")
            self.blocks[block] = answer.content
        part = self.blocks[block][start : start + len(buffer)]
        buffer[: len(part)] = part
        self.place += len(part)
        return len(part)


@dataclass
class Wheel:
    """What is to be known of a wheel."""

    name: str
    version: str
    requires: list[Requirement]
    #: Path below site-packages → hash, as far as the wheel says.
    files: dict[str, str]


def installed(path: str) -> str:
    """Where a path of a wheel's RECORD ends, seen from site-packages."""
    found = re.match(r"[^/]+\.data/(purelib|platlib|scripts|data|headers)/(.*)", path)
    if not found:
        return path
    return {"scripts": "../../../bin/", "data": "../../../", "headers": "../../../include/"}.get(found[1], "") + found[
        2
    ]


@functools.cache
def wheel(url: str) -> Wheel:
    """A wheel's own account of itself."""
    with requests.Session() as session:
        local = url.startswith("file:")
        path = Path(urllib.parse.unquote(url[7:]))
        file: Any = path.open("rb") if local else io.BufferedReader(Remote(session, url), BLOCK)
        with file, zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            (folder,) = {name.split("/")[0] for name in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)}
            text = {
                name: archive.read(f"{folder}/{name}").decode()
                for name in ("METADATA", "RECORD", "entry_points.txt")
                if f"{folder}/{name}" in names
            }
    head = email.message_from_string(text["METADATA"])
    files = {installed(row[0]): row[1] for row in csv.reader(io.StringIO(text["RECORD"])) if row and row[1]}
    scripts = configparser.ConfigParser(delimiters="=", interpolation=None)
    scripts.optionxform = str  # type: ignore[assignment,method-assign]  # names of programs keep their case
    scripts.read_string(text.get("entry_points.txt", ""))
    if scripts.has_section("console_scripts"):
        files.update({f"../../../bin/{name}": target for name, target in scripts.items("console_scripts")})
    requires = [Requirement(line) for line in head.get_all("Requires-Dist") or []]
    return Wheel(canonicalize_name(head["Name"]), head["Version"], requires, files)


# --- a lock ------------------------------------------------------------------------------------------------------


def wheels(uv: str, lock: Lock, python: str) -> list[Wheel]:
    """The wheels that a host with this Python gets."""
    tool = Uv(ROOT, ROOT / ".cache")
    tool.path = uv
    asked = {"component": lock.path.name, "lock": lock.path.read_text(encoding="utf-8"), "excludes": lock.left_out}
    found: list[File] = tool.wheels(asked, python, PLATFORM, "wheels")
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(wheel, [file.url for file in found]))


def overlaps(found: Iterable[Wheel], shared: Iterable[str] = ()) -> list[str]:
    """Paths that two wheels own with different content: which one stays is a race between uv's threads."""
    owners: dict[str, dict[str, str]] = {}
    for item in found:
        for path, digest in item.files.items():
            owners.setdefault(path, {}).setdefault(digest, f"{item.name} {item.version}")
    return [
        f"{path}: {' and '.join(who.values())}"
        for path, who in sorted(owners.items())
        if len(who) > 1 and path not in set(shared)
    ]


def unmet(found: Iterable[Wheel], python: str, ignored: Iterable[str] = ()) -> list[str]:
    """Requirements of the wheels that no wheel of the lock meets on Linux with this Python."""
    found = list(found)
    there, skip = {item.name: item.version for item in found}, {canonicalize_name(name) for name in ignored}
    linux = {**default_environment(), "python_version": python, "python_full_version": f"{python}.9"}
    linux |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    problems = []
    for item in found:
        for need in item.requires:
            name = canonicalize_name(need.name)
            if name in skip or (need.marker and not need.marker.evaluate({**linux, "extra": ""})):
                continue
            if name not in there or not need.specifier.contains(there[name], prereleases=True):
                problems.append(f"{item.name} {item.version} wants {need}, and {there.get(name, 'none')} is there")
    return problems


def refused(uv: str, lock: Lock, python: str) -> str:
    """Why uv would not install a lock on a host with this Python, by hash and without building anything."""
    with tempfile.TemporaryDirectory() as folder:
        excludes = Path(folder, "excludes.txt")
        excludes.write_text("\n".join(lock.left_out) + "\n", encoding="utf-8")
        command = [uv, "pip", "install", "--quiet", "--dry-run", "--no-build", "--no-deps", "--require-hashes"]
        command += ["--target", folder, "--python-version", python, "--python-platform", "x86_64-manylinux_2_35"]
        done = subprocess.run(
            [*command, "--excludes", str(excludes), "-r", str(lock.path)], capture_output=True, text=True, check=False
        )
    return done.stderr.strip() if done.returncode else ""


def problems(uv: str, lock: Lock, python: str) -> list[str]:
    """All that is wrong with a lock on a host with this Python."""
    why = refused(uv, lock, python)
    if why:
        return [why]
    found = wheels(uv, lock, python)
    return overlaps(found, lock.shared) + unmet(found, python, [*lock.left_out, *lock.overridden])


def own_uv() -> str:
    """The uv of ./run, or the one on the path."""
    beside = ROOT / ".cache/uv/bin/uv"
    return str(beside) if beside.exists() else shutil.which("uv") or "uv"
