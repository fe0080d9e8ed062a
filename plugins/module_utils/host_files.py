# MIT licence (see LICENSE)
"""Brings a set of files of a host to what it should be. Goes to hosts: Python 3.8, standard library.

An item is a dictionary: path, kind (`directory`, `file`, `secret`, `link`, `absent`), owner, group, mode (a number)
and, by kind, data (bytes), generate, target, validate (arguments), keep, prune (a pattern), hidden.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import grp
import os
import pwd
import secrets
import shutil
import stat
from typing import Any, Callable, Dict, Iterable, Iterator  # noqa: UP035 (Python 3.8)

from ansible_collections.modelhost.serving.plugins.module_utils import derived_files

#: What an unfinished file is called. No program takes a file of this name for one of its settings.
PART_PREFIX, PART_SUFFIX = ".modelhost-", ".part"
#: Random bytes of a generated secret (256 bits).
SECRET_BYTES = 32
#: Bytes of a file that a diff shows at most, as Ansible's own limit.
DIFF_LIMIT = 104448
#: Two runs at once wait here for each other. Only root can make a file in this folder.
LOCK = "/run/modelhost-host-files.lock"

Item = Dict[str, Any]  # noqa: UP006 (Python 3.8)


class Refused(Exception):
    """What is wrong, one sentence each. `changes` is what was done before that."""

    def __init__(self, problems: list[str], changes: list[dict[str, Any]] | None = None) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.changes = changes or []


def account(item: Item, name: str, check: bool) -> int:
    """The number of an item's owner or group. -1 leaves it as it is; -2 stands for one that is not there yet."""
    wanted = item.get(name)
    if wanted is None:
        return 0 if os.geteuid() == 0 else -1
    try:
        return pwd.getpwnam(wanted).pw_uid if name == "owner" else grp.getgrnam(wanted).gr_gid
    except KeyError:
        if check:
            return -2
        kind = "account" if name == "owner" else "group"
        raise Refused(["%s: there is no %s %r on this host" % (item["path"], kind, wanted)]) from None


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Says of a failing system call which file it was about."""
    try:
        yield
    except OSError as error:
        hint = ". Make room on its file system" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise Refused(["%s: %s%s" % (path, error.strerror, hint)]) from None


def look(path: str) -> os.stat_result | None:
    """The state of a path itself, links not followed; None where there is nothing."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def trusted(found: os.stat_result) -> bool:
    """Whether root, or who runs this, is the only one who can lead it elsewhere."""
    return found.st_uid in (0, os.geteuid())


def way_problem(path: str, made: set[str], check: bool) -> str:
    """What is wrong with the folders above a path; nothing where all is well."""
    place = "/"
    for part in path.strip("/").split("/")[:-1]:
        place = os.path.join(place, part)
        found = look(place)
        if found is None:
            if place in made or check:
                return ""
            return "%s: the folder %s is not there" % (path, place)
        if not trusted(found):
            kind = "link" if stat.S_ISLNK(found.st_mode) else "folder"
            return "%s: the %s %s belongs to account number %d, who could lead root elsewhere" % (
                path,
                kind,
                place,
                found.st_uid,
            )
        if not os.path.isdir(place):
            return "%s: %s is no folder" % (path, place)
    return ""


def kind_problem(item: Item) -> str:
    """What stands in an item's place and is not this run's to replace; nothing where all is well."""
    path, found = item["path"], look(item["path"])
    if found is None or item["kind"] == "absent":
        return ""
    if item["kind"] == "directory":
        if stat.S_ISLNK(found.st_mode):
            if not trusted(found):
                return "%s: a link of account number %d is in the way" % (path, found.st_uid)
            if not os.path.isdir(path):
                return "%s: a link that leads to no folder is in the way" % path
        elif not stat.S_ISDIR(found.st_mode):
            return "%s: a file is in the way of the folder" % path
        return ""
    if stat.S_ISDIR(found.st_mode):
        return "%s: a folder is in the way of the %s" % (path, "link" if item["kind"] == "link" else "file")
    if item["kind"] == "link" and not stat.S_ISLNK(found.st_mode):
        return "%s: a file is in the way of the link. Move it away if it is not wanted" % path
    if item["kind"] != "link" and not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
        return "%s: what is there is neither a file nor a link" % path
    return ""


def absent_problem(path: str) -> str:
    """Why a path may not be removed; nothing where it may."""
    if len([part for part in path.split("/") if part]) < 2:
        return "%s: a folder of the system is not removed" % path
    if os.path.ismount(path):
        return "%s: it is a mount point. Unmount it first" % path
    return ""


def current(path: str) -> bytes | None:
    """A regular file's content; None where there is no regular file."""
    found = look(path)
    if found is None or not stat.S_ISREG(found.st_mode):
        return None
    with open(path, "rb") as handle:
        return handle.read()


def attributes(item: Item, check: bool, follow: bool = False) -> list[str]:
    """Which of owner, group and mode are not as they should be."""
    try:
        found = os.stat(item["path"]) if follow else os.lstat(item["path"])
    except FileNotFoundError:
        return []
    wrong = []
    owner, group = account(item, "owner", check), account(item, "group", check)
    if owner != -1 and owner != found.st_uid:
        wrong.append("owner")
    if group != -1 and group != found.st_gid:
        wrong.append("group")
    if item["kind"] != "link" and stat.S_IMODE(found.st_mode) != item["mode"]:
        wrong.append("mode")
    return wrong


def unwanted(item: Item) -> bool:
    """Whether an item asks for nothing, because there is nothing."""
    return (item["kind"] == "absent" or not item.get("create", True)) and look(item["path"]) is None


def needed(item: Item, check: bool) -> list[str]:
    """What has to be done for an item; nothing where it is as it should be."""
    path, found = item["path"], look(item["path"])
    if unwanted(item):
        return []
    if item["kind"] == "absent":
        return ["removed"]
    if found is None:
        return ["created"]
    if item["kind"] == "link":
        return (["target"] if os.readlink(path) != item["target"] else []) + attributes(item, check)
    if item["kind"] == "directory":
        return [] if item.get("keep") else attributes(item, check, follow=True)
    if stat.S_ISLNK(found.st_mode):
        return ["content"]
    present = current(path)
    right = bool(present and present.strip()) if item["kind"] == "secret" else present == item["data"]
    return attributes(item, check) if right else ["content", *attributes(item, check)]


def leftovers(items: list[Item]) -> Iterator[str]:
    """What patterns of folders fit and the set does not name."""
    named = {item["path"] for item in items if item["kind"] != "absent"}
    above = set()
    for path in named:
        while path != "/":
            path = os.path.dirname(path)
            above.add(path)
    for item in items:
        if item["kind"] != "directory" or not item.get("prune") or not os.path.isdir(item["path"]):
            continue
        for name in sorted(os.listdir(item["path"])):
            path = os.path.join(item["path"], name)
            if fnmatch.fnmatch(name, item["prune"]) and path not in named and path not in above:
                yield path


def remove(path: str) -> None:
    """A file, a link, or a folder with all that is in it; links are not followed."""
    found = look(path)
    if found is None:
        return
    if stat.S_ISDIR(found.st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def with_folders_above(items: list[Item]) -> list[Item]:
    """The set, and the folders above its folders that are not there yet: root's, for everybody to enter."""
    named = {item["path"] for item in items}
    more: dict[str, Item] = {}
    for item in items:
        path = os.path.dirname(item["path"])
        while item["kind"] == "directory" and not unwanted(item) and look(path) is None:
            if path not in named:
                more[path] = {"path": path, "kind": "directory", "owner": None, "group": None, "mode": 0o755}
            path = os.path.dirname(path)
    return [*more.values(), *items]


class Writer:
    """Does what a set of files needs. `run` runs a validator: arguments → (return code, output)."""

    def __init__(self, items: list[Item], check: bool, run: Callable[[list[str]], Any], diff: bool = False) -> None:
        self.items = items
        self.check = check
        self.run = run
        self.changes: list[dict[str, Any]] = []
        self.diff: list[dict[str, Any]] | None = [] if diff else None
        self.parts: list[str] = []

    def problems(self) -> list[str]:
        """All that is wrong with the set, before anything is changed."""
        found = []
        made = {item["path"] for item in self.items if item["kind"] == "directory"}
        for item in self.items:
            if unwanted(item):
                continue
            try:
                if item["kind"] == "absent":
                    text = absent_problem(item["path"])
                else:
                    text = way_problem(item["path"], made, self.check) or kind_problem(item)
                    for name in ("owner", "group"):
                        account(item, name, self.check)
                    if not text:
                        needed(item, self.check)
            except Refused as error:
                found.extend(error.problems)
                continue
            except OSError as error:
                text = "%s: it cannot be read: %s" % (item["path"], error.strerror)
            if text:
                found.append(text)
        return found

    def note(self, item: Item, what: list[str]) -> None:
        """Remembers a change, and for a diff what it was before."""
        self.changes.append({"path": item["path"], "what": what})
        if self.diff is None:
            return
        if item["kind"] == "file" and not item.get("hidden") and ({"created", "content"} & set(what)):
            before, after = current(item["path"]) or b"", item["data"]
            if max(len(before), len(after)) <= DIFF_LIMIT:
                with contextlib.suppress(UnicodeDecodeError):
                    self.diff.append(
                        {
                            "before_header": item["path"],
                            "after_header": item["path"],
                            "before": before.decode(),
                            "after": after.decode(),
                        }
                    )
                    return
        self.diff.append({"prepared": "%s: %s\n" % (item["path"], ", ".join(what))})

    def own(self, place: int, item: Item) -> None:
        """Gives an open file or folder its owner and mode."""
        os.fchown(place, account(item, "owner", False), account(item, "group", False))
        os.fchmod(place, item["mode"])

    def set_attributes(self, item: Item) -> None:
        """Owner and mode of what is there already."""
        if item["kind"] == "link":
            os.lchown(item["path"], account(item, "owner", False), account(item, "group", False))
            return
        flags = os.O_RDONLY | os.O_NONBLOCK | (0 if item["kind"] == "directory" else os.O_NOFOLLOW)
        place = os.open(item["path"], flags)
        try:
            self.own(place, item)
        finally:
            os.close(place)

    def part(self, path: str) -> str:
        """Name of the unfinished file beside a path."""
        name = PART_PREFIX + os.path.basename(path)[:100] + PART_SUFFIX
        found = os.path.join(os.path.dirname(path), name)
        self.parts.append(found)
        return found

    def prepare(self, item: Item) -> str:
        """Writes an item beside its place, whole and checked."""
        part = self.part(item["path"])
        if item["kind"] == "link":
            os.symlink(item["target"], part)
            os.lchown(part, account(item, "owner", False), account(item, "group", False))
            return part
        data: bytes = item.get("data", b"")
        if item["kind"] == "secret":
            data = (item["generate"].replace("{}", secrets.token_urlsafe(SECRET_BYTES)) + "\n").encode()
        place = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(place, "wb") as handle:
            handle.write(data)
            handle.flush()
            self.own(handle.fileno(), item)
            os.fsync(handle.fileno())
        if item.get("validate"):
            code, said = self.run([part if word == "%s" else word.replace("%s", part) for word in item["validate"]])
            if code != 0:
                said = said.replace(part, item["path"]).strip()
                raise Refused(["%s: %s refuses it: %s" % (item["path"], item["validate"][0], said)])
        return part

    def clear_parts(self) -> None:
        """Removes what an interrupted run left beside these files."""
        for folder in sorted({os.path.dirname(item["path"]) for item in self.items if item["kind"] != "absent"}):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for name in os.listdir(folder):
                    if name.startswith(PART_PREFIX) and name.endswith(PART_SUFFIX):
                        remove(os.path.join(folder, name))

    def make_directories(self, todo: list[Any]) -> None:
        """Folders: made for root alone, then given away."""
        for item, what in todo:
            with naming(item["path"]):
                if "created" in what:
                    os.mkdir(item["path"], 0o700)
                self.set_attributes(item)
            self.note(item, what)

    def write(self, todo: list[Any]) -> None:
        """Files and links: all are written beside their places before the first one takes its place."""
        ready = []
        for item, what in todo:
            with naming(item["path"]):
                part = self.prepare(item) if {"created", "content", "target"} & set(what) else ""
            ready.append((item, what, part))
        for item, what, part in ready:
            with naming(item["path"]):
                # Before it takes the old one's place, which a diff shows.
                self.note(item, what)
                if part:
                    os.rename(part, item["path"])
                    self.parts.remove(part)
                else:
                    self.set_attributes(item)

    def apply(self) -> None:
        """Changes what has to be changed, or in check mode only notes it."""
        self.items = with_folders_above(self.items)
        problems = self.problems()
        if problems:
            raise Refused(problems)
        if not self.check:
            self.clear_parts()
        # Folders first, those above before those in them.
        folders = sorted(
            (item for item in self.items if item["kind"] == "directory"), key=lambda item: str(item["path"])
        )
        ordered = folders + [item for item in self.items if item["kind"] != "directory"]
        todo = [(item, what) for item in ordered for what in [needed(item, self.check)] if what]
        rest = list(leftovers(self.items))
        if self.check:
            for item, what in todo:
                if item["kind"] != "absent":
                    self.note(item, what)
        else:
            self.make_directories([pair for pair in todo if pair[0]["kind"] == "directory"])
            self.write([pair for pair in todo if pair[0]["kind"] not in ("directory", "absent")])
        gone = [item["path"] for item, _what in todo if item["kind"] == "absent"]
        for path in gone + [path for path in rest if path not in gone]:
            with naming(path):
                if not self.check:
                    remove(path)
                self.note({"path": path, "kind": "absent"}, ["removed"])

    def derive(self, rules: list[dict[str, Any]]) -> None:
        """What programs make from these files, where it is older than they are."""
        made, problem = derived_files.derive(rules, [each["path"] for each in self.changes], self.check, self.run)
        for path in made:
            self.note({"path": path, "kind": "derived"}, ["derived"])
        if problem:
            raise Refused([problem])

    def finish(self, rules: Iterable[dict[str, Any]] = ()) -> None:
        """As `apply` and `derive`; where it fails nothing unfinished stays, and the error says how far it came."""
        try:
            self.apply()
            self.derive(list(rules))
        except Refused as error:
            error.changes = self.changes
            raise
        finally:
            for part in self.parts:
                with contextlib.suppress(OSError):
                    os.unlink(part)


@contextlib.contextmanager
def alone(path: str = LOCK) -> Iterator[None]:
    """One run at a time on a host. Who is not root has no such folder to wait in."""
    if os.geteuid() != 0:
        yield
        return
    place = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)
