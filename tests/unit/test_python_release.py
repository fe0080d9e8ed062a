"""Releases of Python programs, made by the real uv from small wheels of the test's own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import release_files

ROOT = Path(__file__).resolve().parents[2]
UV = ROOT / ".cache/uv/bin/uv"
SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def record(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return f"{name},sha256={digest},{len(content)}\n"


class World:
    """A host's folder below which releases lie, wheels that uv finds, and uv itself."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.prefix, self.wheels = folder, folder / "opt", folder / "wheels"
        (self.prefix / "bin").mkdir(parents=True)
        self.wheels.mkdir()
        self.program("with-mirrors", 'exec "$@"')
        (self.prefix / "bin/uv").symlink_to(UV)
        self.lock = ""

    def program(self, name: str, text: str) -> None:
        path = self.prefix / "bin" / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def wheel(self, name: str, files: dict[str, bytes], said: dict[str, bytes] | None = None) -> None:
        """One wheel, also in the lock. said: what its RECORD is made from where that is not what it holds."""
        info = f"{name}-1.0.dist-info"
        files = {
            **files,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        text = "".join(record(path, (said or {}).get(path, content)) for path, content in files.items())
        path = self.wheels / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for inner, content in {**files, f"{info}/RECORD": f"{text}{info}/RECORD,,\n".encode()}.items():
                archive.writestr(inner, content)
        self.lock += f"{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"

    def run(self, dry: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {
            "component": "tool", "version": "1", "lock": self.lock, "python": sys.executable,
            "prefix": str(self.prefix), "_ansible_check_mode": dry, "_ansible_remote_tmp": str(self.folder), **options,
        }  # fmt: skip
        link_mode = os.environ.get("UV_LINK_MODE", "copy")
        environment = {
            "UV_CACHE_DIR": str(self.folder / "cache"), "UV_FIND_LINKS": str(self.wheels), "UV_NO_INDEX": "1",
            "UV_LINK_MODE": link_mode, "PYTHONPATH": str(ROOT / ".collections"),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, str(ROOT / "plugins/modules/python_release.py")],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), capture_output=True, text=True, check=False,
            env={**os.environ, **environment},
        )  # fmt: skip
        assert done.stdout, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def left(self) -> list[str]:
        """All that lies beside releases and in their place."""
        folder = self.prefix / "tool/releases"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.wheel(
        "one",
        {"one/__init__.py": b"VALUE = 1\n", "one/data.bin": bytes(4096), "one-1.0.data/scripts/one": b"#!python\n"},
    )
    made.wheel("two", {"two/__init__.py": b"VALUE = 2\n"})
    return made


def value(release: str, name: str) -> str:
    """What a program in the release sees."""
    command = [f"{release}/bin/python", "-c", f"import {name}; print({name}.VALUE)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_release_is_made_once(world: World) -> None:
    assert world.run(dry=True)["changed"]
    assert world.left() == []
    first = world.run()
    assert first["changed"], first
    assert (value(first["path"], "one"), value(first["path"], "two")) == ("1", "2")
    assert first["python"] == os.path.realpath(sys.executable)
    mark = Path(first["path"], ".complete")
    moment = mark.stat().st_mtime_ns
    second = world.run()
    assert (second["changed"], second["path"], second["damage"]) == (False, first["path"], "")
    assert not world.run(check="contents")["changed"]
    assert mark.stat().st_mtime_ns == moment
    assert world.left() == [first["name"]]


def test_programs_run_from_where_the_release_ends(world: World) -> None:
    world.wheel(
        "three",
        {
            "three.py": b"def main():\n    print('three runs')\n",
            "three-1.0.dist-info/entry_points.txt": b"[console_scripts]\nthree = three:main\n",
        },
    )
    done = world.run()
    link = world.folder / "current"
    link.symlink_to(done["path"])
    assert subprocess.run([link / "bin/three"], capture_output=True, text=True, check=True).stdout == "three runs\n"


@pytest.mark.parametrize(
    ("link_mode", "spoil", "check", "told"),
    [
        ("copy", lambda path: path.write_bytes(b"\1" + bytes(4095)), "contents", "one/data.bin has another content"),
        ("copy", lambda path: path.write_bytes(bytes(100)), "sizes", "one/data.bin has 100 bytes, not 4096"),
        ("copy", lambda path: path.unlink(), "sizes", "one/data.bin is missing"),
        (
            "copy",
            lambda path: path.parents[1].joinpath("two-1.0.dist-info/RECORD").unlink(),
            "sizes",
            "two-1.0.dist-info/RECORD",
        ),
        ("hardlink", lambda path: os.truncate(path, 0), "sizes", "one/data.bin has 0 bytes"),
    ],
    ids=["flipped byte", "truncated", "missing", "lost record", "emptied in place"],
)
def test_a_damaged_release_is_made_anew(
    world: World, monkeypatch: pytest.MonkeyPatch, link_mode: str, spoil: Any, check: str, told: str
) -> None:
    # With hard links the spoilt file is the one in uv's cache too, and comes again with the next installation.
    monkeypatch.setenv("UV_LINK_MODE", link_mode)
    first = world.run()
    spoil(Path(first["path"], SITE, "one/data.bin"))
    before = Path(first["path"], ".complete").stat().st_mtime_ns
    assert world.run(dry=True, check=check)["changed"]
    again = world.run(check=check)
    assert again["changed"]
    assert told in again["damage"]
    assert again["path"] == first["path"]
    assert Path(first["path"], SITE, "one/data.bin").read_bytes() == bytes(4096)
    assert Path(first["path"], ".complete").stat().st_mtime_ns > before
    assert world.left() == [first["name"]]
    assert not world.run(check="contents")["changed"]


def test_a_file_with_two_contents_ends_the_installation(world: World) -> None:
    world.wheel("three", {"one/__init__.py": b"VALUE = 3\n", "three.py": b""})
    done = world.run()
    assert done["failed"]
    assert "one/__init__.py (one-1.0.dist-info and three-1.0.dist-info)" in done["msg"]
    assert world.left() == []
    assert not world.run(shared=["one/__init__.py"]).get("failed")
    assert not world.run(shared=["one/__init__.py"], check="contents")["changed"]


def test_the_same_file_of_two_is_no_conflict(world: World) -> None:
    world.wheel("three", {"one/__init__.py": b"VALUE = 1\n"})
    assert not world.run().get("failed")


def test_a_wheel_with_a_wrong_record_is_taken_as_it_is(world: World) -> None:
    # Its own hash is the lock's; wheels whose libraries were stripped after the RECORD was written are on PyPI.
    world.wheel("three", {"three.py": b"VALUE = 3\n"}, said={"three.py": b"VALUE = 'another'\n"})
    first = world.run()
    assert value(first["path"], "three") == "3"
    assert not world.run(check="contents")["changed"]
    Path(first["path"], SITE, "three.py").write_bytes(b"VALUE = 4\n")
    assert not world.run()["changed"]
    again = world.run(check="contents")
    assert "three.py has another content" in again["damage"]
    assert value(first["path"], "three") == "3"


def test_bytecode_of_a_wheel_is_no_concern(world: World) -> None:
    tag = sys.implementation.cache_tag
    world.wheel("three", {"three.py": b"VALUE = 3\n", f"__pycache__/three.{tag}.pyc": b"made elsewhere"})
    first = world.run()
    assert value(first["path"], "three") == "3"
    assert not world.run(check="contents")["changed"]


def test_an_interrupted_installation_leaves_no_release(world: World) -> None:
    world.program("with-mirrors", '"$@" || exit\ncase $* in *"pip install"*) kill -9 $PPID;; esac')
    with pytest.raises(AssertionError):
        world.run()
    (fresh,) = world.left()
    assert fresh.endswith(".new")
    world.program("with-mirrors", 'exec "$@"')
    done = world.run()
    assert done["changed"]
    assert world.left() == [done["name"]]


def test_a_failed_repair_leaves_the_release_that_is_there(world: World) -> None:
    first = world.run()
    Path(first["path"], SITE, "one/data.bin").unlink()
    world.program("with-mirrors", 'case $* in *"pip install"*) echo no network >&2; exit 1;; esac\nexec "$@"')
    done = world.run()
    assert done["failed"]
    assert "no network" in done["msg"]
    assert world.left() == [first["name"]]
    assert value(first["path"], "two") == "2"
    world.program("with-mirrors", 'exec "$@"')
    assert world.run()["changed"]
    assert Path(first["path"], SITE, "one/data.bin").exists()


def test_what_is_left_out_and_what_is_only_recorded_is_no_damage(world: World) -> None:
    options: dict[str, Any] = {"excludes": ["two"], "metadata_only": {"program": "1.0+cpu"}}
    first = world.run(**options)
    assert not Path(first["path"], SITE, "two").exists()
    assert Path(first["path"], SITE, "program-1.0+cpu.dist-info/METADATA").exists()
    assert not world.run(**options, check="contents")["changed"]


def test_links_are_part_of_a_release(world: World) -> None:
    links = {"kit/lib/one.bin": "{site}/one/data.bin", "kit/driver.so": "/usr/lib/driver.so.1"}
    first = world.run(links=links)
    assert Path(first["path"], "kit/lib/one.bin").resolve() == Path(first["path"], SITE, "one/data.bin").resolve()
    assert os.readlink(Path(first["path"], "kit/driver.so")) == "/usr/lib/driver.so.1"
    assert not world.run(links=links)["changed"]
    Path(first["path"], "kit/lib/one.bin").unlink()
    assert "kit/lib/one.bin is no link" in world.run(links=links)["damage"]
    assert world.run()["path"] != first["path"]


def test_a_release_of_an_older_version_is_looked_at_once_and_kept(world: World) -> None:
    mark = Path(world.run()["path"], ".complete")
    mark.write_text("")
    os.utime(mark, (100, 100))
    assert not world.run()["changed"]
    assert json.loads(mark.read_text())["records"]
    # No service restarts because of it.
    assert mark.stat().st_mtime == 100
    mark.write_text("")
    Path(mark.parent, SITE, "two/__init__.py").write_bytes(b"VALUE = 9\n")
    assert "two/__init__.py has another content" in world.run()["damage"]


def test_a_message_names_a_few_of_many() -> None:
    found = {f"file{number}": "is missing" for number in range(8)}
    assert release_files.told(found).startswith("8 file(s)")
    assert release_files.told(found).endswith("file4 is missing and 3 more")
