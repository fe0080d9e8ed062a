# MIT licence (see LICENSE)
"""The files of a Python environment against what its distributions' RECORDs say. Runs on hosts: Python 3.8.

A mark in the environment says that it is whole. It holds a hash of every RECORD, so that the chain goes from the mark
over the RECORDs to each file.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

#: Marks an environment that was finished.
COMPLETE = ".complete"


def site_packages(environment: str) -> str:
    """Where distributions lie, below the environment."""
    (python,) = [name for name in os.listdir(os.path.join(environment, "lib")) if name.startswith("python")]
    return os.path.join("lib", python, "site-packages")


def digest(path: str) -> str:
    """A file's hash as RECORDs write it."""
    found = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1024 * 1024), b""):
            found.update(block)
    return "sha256=" + base64.urlsafe_b64encode(found.digest()).decode().rstrip("=")


def distributions(environment: str) -> dict:
    """Folder of each distribution → its RECORD."""
    site = os.path.join(environment, site_packages(environment))
    paths = {name: os.path.join(site, name, "RECORD") for name in os.listdir(site) if name.endswith(".dist-info")}
    return {name: path for name, path in sorted(paths.items()) if os.path.isfile(path)}


def records(environment: str) -> dict:
    """Folder of each distribution → hash of its RECORD."""
    return {name: digest(path) for name, path in distributions(environment).items()}


def owners(environment: str) -> dict:
    """Path from site-packages → {(hash, size): distributions that say so}.

    Left out is what has no hash, and bytecode: some wheels bring it, and it is made anew here.
    """
    found: dict = {}
    for name, path in distributions(environment).items():
        with open(path, encoding="utf-8", newline="") as handle:
            for row in csv.reader(handle):
                if len(row) == 3 and row[1] and not row[0].endswith(".pyc"):
                    says = (row[1], int(row[2]) if row[2] else None)
                    found.setdefault(os.path.normpath(row[0]), {}).setdefault(says, []).append(name)
    return found


def conflicts(environment: str, shared: list) -> dict:
    """Paths that distributions say different things of → those distributions."""
    return {
        path: sorted(name for names in says.values() for name in names)
        for path, says in owners(environment).items()
        if len({value for value, _size in says}) > 1 and path not in shared
    }


def wrong(environment: str, contents: bool, accepted: dict) -> dict:
    """Path → why it is not as its owner says. accepted: path → hash and size that hold in the place of the owner's.

    Sizes alone unless `contents`: reading all of a large release takes longer than a run should.
    """
    site = os.path.join(environment, site_packages(environment))
    found, unread = {}, []
    for path, says in owners(environment).items():
        allowed = [tuple(accepted[path])] if path in accepted else list(says)
        try:
            size = os.stat(os.path.join(site, path)).st_size
        except OSError:
            found[path] = "is missing"
            continue
        sizes = [it for _value, it in allowed if it is not None]
        if sizes and size not in sizes:
            found[path] = "has %d bytes, not %s" % (size, " or ".join(str(it) for it in sizes))
        elif contents:
            unread.append((path, [value for value, _size in allowed]))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        digests = list(pool.map(lambda item: digest(os.path.join(site, item[0])), unread))
    for (path, values), value in zip(unread, digests):
        if value not in values:
            found[path] = "has another content"
    return found


def bad_links(environment: str, links: dict) -> dict:
    """Links that are not there or lead elsewhere. links: path below the environment → target."""
    found = {}
    for name, target in links.items():
        path = os.path.join(environment, name)
        if not os.path.islink(path) or os.readlink(path) != link_target(environment, name, target):
            found[name] = "is no link to %s" % target
    return found


def link_target(environment: str, name: str, target: str) -> str:
    """A link's own text; `{site}` stands for site-packages, and what is not absolute for a place in the environment."""
    target = target.replace("{site}", site_packages(environment))
    return target if os.path.isabs(target) else os.path.relpath(target, os.path.dirname(name))


def make_links(environment: str, links: dict) -> None:
    """Make the links of a new environment."""
    for name, target in links.items():
        path = os.path.join(environment, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(link_target(environment, name, target), path)


def read_mark(environment: str) -> dict | None:
    """What a finished environment says of itself; None where it was not finished, empty where it is of old."""
    try:
        with open(os.path.join(environment, COMPLETE), encoding="utf-8") as handle:
            text = handle.read()
    except OSError:
        return None
    try:
        return dict(json.loads(text)) if text.strip() else {}
    except ValueError:
        return None


def write_mark(environment: str, accepted: dict) -> None:
    """Say that an environment is whole."""
    path = os.path.join(environment, COMPLETE)
    with open(path + ".part", "w", encoding="utf-8") as handle:
        json.dump({"records": records(environment), "accepted": accepted}, handle, indent=1, sort_keys=True)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(path + ".part", path)


def renew_mark(environment: str) -> None:
    """Give a mark of old its content. Its time stays: services restart where a mark is younger than they are."""
    path = os.path.join(environment, COMPLETE)
    was = os.stat(path)
    write_mark(environment, {})
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def damage(environment: str, mark: dict, contents: bool, links: dict) -> dict:
    """Path → what is wrong with a finished environment. Only sizes are looked at, until one of them is wrong."""
    try:
        there = records(environment)
        found = {
            "%s/RECORD" % name: "is not what was installed"
            for name, value in mark.get("records", {}).items()
            if there.get(name) != value
        }
        accepted = mark.get("accepted", {})
        # A mark of old says nothing of contents: they are looked at once.
        found.update(wrong(environment, contents or not mark, accepted))
        if found and not contents:
            found.update(wrong(environment, True, accepted))
        found.update(bad_links(environment, links))
    except (OSError, ValueError) as problem:
        found = {".": "cannot be read (%s)" % problem}
    return found


def told(found: dict, most: int = 5) -> str:
    """The first few of what is wrong, and how many there are."""
    some = ", ".join("%s %s" % item for item in sorted(found.items())[:most])
    return "%d file(s) are not as their distributions say: %s%s" % (
        len(found), some, " and %d more" % (len(found) - most) if len(found) > most else "",
    )  # fmt: skip
