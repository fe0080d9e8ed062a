"""Counters of users: they survive a restart and a damaged file, and hold nothing else."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

GATEWAY = "roles/litellm/files/opt/modelhost/litellm/lib/modelhost_gateway"
SOURCE = Path(__file__).resolve().parents[2] / GATEWAY / "usage.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("limits_test_usage", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


usage = load()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.json"


def counters(path: Path, user: str = "alice") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["users"][user]
    return found


def test_counting_goes_on_after_a_restart(path: Path) -> None:
    for _ in range(2):
        counted = usage.Usage(str(path))
        counted.count("alice", "coder", requests=1)
        counted.count("alice", "coder", prompt_tokens=100, completion_tokens=7)
        counted.count("alice", "chat", refused=1)
        counted.close()
    found = counters(path)
    assert {name: found[name] for name in usage.COUNTERS} == {
        "requests": 2,
        "refused": 2,
        "prompt_tokens": 200,
        "completion_tokens": 14,
    }
    assert found["models"]["coder"]["requests"] == 2
    assert found["models"]["chat"]["refused"] == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(item.name for item in path.parent.iterdir()) == ["usage.json"]


def test_the_day_of_the_first_count_stays(path: Path) -> None:
    first = usage.Usage(str(path))
    first.content["since"] = "2026-01-02T03:04:05Z"
    first.count("alice", requests=1)
    first.close()
    second = usage.Usage(str(path))
    second.count("alice", requests=1)
    second.close()
    assert json.loads(path.read_text())["since"] == "2026-01-02T03:04:05Z"


def test_nothing_is_written_where_nothing_changed(path: Path) -> None:
    counted = usage.Usage(str(path))
    counted.close()
    assert not path.exists()
    counted.count("alice", requests=1)
    asyncio.run(counted.save())
    before = path.stat().st_ino
    asyncio.run(counted.save())
    counted.close()
    assert path.stat().st_ino == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"users": []}',
        '{"users": {"alice": 3}}',
        '{"users": {"alice": {"requests": -1}}}',
        '{"users": {"alice": {"requests": true}}}',
        '{"users": {"alice": {"requests": 1e3}}}',
        '{"users": {"alice": {"models": {"coder": 5}}}}',
        '{"users": {"alice": {"requests": 99999999999999999999}}}',
        "[" * 100_000,
        " " * (usage.LARGEST + 1),
        b"\xff\xfe".decode("latin-1"),
    ],
)
def test_a_damaged_file_is_put_aside_and_said(path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(content.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        counted = usage.Usage(str(path))
    assert caplog.text.count("cannot be used") == 1
    assert (path.parent / "usage.json.damaged").read_bytes() == content.encode("latin-1")
    counted.count("alice", requests=1)
    counted.close()
    assert counters(path)["requests"] == 1


NAMES = st.sampled_from(["users", "models", "alice", "requests", "since", "last"])
TREES = st.recursive(st.integers() | st.text() | st.none(), lambda inner: st.dictionaries(NAMES, inner))


@given(st.binary(max_size=200) | TREES.map(lambda tree: json.dumps(tree).encode()))
@settings(deadline=None, max_examples=80)
def test_no_content_stops_the_gateway(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "usage.json"
        file.write_bytes(content)
        counted = usage.Usage(str(file))
        counted.count("alice", "coder", requests=1)
        counted.close()
        assert counters(file)["requests"] >= 1


def test_a_folder_that_is_not_there_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "later" / "usage.json"
    counted = usage.Usage(str(path))
    counted.count("alice", requests=1)
    for _ in range(3):
        asyncio.run(counted.save())
    assert caplog.text.count("cannot be written") == 1
    path.parent.mkdir()
    asyncio.run(counted.save())
    assert counters(path)["requests"] == 1


def test_a_rest_of_a_crash_is_no_hindrance_and_no_link_is_followed(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    os.symlink(elsewhere, str(path) + ".part")
    counted = usage.Usage(str(path))
    counted.count("alice", requests=1)
    counted.close()
    assert elsewhere.read_text() == "kept"
    assert not path.is_symlink()
    assert counters(path)["requests"] == 1


def test_an_older_text_never_replaces_a_newer_one(path: Path) -> None:
    counted = usage.Usage(str(path))
    counted.count("alice", requests=1)
    old = counted._text()
    counted.count("alice", requests=1)
    # The thread that was to write the old text comes last.
    counted.close()
    counted._write(1, old)
    assert counters(path)["requests"] == 2


def test_the_end_writes_what_a_thread_had_not_written_yet(path: Path) -> None:
    counted = usage.Usage(str(path))
    counted.count("alice", requests=1)
    counted._text()
    counted.close()
    assert counters(path)["requests"] == 1


def test_only_users_of_the_key_file_stay(path: Path) -> None:
    known = ["alice", "bob"]
    counted = usage.Usage(str(path), lambda: known)
    for name in known:
        counted.count(name, requests=1)
    counted.close()
    # A key file that cannot be read knows nobody, and that is no reason to forget everybody.
    known = []
    counted.count("alice", requests=1)
    counted.close()
    assert set(json.loads(path.read_text())["users"]) == {"alice", "bob"}
    known = ["alice"]
    counted.count("alice", requests=1)
    counted.close()
    assert set(json.loads(path.read_text())["users"]) == {"alice"}


def test_many_models_do_not_make_a_large_file(path: Path) -> None:
    counted = usage.Usage(str(path))
    for number in range(50):
        counted.count("alice", f"model-{number}", requests=1)
    counted.close()
    found = counters(path)
    assert found["requests"] == 50
    assert len(found["models"]) == usage.MODELS + 1
    assert found["models"][usage.OTHER]["requests"] == 50 - usage.MODELS
    assert sum(item["requests"] for item in found["models"].values()) == 50
    assert usage.Usage(str(path)).content["users"]["alice"]["models"] == found["models"]


def test_counting_while_it_is_written(path: Path) -> None:
    async def test() -> None:
        counted = usage.Usage(str(path))
        for _ in range(50):
            counted.count("alice", "coder", requests=1)
            saving = asyncio.create_task(counted.save())
            await asyncio.sleep(0)
            counted.count("bob", "coder", requests=1)
            await saving
        counted.close()

    asyncio.run(test())
    assert counters(path)["requests"] == counters(path, "bob")["requests"] == 50
