# MIT licence (see LICENSE)
"""Bring files from the controller to a host in chunks, over whatever connection Ansible has.

Each chunk is the standard input of one command on the host (bundle_receiver.py), so nothing is needed there but a
Python, and nothing is written twice. An interrupted transfer goes on where it stopped.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import bundle_receiver
from ansible_collections.modelhost.serving.plugins.module_utils.capacity import gib

#: Bytes of a chunk: what a connection carries in a few seconds, between these.
LEAST = 4 << 20
MOST = 128 << 20
SECONDS = 5.0
#: Bytes that stay free on each file system of a host.
RESERVE = 1 << 30
#: Times that a file is sent which arrived with another hash.
TRIES = 2

Item = dict[str, Any]


class TransferError(Exception):
    """A transfer that cannot be; the message says why and what helps."""


def clock(seconds: float) -> str:
    """Time as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(amount: float) -> str:
    """Bytes for people."""
    return gib(amount) if amount >= 1 << 30 else f"{amount / (1 << 20):.1f} MiB"


def segments(missing: list[tuple[Item, int]], room: Callable[[], int]) -> Iterator[list[Item]]:
    """Chunks of what is missing, as (file, bytes that are there): each a list of files with `at` and `length`."""
    chunk: list[Item] = []
    left = room()
    for item, have in missing:
        at = have
        while True:
            length = min(item["size"] - at, left)
            chunk.append({**item, "at": at, "length": length})
            at, left = at + length, left - length
            if left == 0:
                yield chunk
                chunk, left = [], room()
            if at == item["size"]:
                break
    if chunk:
        yield chunk


class Transfer:
    """Files for one host. run(command, standard input) gives exit status, output and errors."""

    def __init__(
        self,
        run: Callable[[str, bytes], tuple[int, str, str]],
        python: str,
        record: str,
        say: Callable[[str], None],
    ) -> None:
        self.run, self.record, self.say = run, record, say
        # Packed, because it goes through the quotes of several shells.
        program = base64.b64encode(zlib.compress(Path(bundle_receiver.__file__).read_bytes())).decode()
        self.command = f"{python} -Bc 'import base64, zlib; exec(zlib.decompress(base64.b64decode(\"{program}\")))'"

    def ask(self, header: dict[str, Any], data: bytes = b"") -> dict[str, Any]:
        """One command on the host."""
        line = json.dumps({**header, "record": self.record}).encode() + b"\n"
        status, out, err = self.run(self.command, line + data)
        answers = [line for line in out.splitlines() if line.startswith(bundle_receiver.MARK)]
        if not answers:
            raise TransferError(f"the host could not take files in (status {status}): {(err or out).strip()[-500:]}")
        answer: dict[str, Any] = json.loads(answers[-1][len(bundle_receiver.MARK) :])
        if "error" in answer:
            raise TransferError(f"the host could not take files in: {answer['error']}")
        return answer

    def look(self, files: list[Item], prune: list[str], write: bool) -> dict[str, Any]:
        """What is there already. Files: root, path, size, sha256, unless (paths that make it needless)."""
        names = ("root", "path", "size", "sha256", "unless", "fresh")
        known = [{name: item[name] for name in names if name in item} for item in files]
        return self.ask({"do": "look", "files": known, "prune": prune, "write": write})

    def send(self, files: list[Item], seen: dict[str, Any]) -> int:
        """Send what `look` did not see. Files have `source` too, a path of the controller. Gives the bytes sent."""
        missing = [(item, have) for item, have in zip(files, seen["have"], strict=True) if have >= 0]
        if not missing:
            return 0
        self.expect_space(missing, seen["space"])
        self.begun = time.monotonic()
        self.total = sum(item["size"] - have for item, have in missing)
        self.sent, self.room, self.best = 0, LEAST, 0.0
        number = len(missing)
        self.say(f"{number} file{'s' if number > 1 else ''}, {size(self.total)}")
        for _attempt in range(TRIES):
            wrong: list[list[str]] = []
            for chunk in segments(missing, lambda: self.room):
                wrong += self.send_chunk(chunk)
            if not wrong:
                return self.sent
            missing = [(item, 0) for item, _have in missing if item["path"] in dict(wrong)]
            self.total += sum(item["size"] for item, _have in missing)
        (item, _have), found = missing[0], dict(wrong)[missing[0][0]["path"]]
        if bundle_receiver.sha256_of(item["source"]) != item["sha256"]:
            raise TransferError(
                f"{item['source']} has the SHA-256 {found}, and had {item['sha256']} when it was made: the file is "
                "damaged. Copy it again, or build it again"
            )
        raise TransferError(f"{item['path']} arrived damaged {TRIES} times ({found}): look at the network and the disk")

    def send_chunk(self, chunk: list[Item]) -> list[list[str]]:
        """One chunk; the files that arrived with another hash."""
        data = bytearray()
        for item in chunk:
            with open(item["source"], "rb") as handle:
                handle.seek(item["at"])
                part = handle.read(item["length"])
            if len(part) != item["length"]:
                raise TransferError(f"{item['source']} is shorter than the {item['size']} bytes that it should have")
            data += part
        names = ("root", "path", "size", "sha256", "at", "length")
        header = {"do": "take", "segments": [{name: item[name] for name in names} for item in chunk]}
        began = time.monotonic()
        answer = self.ask(header, bytes(data))
        now = time.monotonic()
        self.sent += len(data)
        # As much as goes in a few seconds, so that little is lost where a connection breaks; less where more at once
        # only makes it slower (Ansible's connection through the Docker API).
        speed = len(data) / max(now - began, 0.01)
        self.best = max(speed, self.best * 0.9)
        room = min(MOST, speed * SECONDS, self.room * 2) if speed > self.best / 2 else self.room / 2
        self.room = max(LEAST, int(room))
        rate = self.sent / max(now - self.begun, 0.01)
        left = max(self.total - self.sent, 0) / max(rate, 1)
        self.say(
            f"{size(self.sent)} of {size(self.total)}  {rate / (1 << 20):.1f} MiB/s  {clock(left)} left  "
            f"{Path(chunk[-1]['path']).name}"
        )
        return list(answer["wrong"])

    def expect_space(self, missing: list[tuple[Item, int]], space: dict[str, dict[str, int]]) -> None:
        """Room for all of it, before anything is sent."""
        needs: dict[int, int] = {}
        for item, have in missing:
            device = space[item["root"]]["device"]
            needs[device] = needs.get(device, 0) + item["size"] - have
        for root, found in space.items():
            need = needs.get(found["device"], 0)
            if need and found["free"] < need + RESERVE:
                raise TransferError(
                    f"{size(need)} are to come to {root}, and {size(found['free'])} are free there, of which "
                    f"{size(RESERVE)} stay free. Free space there, or use the files where they lie (bundle_on_hosts)"
                )
