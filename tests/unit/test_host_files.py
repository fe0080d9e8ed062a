"""host_files on a host: a set of files is brought about whole, whatever is in the way and whenever it stops."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import host_files
from ansible_collections.modelhost.serving.plugins.module_utils.host_files import (
    PART_PREFIX,
    PART_SUFFIX,
    Refused,
    Writer,
)

ME = {"owner": None, "group": None}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def directory(path: Path, **more: Any) -> dict[str, Any]:
    return {**ME, "path": str(path), "kind": "directory", "mode": 0o755, **more}


def file(path: Path, text: str = "new\n", **more: Any) -> dict[str, Any]:
    return {**ME, "path": str(path), "kind": "file", "mode": 0o644, "data": text.encode(), "validate": [], **more}


def secret(path: Path, text: str = "KEY=sk-{}", **more: Any) -> dict[str, Any]:
    return {**ME, "path": str(path), "kind": "secret", "mode": 0o600, "generate": text, "hidden": True, **more}


def link(path: Path, target: str, **more: Any) -> dict[str, Any]:
    return {**ME, "path": str(path), "kind": "link", "target": target, **more}


def absent(path: Path) -> dict[str, Any]:
    return {**ME, "path": str(path), "kind": "absent"}


def run(arguments: list[str]) -> tuple[int, str]:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def write(*items: dict[str, Any], check: bool = False, diff: bool = False) -> Writer:
    writer = Writer(list(items), check, run, diff=diff)
    writer.finish()
    return writer


def changes(*items: dict[str, Any], **how: Any) -> dict[str, list[str]]:
    return {Path(item["path"]).name: item["what"] for item in write(*items, **how).changes}


def refusal(*items: dict[str, Any], **how: Any) -> list[str]:
    with pytest.raises(Refused) as caught:
        write(*items, **how)
    return caught.value.problems


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def state(root: Path) -> dict[str, Any]:
    """All that is below a folder: mode, and content or target."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        inside = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else None
        found[str(path.relative_to(root))] = (mode(path), inside)
    return found


# --- what it does ------------------------------------------------------------------------------------------------


def test_a_set_is_brought_about_once(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/thing").write_text("x")
    items = [
        directory(tmp_path / "etc"),
        directory(tmp_path / "etc/app", mode=0o750),
        file(tmp_path / "etc/app/conf", mode=0o640),
        secret(tmp_path / "etc/app/key"),
        link(tmp_path / "current", "etc/app"),
        absent(tmp_path / "old"),
        absent(tmp_path / "never"),
    ]
    done = changes(*items)
    assert done == {
        "etc": ["created"], "app": ["created"], "conf": ["created"], "key": ["created"], "current": ["created"],
        "old": ["removed"],
    }  # fmt: skip
    assert (tmp_path / "etc/app/conf").read_text() == "new\n"
    assert [mode(tmp_path / name) for name in ("etc/app", "etc/app/conf", "etc/app/key")] == [0o750, 0o640, 0o600]
    assert (tmp_path / "etc/app/key").read_text().startswith("KEY=sk-")
    assert len((tmp_path / "etc/app/key").read_text()) > len("KEY=sk-") + 40
    assert os.readlink(tmp_path / "current") == "etc/app"
    assert not (tmp_path / "old").exists()
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert changes(*items) == {}
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_only_what_differs_is_touched(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(file(one), file(two), link(tmp_path / "to", "one"))
    before = one.stat()
    two.chmod(0o600)
    assert changes(file(one), file(two), link(tmp_path / "to", "two")) == {"two": ["mode"], "to": ["target"]}
    assert (one.stat().st_ino, one.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    inode = two.stat().st_ino
    assert changes(file(two, "newer\n")) == {"two": ["content"]}
    assert two.stat().st_ino != inode, "another file took its place"


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write(secret(path))
    made = path.read_text()
    path.chmod(0o644)
    assert changes(secret(path)) == {"key": ["mode"]}
    assert path.read_text() == made
    path.write_text("  \n")
    assert changes(secret(path)) == {"key": ["content"]}
    assert path.read_text() not in (made, "  \n")


def test_a_pattern_removes_what_the_set_does_not_name(tmp_path: Path) -> None:
    for name in ("a.py", "b.py", "keep.txt", "sub/c.py", "gone.py/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "out.py").symlink_to("/etc")
    done = changes(directory(tmp_path, prune="*.py"), file(tmp_path / "a.py", "x"), file(tmp_path / "new.py"))
    assert {name for name, what in done.items() if what == ["removed"]} == {"b.py", "gone.py", "out.py"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.py", "keep.txt", "new.py", "sub"]
    assert Path("/etc").is_dir()


def test_folders_above_a_folder_are_made(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        done = changes(directory(tmp_path / "a/b/c", mode=0o700), file(tmp_path / "a/b/c/conf"))
    finally:
        os.umask(before)
    assert done == {"a": ["created"], "b": ["created"], "c": ["created"], "conf": ["created"]}
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/c")] == [0o755, 0o755, 0o700]
    assert changes(directory(tmp_path / "x/y", create=False)) == {}


def test_what_is_not_there_can_be_left_alone(tmp_path: Path) -> None:
    item = directory(tmp_path / "kept", mode=0o700, create=False)
    assert changes(item) == {}
    (tmp_path / "kept").mkdir(mode=0o755)
    assert changes(item) == {"kept": ["mode"]}


def test_check_mode_says_the_same_and_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    items = [
        directory(tmp_path / "new"),
        file(tmp_path / "new/conf", owner="nobody-yet", group="nobody-yet"),
        file(tmp_path / "elsewhere/conf"),
        secret(tmp_path / "key"),
        absent(tmp_path / "old"),
    ]
    before = state(tmp_path)
    done = changes(*items, check=True)
    assert done == {"new": ["created"], "conf": ["created"], "key": ["created"], "old": ["removed"]}
    assert state(tmp_path) == before


def test_a_diff_shows_texts_but_no_secret(tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("old\n")
    items = [
        file(tmp_path / "conf"),
        file(tmp_path / "token", "hush-hush\n", hidden=True),
        secret(tmp_path / "key", "hush-{}"),
        file(tmp_path / "binary", data=b"\xff\x00"),
        directory(tmp_path / "folder"),
    ]
    for check in (True, False):
        writer = write(*items, check=check, diff=True)
        (conf,) = [part for part in writer.diff or [] if part.get("after_header") == str(tmp_path / "conf")]
        assert (conf["before"], conf["after"]) == ("old\n", "new\n")
        assert "hush" not in repr(writer.diff)
        assert {"prepared": f"{tmp_path}/folder: created\n"} in (writer.diff or [])
    assert write(*items, diff=True).diff == []


@needs_root
def test_owners(tmp_path: Path) -> None:
    items = [file(tmp_path / "conf", owner="nobody", group="nogroup"), link(tmp_path / "to", "conf", owner="nobody")]
    write(*items)
    import grp
    import pwd

    for path in (tmp_path / "conf", tmp_path / "to"):
        assert path.lstat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert (tmp_path / "conf").stat().st_gid == grp.getgrnam("nogroup").gr_gid
    os.chown(tmp_path / "conf", 0, 0)
    assert changes(*items) == {"conf": ["owner", "group"]}
    assert changes(*items) == {}


# --- what it refuses, before anything is changed -----------------------------------------------------------------


def test_all_problems_are_told_at_once_and_nothing_is_changed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("x")
    (tmp_path / "nowhere").symlink_to("missing")
    before = state(tmp_path)
    said = refusal(
        file(tmp_path / "good"),
        file(tmp_path / "folder"),
        directory(tmp_path / "plain"),
        link(tmp_path / "plain", "good"),
        file(tmp_path / "missing/conf"),
        file(tmp_path / "plain/conf"),
        directory(tmp_path / "nowhere"),
        file(tmp_path / "owned", owner="nobody-at-all"),
        file(tmp_path / "grouped", group="no-such-group"),
    )
    assert said == [
        f"{tmp_path}/folder: a folder is in the way of the file",
        f"{tmp_path}/plain: a file is in the way of the folder",
        f"{tmp_path}/plain: a file is in the way of the link. Move it away if it is not wanted",
        f"{tmp_path}/missing/conf: the folder {tmp_path}/missing is not there",
        f"{tmp_path}/plain/conf: {tmp_path}/plain is no folder",
        f"{tmp_path}/nowhere: a link that leads to no folder is in the way",
        f"{tmp_path}/owned: there is no account 'nobody-at-all' on this host",
        f"{tmp_path}/grouped: there is no group 'no-such-group' on this host",
    ]
    assert state(tmp_path) == before


def test_links_of_root_are_followed_and_a_link_in_a_files_place_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "var").symlink_to("big")
    (tmp_path / "other").write_text("theirs\n")
    (tmp_path / "big/conf").symlink_to("../other")
    assert changes(directory(tmp_path / "var", mode=0o700), file(tmp_path / "var/conf")) == {
        "var": ["mode"], "conf": ["content"],
    }  # fmt: skip
    assert (tmp_path / "var").is_symlink()
    assert mode(tmp_path / "big") == 0o700
    assert not (tmp_path / "big/conf").is_symlink()
    assert (tmp_path / "other").read_text() == "theirs\n"


@needs_root
@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_another_account_could_lead_elsewhere_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "target").mkdir()
    place = tmp_path / "place"
    if kind == "link":
        place.symlink_to("target")
        os.lchown(place, 65534, 65534)
    else:
        place.mkdir()
        os.chown(place, 65534, 65534)
    (said,) = refusal(file(place / "conf"))
    assert f"the {kind} {place} belongs to account number 65534" in said
    assert list((tmp_path / "target").iterdir()) == []


def test_a_validator_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("old\n")
    check = ["grep", "-q", "right", "%s"]
    (said,) = refusal(file(tmp_path / "conf", "wrong\n", validate=check), file(tmp_path / "next"))
    assert said.startswith(f"{tmp_path}/conf: grep refuses it")
    assert state(tmp_path) == {"conf": (0o644, "old\n")}
    assert changes(file(tmp_path / "conf", "right\n", validate=check)) == {"conf": ["content"]}


def test_folders_of_the_system_are_not_removed() -> None:
    assert refusal(absent(Path("/etc"))) == ["/etc: a folder of the system is not removed"]
    mounted = next(
        line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[1].count("/") > 1
    )
    assert refusal(absent(Path(mounted))) == [f"{mounted}: it is a mount point. Unmount it first"]


# --- what goes wrong on the way ----------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"this machine mounts nothing: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@needs_root
def test_a_full_disk_changes_no_file(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=64k") as small:
        (small / "first").write_text("old\n")
        (said,) = refusal(file(small / "first"), file(small / "second", "x" * 100_000))
        assert said == f"{small}/second: No space left on device. Make room on its file system"
        assert state(small) == {"first": (mode(small / "first"), "old\n")}
        assert changes(file(small / "first"), file(small / "second", "x")) == {
            "first": ["content"],
            "second": ["created"],
        }


@needs_root
def test_a_read_only_file_system(tmp_path: Path) -> None:
    with mounted(tmp_path / "frozen", "size=64k") as frozen:
        (frozen / "right").write_text("new\n")
        (frozen / "right").chmod(0o644)
        subprocess.run(["mount", "-o", "remount,ro", str(frozen)], check=True)
        assert changes(file(frozen / "right")) == {}, "nothing has to be written"
        (said,) = refusal(file(frozen / "right", "newer\n"))
        assert said == f"{frozen}/right: Read-only file system"


#: What a run does to the disk, each a moment at which it may be killed.
CALLS = ("mkdir", "open", "fchown", "fchmod", "fsync", "symlink", "lchown", "rename", "unlink", "rmdir")


def killed_at(moment: int, items: list[dict[str, Any]]) -> bool:
    """Runs a set in a process of its own that ends without a word before its n-th call; whether it came so far."""
    child = os.fork()
    if child == 0:
        seen = 0

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def one(*arguments: Any, **named: Any) -> Any:
                nonlocal seen
                if seen == moment:
                    os._exit(9)
                seen += 1
                return call(*arguments, **named)

            return one

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            Writer(items, False, run).finish()
        finally:
            os._exit(0)
    _pid, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 9


def test_a_run_that_is_killed_at_any_moment_is_finished_by_the_next(tmp_path: Path) -> None:
    def items(root: Path) -> list[dict[str, Any]]:
        return [
            directory(root / "etc", prune="*.conf"),
            directory(root / "etc/deep", mode=0o750),
            file(root / "etc/a.conf", mode=0o640),
            file(root / "etc/deep/b.conf"),
            secret(root / "etc/key"),
            link(root / "current", "new"),
            absent(root / "old"),
        ]

    moment, came = 0, True
    while came:
        root = tmp_path / str(moment)
        (root / "etc").mkdir(parents=True)
        (root / "old").mkdir()
        (root / "old/thing").write_text("x")
        (root / "etc/a.conf").write_text("old\n")
        (root / "etc/stale.conf").write_text("old\n")
        (root / "current").symlink_to("old")
        came = killed_at(moment, items(root))
        assert (root / "etc/a.conf").read_text() in ("old\n", "new\n"), "whole, or the old one"
        assert os.readlink(root / "current") in ("old", "new")
        deep = root / "etc/deep/b.conf"
        assert not deep.exists() or (deep.read_text(), mode(deep)) == ("new\n", 0o644)
        key = root / "etc/key"
        made = key.read_text() if key.exists() else None
        assert made is None or (mode(key) == 0o600 and made.startswith("KEY=sk-"))
        write(*items(root))
        assert changes(*items(root)) == {}
        assert made in (None, key.read_text()), "a secret that was there stays"
        left = [path.name for path in root.rglob("*")]
        assert sorted(left) == ["a.conf", "b.conf", "current", "deep", "etc", "key"], moment
        moment += 1
    assert moment > 20, "it was killed before each call"
    assert not [name for name in left if name.startswith(PART_PREFIX) or name.endswith(PART_SUFFIX)]


def test_an_unfinished_file_is_nobody_elses_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = os.fsync

    def look(place: int) -> None:
        (part,) = [path for path in tmp_path.iterdir() if path.name.startswith(PART_PREFIX)]
        seen.append(mode(part))
        real(place)

    monkeypatch.setattr(host_files.os, "fsync", look)
    before = os.umask(0)
    try:
        write(secret(tmp_path / "key"))
        write(file(tmp_path / "token", "x", mode=0o600, hidden=True))
    finally:
        os.umask(before)
    assert seen == [0o600, 0o600]


@needs_root
def test_two_at_once_wait_for_each_other(tmp_path: Path) -> None:
    lock, ready, go = tmp_path / "lock", tmp_path / "ready", tmp_path / "go"
    os.mkfifo(ready)
    os.mkfifo(go)
    child = os.fork()
    if child == 0:
        with host_files.alone(str(lock)):
            ready.write_text("held")
            go.read_text()
            (tmp_path / "order").write_text("child\n")
        os._exit(0)
    ready.read_text()
    # The child holds it; whoever wants it now waits until the child is told to go on.
    other = os.fork()
    if other == 0:
        with host_files.alone(str(lock)), (tmp_path / "order").open("a") as order:
            order.write("other\n")
        os._exit(0)
    go.write_text("on")
    for pid in (child, other):
        assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "order").read_text() == "child\nother\n"
    assert mode(lock) == 0o600
