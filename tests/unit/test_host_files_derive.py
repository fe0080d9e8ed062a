"""host_files: what programs make from files, and folders that are not a role's alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.modelhost.serving.plugins.action.host_files import FILE, checked
from ansible_collections.modelhost.serving.plugins.module_utils.host_files import Refused, Writer


class Place:
    """A folder of sources, and a program that joins them into one file."""

    def __init__(self, folder: Path) -> None:
        self.sources, self.made = folder / "sources", folder / "made"
        self.rule = {"path": str(self.made), "of": [str(self.sources)], "command": ["join"]}
        self.runs = 0
        self.code = 0
        self.touches = True

    def join(self, arguments: list[str]) -> tuple[int, str]:
        assert arguments == ["join"]
        self.runs += 1
        if self.code == 0 and self.touches:
            self.made.write_text("".join(path.read_text() for path in sorted(self.sources.iterdir())))
        return self.code, "no room" if self.code else ""

    def write(self, check: bool = False, **contents: str) -> list[dict[str, Any]]:
        """A run that wants these sources; returns what it changed."""
        items: list[dict[str, Any]] = [{"path": str(self.sources), "kind": "directory", "mode": 0o755, "prune": "*"}]
        for name, text in contents.items():
            items.append({"path": str(self.sources / name), "kind": "file", "mode": 0o644, "data": text.encode()})
        writer = Writer(items, check, self.join)
        writer.finish([self.rule])
        return writer.changes


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def derived(place: Place) -> dict[str, Any]:
    return {"path": str(place.made), "what": ["derived"]}


def test_what_is_made_follows_its_sources_and_a_second_run_makes_nothing(place: Place) -> None:
    assert derived(place) in place.write(one="1", two="2")
    assert place.made.read_text() == "12"
    assert place.write(one="1", two="2") == []
    assert derived(place) in place.write(one="1", two="3")
    assert place.made.read_text() == "13"
    # A source that went leaves nothing younger but its folder.
    assert derived(place) in place.write(one="1")
    assert place.made.read_text() == "1"
    assert place.runs == 3


def test_a_run_that_broke_off_before_the_command_is_made_up_for(place: Place) -> None:
    place.write(one="1")
    place.code = 1
    with pytest.raises(Refused, match="made: join failed: no room") as caught:
        place.write(one="2")
    # What was changed before is told.
    assert [change["path"] for change in caught.value.changes] == [str(place.sources / "one")]
    place.code = 0
    assert place.write(one="2") == [derived(place)]
    assert place.made.read_text() == "2"


def test_from_nothing_nothing_is_made(place: Place) -> None:
    writer = Writer([], False, place.join)
    writer.finish([place.rule])
    assert (writer.changes, place.runs) == ([], 0)


def test_a_command_that_finds_all_as_it_should_be_does_not_run_for_ever(place: Place) -> None:
    place.write(one="1")
    place.touches = False
    ahead = place.made.stat().st_mtime + 3600
    os.utime(place.sources, (ahead, ahead))
    assert place.write(one="1") == [derived(place)]
    assert place.write(one="1") == []
    assert place.runs == 2


def test_check_mode_says_it_and_runs_nothing(place: Place) -> None:
    place.sources.mkdir()
    place.made.write_text("")
    later = place.sources.stat().st_mtime + 1
    os.utime(place.made, (later, later))
    assert derived(place) in place.write(check=True, one="1")
    assert place.write(check=True) == []
    assert place.runs == 0


def test_a_kept_folder_keeps_its_mode_and_a_missing_one_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    item = {"path": str(folder), "kind": "directory", "mode": 0o755, "keep": True, "prune": "ours-*"}

    def run(**more: Any) -> list[str]:
        writer = Writer([{**item, **more}], False, lambda _arguments: (0, ""))
        writer.finish()
        return [change["path"] for change in writer.changes]

    assert run(create=False) == []
    assert run() == [str(folder)]
    folder.chmod(0o2775)
    (folder / "ours-old").touch()
    (folder / "theirs").touch()
    assert run() == [str(folder / "ours-old")]
    assert folder.stat().st_mode & 0o7777 == 0o2775
    assert (folder / "theirs").exists()


def test_only_folders_are_kept() -> None:
    entry = {name: option.get("default") for name, option in FILE.items()}
    with pytest.raises(AnsibleActionFail, match="keep is for folders"):
        checked({**entry, "path": "/etc/app.conf", "content": "", "keep": True})
