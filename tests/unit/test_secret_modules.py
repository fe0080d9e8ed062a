"""Modules that write secrets: what is in the files, and that nobody else reads them at any instant."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.modules import engine_key

ROOT = Path(__file__).resolve().parents[2]
#: Runs a module and writes down the mode that a file has after every call that may make it or change it.
WATCHED = """
import os, runpy, stat, sys
module, target, log = sys.argv[1:4]
del sys.argv[1:]
os.umask(0o022)

def watch(name):
    real = getattr(os, name)
    def watched(*arguments, **more):
        result = real(*arguments, **more)
        if os.path.exists(target):
            with open(log, "a") as handle:
                handle.write("%o\\n" % stat.S_IMODE(os.stat(target).st_mode))
        return result
    setattr(os, name, watched)

for name in ("open", "rename", "replace", "link", "chmod", "lchmod", "chown"):
    if hasattr(os, name):
        watch(name)
runpy.run_path(module, run_name="__main__")
"""


def run(name: str, watched: tuple[Path, Path] | None = None, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """A module run as Ansible does it; watched: a file, and where its modes are written down."""
    arguments["_ansible_check_mode"] = check
    program = str(ROOT / "plugins/modules" / f"{name}.py")
    command = ["-c", WATCHED, program, *map(str, watched)] if watched else [program]
    done = subprocess.run(
        [sys.executable, *command],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), capture_output=True, text=True, check=False,
        env={**os.environ, "_ANSIBLE_TEST": "1", "PYTHONPATH": str(ROOT / ".collections")},
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout or "{}")
    result["_text"] = done.stdout + done.stderr
    return result


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_text().strip().encode()).hexdigest()


@pytest.mark.parametrize("final", ["0600", "0640"])
def test_a_new_secret_is_nobody_elses_from_its_first_instant(tmp_path: Path, final: str) -> None:
    path, log = tmp_path / "secret", tmp_path / "log"

    def written(**more: Any) -> bool:
        item = {"path": str(path), "mode": int(final, 8), "hidden": True, "validate": [], **more}
        payload = base64.b64encode(zlib.compress(json.dumps([item]).encode())).decode()
        return bool(run("host_files_apply", (path, log), payload=payload)["changed"])

    assert written(kind="secret", generate="sk-{}")
    assert set(log.read_text().split()) == {final[1:]}
    assert mode(path) == int(final, 8)
    # And not in between, when it is written again.
    log.unlink()
    assert written(kind="file", data=base64.b64encode(b"sk-another").decode())
    assert path.read_text() == "sk-another"
    assert set(log.read_text().split()) == {final[1:]}


def test_so_are_hashes_and_engines_keys(tmp_path: Path) -> None:
    keys, log = tmp_path / "keys", tmp_path / "log"
    keys.mkdir()
    (keys / "alice").write_text("sk-alice\n")
    path = tmp_path / "hashes.json"
    users = [{"name": "alice", "models": []}]
    common: dict[str, Any] = {"keys_dir": str(keys), "models": [], "users": users, "mode": "0640"}
    assert run("litellm_key_hashes", (path, log), path=str(path), **common)["changed"]
    assert set(log.read_text().split()) <= {"600", "640"}
    log.unlink()
    key = tmp_path / "coder.key"
    files: dict[str, Any] = {"path": str(key), "accepted": str(tmp_path / "accepted")}
    assert run("engine_key", (key, log), engines=["coder"], **files)["changed"]
    assert set(log.read_text().split()) == {"600"}


class Engine:
    """The two files of an engine's key."""

    def __init__(self, folder: Path) -> None:
        self.key, self.accepted = folder / "coder.key", folder / "coder.keys"
        self.paths: dict[str, Any] = {"path": str(folder / "{}.key"), "accepted": str(folder / "{}.keys")}

    def run(self, state: str, check: bool = False) -> bool:
        done = run("engine_key", check=check, engines=["coder"], state=state, **self.paths)
        assert "accepted" in done, done
        if self.key.exists():
            assert self.key.read_text().strip() not in done["_text"]
        assert "sk-" not in done["_text"]
        return bool(done["changed"])

    @property
    def hashes(self) -> list[str]:
        return self.accepted.read_text().split()


def test_a_key_is_made_once_and_opens_the_engine(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    assert engine.run("present", check=True)
    assert not engine.key.exists()
    assert engine.run("present")
    assert engine.hashes == [digest(engine.key)]
    assert len(engine.key.read_text()) > 40
    assert (mode(engine.key), mode(engine.accepted)) == (0o600, 0o600)
    assert not engine.run("present")
    assert not engine.run("settled")


def test_a_key_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    engine.key.write_text("sk-" + "a" * 40 + "\n")
    before = digest(engine.key)
    assert engine.run("present")
    assert engine.hashes == [before] == [digest(engine.key)]


def test_a_rotation_leaves_no_moment_without_a_good_key(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    engine.run("present")
    old = digest(engine.key)
    assert engine.run("rotated", check=True)
    assert (digest(engine.key), engine.hashes) == (old, [old])
    assert engine.run("rotated")
    new = digest(engine.key)
    assert new != old
    assert engine.hashes == [old, new]
    # The ordinary flow in between takes neither away, and broken off it is begun again.
    assert not engine.run("present")
    assert engine.run("rotated")
    assert engine.hashes == [old, new, digest(engine.key)]
    assert engine.run("settled")
    assert engine.hashes == [digest(engine.key)]
    assert not engine.run("settled")


def test_each_engine_has_a_key_of_its_own(tmp_path: Path) -> None:
    paths: dict[str, Any] = {"path": str(tmp_path / "{}.key"), "accepted": str(tmp_path / "{}.keys")}
    one = run("engine_key", engines=["one"], **paths)
    assert (one["changed"], one["accepted"]) == (True, {"one": 1})
    kept = (tmp_path / "one.key").read_text()
    both = run("engine_key", engines=["one", "two"], **paths)
    assert (both["changed"], both["accepted"]) == (True, {"one": 1, "two": 1})
    assert (tmp_path / "one.key").read_text() == kept != (tmp_path / "two.key").read_text()
    assert run("engine_key", engines=["one", "two"], state="rotated", **paths)["accepted"] == {"one": 2, "two": 2}
    assert not run("engine_key", engines=[], **paths)["changed"]


def test_hashes_come_before_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that reads the new key at once must not be refused."""
    key, hashes = engine_key.wanted("rotated", "sk-old", [])
    assert hashes == [engine_key.digest("sk-old"), engine_key.digest(key)]
    written: list[str] = []
    monkeypatch.setattr(engine_key.secret_text, "write", lambda _module, path, _text: written.append(Path(path).name))

    class Module:
        check_mode = False

        def __init__(self, **_more: Any) -> None:
            self.params = {"engines": ["coder"], "path": str(tmp_path / "key"), "accepted": str(tmp_path / "hashes"),
                           "state": "rotated", "group": None}  # fmt: skip

        def set_fs_attributes_if_different(self, _arguments: Any, changed: bool) -> bool:
            return changed

        def exit_json(self, **_result: Any) -> None:
            return None

    monkeypatch.setattr(engine_key, "AnsibleModule", Module)
    engine_key.main()
    assert written == ["hashes", "key"]
