"""Files of a bundle on their way to a host: chunks, interruptions, damage, space. The host's side is a real Python."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.modelhost.serving.plugins.module_utils import bundle_receiver, bundle_transfer
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_transfer import Transfer, TransferError
from hypothesis import given, settings
from hypothesis import strategies as st


class Line:
    """A connection to a host that is a folder of this machine; it may break or damage what it carries."""

    def __init__(self) -> None:
        self.calls = 0
        self.carried = 0
        self.break_at = 0
        self.damage = 0

    def run(self, command: str, data: bytes) -> tuple[int, str, str]:
        """One command on the host."""
        self.calls += 1
        if b'"do": "take"' in data[:20]:
            self.carried += len(data)
            if self.calls == self.break_at:
                # All but the end arrives, and nobody hears of it.
                subprocess.run(["sh", "-c", command], input=data[:-10], capture_output=True, check=False)
                raise ConnectionError("the connection is gone")
            if self.damage:
                self.damage -= 1
                data = data[:-1] + bytes([data[-1] ^ 1])
        done = subprocess.run(["sh", "-c", command], input=data, capture_output=True, check=False)
        return done.returncode, "Welcome!\n" + done.stdout.decode(), done.stderr.decode()


def made(folder: Path, sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Files of these sizes, and what bundle_push is told about them."""
    found = []
    for name, size in sizes.items():
        data = random.Random(name).randbytes(size)
        path = folder / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        item = {"root": str(folder / "host"), "path": name, "source": str(path), "size": size, "unless": []}
        found.append({**item, "sha256": hashlib.sha256(data).hexdigest()})
    return found


def transfer(folder: Path, line: Line, lines: list[str] | None = None) -> Transfer:
    """A transfer over this line."""
    said = [] if lines is None else lines
    return Transfer(line.run, sys.executable, str(folder / "host/.arrived.json"), said.append)


def send(folder: Path, files: list[dict[str, Any]], line: Line, lines: list[str] | None = None) -> int:
    """Everything that is missing."""
    sender = transfer(folder, line, lines)
    return sender.send(files, sender.look(files, [], write=True))


def same(folder: Path, files: list[dict[str, Any]]) -> bool:
    """Whether the host has the bytes of all files, and nothing half done."""
    left = list((folder / "host/.part").glob("*"))
    return not left and all(
        (folder / "host" / it["path"]).read_bytes() == Path(it["source"]).read_bytes() for it in files
    )


def test_everything_arrives_once(tmp_path: Path) -> None:
    files = made(tmp_path, {"a/large": 9_000_000, "a/empty": 0, **{f"b/{n}": 5_000 for n in range(50)}})
    lines: list[str] = []
    line = Line()
    assert send(tmp_path, files, line, lines) == 9_250_000
    assert same(tmp_path, files)
    # Small files share chunks.
    assert line.calls < 8
    assert lines[0] == "52 files, 8.8 MiB"
    assert lines[-1].startswith("8.8 MiB of 8.8 MiB")
    assert "left" in lines[-1]
    assert oct((tmp_path / "host/a/large").stat().st_mode)[-3:] == "644"
    assert oct((tmp_path / "host/a").stat().st_mode)[-3:] == "755"
    line = Line()
    assert send(tmp_path, files, line) == 0
    assert line.carried == 0


def test_files_with_the_same_bytes(tmp_path: Path) -> None:
    files = made(tmp_path, {"a": 1000, "b": 1000})
    Path(files[1]["source"]).write_bytes(Path(files[0]["source"]).read_bytes())
    files[1]["sha256"] = files[0]["sha256"]
    send(tmp_path, files, Line())
    assert same(tmp_path, files)


@settings(max_examples=20, deadline=None)
@given(break_at=st.integers(2, 6), seed=st.integers(0, 10))
def test_an_interrupted_transfer_goes_on(tmp_path_factory: pytest.TempPathFactory, break_at: int, seed: int) -> None:
    folder = tmp_path_factory.mktemp("push")
    numbers = random.Random(seed)
    files = made(folder, {f"f{n}": numbers.choice([0, 10, 70_000, 5_000_000]) for n in range(6)})
    total = sum(it["size"] for it in files)
    line = Line()
    line.break_at = break_at
    try:
        send(folder, files, line)
    except ConnectionError:
        # What came in part has no name yet.
        for item in files:
            place = folder / "host" / item["path"]
            assert not place.exists() or place.read_bytes() == Path(item["source"]).read_bytes()
        # No byte of what arrived is sent twice. What was carried counts headers too.
        assert send(folder, files, Line()) <= total - line.carried + 4000 * line.calls
    assert same(folder, files)


def test_bytes_that_arrived_are_not_sent_again(tmp_path: Path) -> None:
    files = made(tmp_path, {"large": 20_000_000})
    line = Line()
    line.break_at = 3
    with pytest.raises(ConnectionError):
        send(tmp_path, files, line)
    assert not (tmp_path / "host/large").exists()
    part = next((tmp_path / "host/.part").iterdir()).stat().st_size
    assert part > 8_000_000
    assert send(tmp_path, files, Line()) == 20_000_000 - part
    assert same(tmp_path, files)


def test_two_controllers_send_the_same_at_once(tmp_path: Path) -> None:
    """What a killed controller leaves behind may go on while the next run sends the same."""
    files = made(tmp_path, {"a": 6_000_000, "b": 100, "c": 9_000_000})
    first, second = transfer(tmp_path, Line()), transfer(tmp_path, Line())
    seen = first.look(files, [], write=True), second.look(files, [], write=True)
    direct, calls = first.run, []

    def run(command: str, data: bytes) -> tuple[int, str, str]:
        calls.append(len(data))
        if len(calls) == 2:
            # All of it by the other one, while this is in the middle of the first file.
            second.send(files, seen[1])
        return direct(command, data)

    first.run = run
    first.send(files, seen[0])
    assert same(tmp_path, files)


def test_a_damaged_file_is_sent_once_more(tmp_path: Path) -> None:
    files = made(tmp_path, {"a": 1000, "z": 2000})
    line = Line()
    line.damage = 1
    send(tmp_path, files, line)
    assert same(tmp_path, files)
    assert line.calls == 3


def test_damage_that_stays_is_told(tmp_path: Path) -> None:
    files = made(tmp_path, {"a": 1000})
    line = Line()
    line.damage = 9
    with pytest.raises(TransferError, match="arrived damaged 2 times"):
        send(tmp_path, files, line)
    assert not (tmp_path / "host/a").exists()
    Path(files[0]["source"]).write_bytes(b"x" * 1000)
    with pytest.raises(TransferError, match="the file is damaged"):
        send(tmp_path, files, Line())


def test_a_file_that_shrank(tmp_path: Path) -> None:
    files = made(tmp_path, {"a": 1000})
    Path(files[0]["source"]).write_bytes(b"x" * 999)
    with pytest.raises(TransferError, match="shorter than the 1000 bytes"):
        send(tmp_path, files, Line())


def test_a_lost_record_costs_a_look_only(tmp_path: Path) -> None:
    files = made(tmp_path, {"a": 1000, "b": 2000})
    send(tmp_path, files, Line())
    (tmp_path / "host/.arrived.json").unlink()
    (tmp_path / "host/b").write_bytes(b"x" * 2000)
    assert send(tmp_path, files, Line()) == 2000
    assert same(tmp_path, files)


@pytest.mark.parametrize("fresh", [False, True])
def test_another_content_of_the_same_size_is_seen(tmp_path: Path, fresh: bool) -> None:
    """The record says that GOOD was checked; whoever can write there has put EVIL in its place."""
    files = [{**item, "fresh": fresh} for item in made(tmp_path, {"a.deb": 1000})]
    send(tmp_path, files, Line())
    place = tmp_path / "host/a.deb"
    assert transfer(tmp_path, Line()).look(files, [], write=True)["have"] == [-1]
    times = place.stat()
    place.write_bytes(b"E" * 1000)
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert transfer(tmp_path, Line()).look(files, [], write=True)["have"] != [-1]
    assert send(tmp_path, files, Line()) == 1000
    assert same(tmp_path, files)


def test_what_others_can_write_is_read_each_time(tmp_path: Path) -> None:
    """A record that fits to the last number is not believed there."""
    files = made(tmp_path, {"a.deb": 1000})
    send(tmp_path, files, Line())
    place, record = tmp_path / "host/a.deb", tmp_path / "host/.arrived.json"
    place.write_bytes(b"E" * 1000)
    note = bundle_receiver.note_of(str(place), files[0]["sha256"])
    bundle_receiver.write_record(str(record), {str(place): note})
    assert transfer(tmp_path, Line()).look(files, [], write=False)["have"] == [-1], "the record is at work"
    fresh = [{**item, "fresh": True} for item in files]
    assert transfer(tmp_path, Line()).look(fresh, [], write=False)["have"] != [-1]


def test_a_record_of_an_earlier_release_costs_a_look(tmp_path: Path) -> None:
    files = made(tmp_path, {"a.deb": 1000})
    send(tmp_path, files, Line())
    place, record = tmp_path / "host/a.deb", tmp_path / "host/.arrived.json"
    place.write_bytes(b"E" * 1000)
    bundle_receiver.write_record(str(record), {str(place): files[0]["sha256"]})
    assert transfer(tmp_path, Line()).look(files, [], write=False)["have"] != [-1]


def test_another_bundle_replaces_a_file_of_the_same_size(tmp_path: Path) -> None:
    files = made(tmp_path, {"Packages": 1000})
    send(tmp_path, files, Line())
    Path(files[0]["source"]).write_bytes(b"y" * 1000)
    files[0]["sha256"] = hashlib.sha256(b"y" * 1000).hexdigest()
    assert send(tmp_path, files, Line()) == 1000
    assert same(tmp_path, files)


def test_what_the_host_has_elsewhere_is_not_sent(tmp_path: Path) -> None:
    files = made(tmp_path, {"model": 1000})
    files[0]["unless"] = [str(tmp_path / "no"), str(tmp_path)]
    assert send(tmp_path, files, Line()) == 0


def test_nothing_else_stays(tmp_path: Path) -> None:
    files = made(tmp_path, {"a/one": 10, "a/two": 10})
    send(tmp_path, files, Line())
    root = str(tmp_path / "host")
    (tmp_path / "host/.part/old").write_text("half")
    sender = transfer(tmp_path, Line())
    assert sender.look(files[:1], [root], write=False)["removed"] == 2
    assert (tmp_path / "host/a/two").exists()
    assert sender.look(files[:1], [root], write=True)["removed"] == 2
    assert sorted(p.name for p in (tmp_path / "host").rglob("*") if p.is_file()) == [
        ".arrived.json",
        ".arrived.json.lock",
        "one",
    ]


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    files = made(tmp_path, {"a": 1000})
    seen = transfer(tmp_path, Line()).look(files, [str(tmp_path / "host")], write=False)
    assert seen["have"] == [0]
    assert not (tmp_path / "host").exists()


def test_too_little_space_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    files = made(tmp_path, {"a": 1000, "b": 1000})
    sender, line = transfer(tmp_path, Line()), Line()
    seen = sender.look(files, [], write=True)
    seen["space"][files[0]["root"]]["free"] = bundle_transfer.RESERVE + 1999
    with pytest.raises(TransferError, match=r"0\.0 MiB are to come .* are free there, of which 1\.0 GiB stay free"):
        transfer(tmp_path, line).send(files, seen)
    assert line.calls == 0


def test_the_host_says_why_it_cannot(tmp_path: Path) -> None:
    files = made(tmp_path, {"a": 10})
    (tmp_path / "host").write_text("a file")
    with pytest.raises(TransferError, match="could not take files in: "):
        send(tmp_path, files, Line())
    broken = Transfer(lambda _command, _data: (127, "", "python3: not found"), "python3", "/r", print)
    with pytest.raises(TransferError, match=r"status 127\): python3: not found"):
        broken.look(files, [], write=False)


def test_chunks_have_the_size_that_there_is_room_for() -> None:
    sizes = [0, 10, 25, 3, 0]
    missing = [({"path": str(n), "size": size}, 5 if size == 25 else 0) for n, size in enumerate(sizes)]
    chunks = list(bundle_transfer.segments(missing, lambda: 10))
    assert [[(it["path"], it["at"], it["length"]) for it in chunk] for chunk in chunks] == [
        [("0", 0, 0), ("1", 0, 10)],
        [("2", 5, 10)],
        [("2", 15, 10)],
        [("3", 0, 3), ("4", 0, 0)],
    ]


def test_the_receiver_runs_on_old_pythons() -> None:
    """Nothing newer than Python 3.6 (Ubuntu 18.04's own): no walrus, no annotations from the future."""
    text = Path(bundle_receiver.__file__).read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 6))
    assert "from __future__" not in text
    assert "removeprefix" not in text


def test_times_and_sizes() -> None:
    assert [bundle_transfer.clock(it) for it in (0, 59, 61, 3725)] == ["0:00", "0:59", "1:01", "1:02:05"]
    assert [bundle_transfer.size(it) for it in (0, 1 << 20, 3 << 30)] == ["0.0 MiB", "1.0 MiB", "3.0 GiB"]


def test_the_record_survives_a_broken_one(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text("{", encoding="utf-8")
    assert bundle_receiver.read_record(str(record)) == {}
    bundle_receiver.write_record(str(record), {"a": "b"})
    assert json.loads(record.read_text(encoding="utf-8")) == {"a": "b"}
    assert os.listdir(tmp_path) == ["record.json"]
