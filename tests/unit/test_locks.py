"""The locks: they install on every Python that they claim, and no two of their wheels own one file.

The parts that ask an index are few in the ordinary run; `./run test --all` reads the RECORDs of all locks on all
Pythons, and `./run lock` does so whenever it makes them.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("lock_files", ROOT / "tools/lock_files.py")
assert SPEC
assert SPEC.loader
lock_files = importlib.util.module_from_spec(SPEC)
sys.modules["lock_files"] = lock_files
SPEC.loader.exec_module(lock_files)

LOCKS = lock_files.locks()
EVERYTHING = bool(os.environ.get("MODELHOST_TEST_ALL"))


def wheel(name: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> Any:
    return lock_files.Wheel(name, "1.0", [Requirement(it) for it in requires], files)


def test_a_file_with_two_contents_is_found() -> None:
    found = [wheel("a", {"x.so": "1", "y": "1"}), wheel("b", {"x.so": "2", "y": "1"}), wheel("c", {"z": "3"})]
    assert lock_files.overlaps(found) == ["x.so: a 1.0 and b 1.0"]
    assert lock_files.overlaps(found, ["x.so"]) == []


def test_what_nothing_meets_is_found() -> None:
    needs = ("b>=2", "six ; python_version >= '3.12'", "gone ; sys_platform == 'win32'", "extra ; extra == 'more'")
    found = [wheel("a", {}, needs), wheel("b", {})]
    assert len(lock_files.unmet(found, "3.11")) == 1
    assert [line.split(" wants ")[1] for line in lock_files.unmet(found, "3.12")] == [
        "b>=2, and 1.0 is there",
        'six; python_version >= "3.12", and none is there',
    ]
    assert lock_files.unmet(found, "3.12", ["B", "six"]) == []


@pytest.mark.parametrize(
    ("path", "ends"),
    [
        ("a/b.py", "a/b.py"),
        ("a-1.data/purelib/b.py", "b.py"),
        ("a-1.data/scripts/run", "../../../bin/run"),
        ("a-1.data/data/share/x", "../../../share/x"),
    ],
)
def test_where_a_file_of_a_wheel_ends(path: str, ends: str) -> None:
    assert lock_files.installed(path) == ends


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server that gives parts of files, as an index does."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.headers["Range"])
        first, last = (int(it) for it in self.headers["Range"].removeprefix("bytes=").split("-"))
        content = Path(self.translate_path(self.path)).read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    Ranges.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Ranges.asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_large_wheel_is_read_in_parts(tmp_path: Path, served: tuple[str, list[str]]) -> None:
    url, asked = served
    name = "big-1.0-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("big/data", os.urandom(40 * lock_files.BLOCK))
        archive.writestr("big-1.0.dist-info/METADATA", "Name: Big\nVersion: 1.0\nRequires-Dist: six\n")
        archive.writestr("big-1.0.dist-info/entry_points.txt", "[console_scripts]\nRun-Big = big:main\n")
        archive.writestr("big-1.0.dist-info/RECORD", "big/data,sha256=abc,9\nbig-1.0.dist-info/RECORD,,\n")
    found = lock_files.wheel(f"{url}/{name}")
    assert (found.name, found.files) == ("big", {"big/data": "sha256=abc", "../../../bin/Run-Big": "big:main"})
    assert str(found.requires[0]) == "six"
    assert 0 < len(asked) <= 3
    assert lock_files.wheel(f"file://{tmp_path}/{name}").files == found.files


def test_every_lock_installs_on_every_python_that_it_claims() -> None:
    cases = [(name, python) for name in LOCKS for python in lock_files.PYTHONS]
    with ThreadPoolExecutor(4) as pool:
        told = pool.map(lambda case: lock_files.refused(lock_files.own_uv(), LOCKS[case[0]], case[1]), cases)
        assert {case: why for case, why in zip(cases, told, strict=True) if why} == {}


@pytest.mark.skipif(not EVERYTHING, reason="reads parts of some 700 wheels: ./run test --all")
@pytest.mark.parametrize("component", sorted(LOCKS))
def test_no_two_wheels_own_a_file_and_none_is_missing(component: str) -> None:
    lock, uv = LOCKS[component], lock_files.own_uv()
    assert {python: lock_files.problems(uv, lock, python) for python in lock_files.PYTHONS} == {
        python: [] for python in lock_files.PYTHONS
    }


def test_the_lock_that_raced_would_be_refused() -> None:
    """Two distributions with cuda/bindings in them: cuda-python was a bundle before it became empty."""
    old = (
        wheel("cuda-python", {"cuda/bindings/runtime.so": "1"}),
        wheel("cuda-bindings", {"cuda/bindings/runtime.so": "2"}),
    )
    assert lock_files.overlaps(old, LOCKS["cuda"].shared) != []
    text = LOCKS["cuda"].path.read_text(encoding="utf-8")
    assert "\ncuda-python==13." in text
