"""The gateway's counters as verify shows them, whatever the gateway's account has left there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import gateway_usage

ALICE = {
    "requests": 1234,
    "refused": 3,
    "prompt_tokens": 9876543,
    "completion_tokens": 21,
    "last": "2026-11-28T12:00:00Z",
}


def written(tmp_path: Path, content: Any) -> str:
    path = tmp_path / "usage.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_a_line_for_each_user(tmp_path: Path) -> None:
    users = {"bob": {**ALICE, "requests": 1}, "alice": ALICE}
    times = {"since": "2026-11-01T00:00:00Z", "written": "2026-11-28T12:00:05Z"}
    assert gateway_usage.lines(written(tmp_path, {"users": users, **times})) == [
        "Users since 2026-11-01T00:00:00Z, as written down at 2026-11-28T12:00:05Z:",
        "  alice: 1,234 requests, 3 refused by a limit; tokens: 9,876,543 of prompts, 21 of answers;"
        " last at 2026-11-28T12:00:00Z",
        "  bob: 1 requests, 3 refused by a limit; tokens: 9,876,543 of prompts, 21 of answers;"
        " last at 2026-11-28T12:00:00Z",
    ]


def test_where_nothing_was_counted_there_is_no_line(tmp_path: Path) -> None:
    assert gateway_usage.lines(str(tmp_path / "usage.json")) == []
    assert gateway_usage.lines(written(tmp_path, {"users": {}})) == []


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"users": 3}', '{"users": {"alice": 3}}', '{"users": {"alice": {}}}', "[" * 100_000, "\udcff"],
)
def test_what_is_no_such_file_is_said(tmp_path: Path, content: str) -> None:
    path = tmp_path / "usage.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    (line,) = gateway_usage.lines(str(path))
    assert "cannot be read" in line


def test_nothing_but_names_and_numbers_is_shown(tmp_path: Path) -> None:
    users = {"alice": {**ALICE, "requests": "\x1b[2J", "last": "now\nforged"}, "x\nforged": ALICE}
    found = gateway_usage.lines(written(tmp_path, {"users": users, "since": "\x1b[2J", "written": None}))
    assert len(found) == 2
    assert "forged" not in "".join(found)
    assert "\x1b" not in "".join(found)


def test_no_link_is_followed_and_no_pipe_waited_for(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(json.dumps({"users": {"alice": ALICE}}))
    os.symlink(tmp_path / "secret", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        (line,) = gateway_usage.lines(str(tmp_path / name))
        assert "cannot be read" in line
