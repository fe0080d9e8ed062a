"""claude_code_settings: what the user has stays; what we put can be taken back."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import pathlib
import pwd
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _load() -> Any:
    path = ROOT / "plugins" / "modules" / "claude_code_settings.py"
    spec = importlib.util.spec_from_file_location("claude_code_settings", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ccs = _load()
WANTED = {
    "apiKeyHelper": "cat /key",
    "env": {"ANTHROPIC_BASE_URL": "http://gw", "X": "1"},
    "permissions": {"deny": ["WebSearch"], "defaultMode": "default"},
}


class Home:
    """A home folder with the module run against it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.file = self.home / ".claude" / "settings.json"
        self.record = folder / "record" / "me.json"

    def run(self, settings: Any = None, state: str = "present", check: bool = False) -> tuple[bool, list]:
        class Module:
            check_mode = check
            params = {
                "user": getpass.getuser(),
                "path": ".claude/settings.json",
                "settings": settings or {},
                "record": str(self.record),
                "state": state,
                "mode": "0600",
            }

        entry = pwd.getpwuid(os.getuid())
        account = pwd.struct_passwd((*entry[:5], str(self.home), entry[6]))
        changed, _, keys = ccs.apply(Module, account)
        return changed, keys

    def put(self, data: Any) -> None:
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(data if isinstance(data, str) else json.dumps(data))

    def get(self) -> Any:
        return json.loads(self.file.read_text())


@pytest.fixture
def home(tmp_path: pathlib.Path) -> Home:
    return Home(tmp_path)


def test_writes_a_new_file_and_then_nothing(home: Home) -> None:
    changed, keys = home.run(WANTED)
    assert changed
    assert "env.ANTHROPIC_BASE_URL" in keys
    assert home.get() == WANTED
    assert home.file.stat().st_mode & 0o7777 == 0o600
    before = home.file.stat()
    assert home.run(WANTED) == (False, [])
    assert home.file.stat().st_ino == before.st_ino


def test_keeps_what_the_user_has(home: Home) -> None:
    mine = {"theme": "dark", "env": {"EDITOR": "vi"}, "permissions": {"deny": ["Bash(rm *)"], "allow": ["Read"]}}
    home.put(mine)
    home.run(WANTED)
    got = home.get()
    assert got["theme"] == "dark"
    assert got["env"] == {"EDITOR": "vi", "ANTHROPIC_BASE_URL": "http://gw", "X": "1"}
    assert got["permissions"] == {"deny": ["Bash(rm *)", "WebSearch"], "allow": ["Read"], "defaultMode": "default"}
    assert next(iter(got)) == "theme"
    home.run(state="absent")
    assert home.get() == mine
    assert not home.record.exists()


def test_absent_gives_back_what_it_replaced(home: Home) -> None:
    home.put({"env": {"ANTHROPIC_BASE_URL": "http://mine"}})
    home.run(WANTED)
    home.run({**WANTED, "env": {"ANTHROPIC_BASE_URL": "http://gw2"}})
    assert home.get()["env"] == {"ANTHROPIC_BASE_URL": "http://gw2"}
    home.run(state="absent")
    assert home.get() == {"env": {"ANTHROPIC_BASE_URL": "http://mine"}}


def test_absent_removes_a_file_that_it_made(home: Home) -> None:
    home.run(WANTED)
    assert home.run(state="absent")[0]
    assert not home.file.exists()
    assert home.run(state="absent") == (False, [])


def test_absent_leaves_what_the_user_changed_since(home: Home) -> None:
    home.run(WANTED)
    data = home.get()
    data["env"]["X"] = "changed"
    data["mine"] = 1
    home.put(data)
    home.run(state="absent")
    assert home.get() == {"env": {"X": "changed"}, "mine": 1}


def test_absent_leaves_what_the_user_had_already(home: Home) -> None:
    home.put({"permissions": {"deny": ["WebSearch"]}, "env": {"X": "1"}})
    home.run(WANTED)
    home.run(state="absent")
    assert home.get() == {"permissions": {"deny": ["WebSearch"]}, "env": {"X": "1"}}


def test_what_is_no_longer_asked_for_goes(home: Home) -> None:
    home.put({"permissions": {"deny": ["Mine"]}})
    home.run({"permissions": {"deny": ["A", "B"]}, "env": {"OLD": "1"}})
    home.run({"permissions": {"deny": ["B"]}})
    assert home.get() == {"permissions": {"deny": ["Mine", "B"]}}


def test_true_is_not_one(home: Home) -> None:
    home.put({"hasCompletedOnboarding": 1})
    assert home.run({"hasCompletedOnboarding": True})[0]
    assert home.get() == {"hasCompletedOnboarding": True}


@pytest.mark.parametrize("text", ["{not json", '["a list"]', "null", '{"a": 1,}'])
def test_a_broken_file_is_left_and_copied(home: Home, text: str) -> None:
    home.put(text)
    with pytest.raises(ccs.Refused, match="left as it is"):
        home.run(WANTED)
    assert home.file.read_text() == text
    assert pathlib.Path(str(home.file) + ".unreadable").read_text() == text


def test_a_broken_file_is_not_even_copied_in_check_mode(home: Home) -> None:
    home.put("{")
    with pytest.raises(ccs.Refused):
        home.run(WANTED, check=True)
    assert sorted(p.name for p in home.file.parent.iterdir()) == ["settings.json"]


def test_bytes_that_are_no_text(home: Home) -> None:
    home.put("")
    home.file.write_bytes(b"\xff\xfe{")
    with pytest.raises(ccs.Refused, match="UTF-8"):
        home.run(WANTED)


def test_an_empty_file_is_filled(home: Home) -> None:
    home.put("")
    home.run(WANTED)
    assert home.get() == WANTED


@pytest.mark.parametrize("mine", [{"env": ["a"]}, {"permissions": {"deny": "WebSearch"}}, {"env": None}])
def test_another_shape_is_refused_by_name(home: Home, mine: dict) -> None:
    home.put(mine)
    with pytest.raises(ccs.Refused, match=r"env|permissions\.deny"):
        home.run(WANTED)
    assert home.get() == mine
    assert not home.record.exists()


def test_check_mode_changes_nothing(home: Home) -> None:
    assert home.run(WANTED, check=True)[0]
    assert not home.file.exists()
    assert not home.record.exists()
    home.run(WANTED)
    assert home.run(state="absent", check=True)[0]
    assert home.get() == WANTED


def test_a_link_stays_a_link(home: Home) -> None:
    target = home.home / "dotfiles.json"
    target.write_text("{}")
    home.file.parent.mkdir()
    home.file.symlink_to(target)
    home.run(WANTED)
    assert home.file.is_symlink()
    assert json.loads(target.read_text()) == WANTED


def test_the_mode_is_mended(home: Home) -> None:
    home.run(WANTED)
    home.file.chmod(0o644)
    assert home.run(WANTED)[0]
    assert home.file.stat().st_mode & 0o7777 == 0o600


def test_no_value_of_ours_stands_in_the_record(home: Home) -> None:
    home.run({"env": {"ANTHROPIC_AUTH_TOKEN": "sk-secret-secret"}})
    assert "sk-secret" not in home.record.read_text()
    assert home.record.stat().st_mode & 0o7777 == 0o600


def test_chinese_stays_readable(home: Home) -> None:
    home.put('{"名": "值"}')
    home.run(WANTED)
    assert '"名": "值"' in home.file.read_text(encoding="utf-8")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop rights")
def test_root_does_not_follow_a_link_out_of_the_home(home: Home, tmp_path: pathlib.Path) -> None:
    nobody = pwd.getpwnam("nobody")
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    secret.chmod(0o600)
    tmp_path.chmod(0o755)
    with pytest.raises(OSError, match="Permission denied"), ccs.rights_of(nobody):
        ccs.read(str(secret), False)
    assert os.geteuid() == 0
