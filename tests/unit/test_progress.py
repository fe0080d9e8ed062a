"""The living line of long steps (plugins/plugin_utils/progress.py), on a terminal and elsewhere."""

from __future__ import annotations

import fcntl
import os
import pickle
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.modelhost.serving.plugins.plugin_utils.progress import Live, clipped

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 64
#: What wait_unit asks of a host, answered from files: the unit is active when the file `ready` is there.
SYSTEMCTL = """#!/bin/sh
echo look >> "$FOLDER/looks"
if [ -e "$FOLDER/ready" ]; then echo ActiveState=active; else echo ActiveState=activating; fi
"""
PLAY = """
- name: Wait
  hosts: one,two
  gather_facts: false
  tasks:
    - name: Wait for the engine
      modelhost.serving.wait_unit:
        unit: engine.service
        phases: [{pattern: Loading, phase: loading weights}]
    - {name: Say, ansible.builtin.debug: {msg: "x"}, run_once: true}
"""


@pytest.mark.parametrize(
    ("text", "columns", "line"),
    [
        ("as long as it is", 17, "as long as it is"),
        ("one longer than it", 17, "one longer than…"),
        ("two\tcolumns\r\033[2J\nand a bell\a", 80, "two columns ?[2J and a bell?"),
        # Characters that are two columns wide.
        ("引擎正在加载权重", 17, "引擎正在加载权重"),
        ("引擎正在加载权重", 16, "引擎正在加载…"),
        ("", 80, ""),
    ],
)
def test_a_line_stays_within_one_line(text: str, columns: int, line: str) -> None:
    assert clipped(text, columns) == line


def test_a_living_line_goes_from_one_process_to_another() -> None:
    there = pickle.loads(pickle.dumps(Live("one", "how far it is")))
    assert isinstance(there, Live)
    assert (there.key, str(there)) == ("one", "how far it is")


class Host:
    """What two hosts answer, and how to run the playbook against them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("systemctl", SYSTEMCTL), ("journalctl", '#!/bin/sh\ncat "$FOLDER/journal"\n')):
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o755)
        (folder / "play.yml").write_text(PLAY, encoding="utf-8")
        (folder / "hosts").write_text("one\ntwo\n[all:vars]\nansible_connection=local\n", encoding="utf-8")
        (folder / "journal").write_text("Hello\n", encoding="utf-8")
        # Held open for both directions: a host's look never waits for a reader, nor a reader for a first look.
        os.mkfifo(folder / "looks")
        self.pipe = os.open(folder / "looks", os.O_RDWR)
        self.seen = 0
        self.command = ["ansible-playbook", "-i", str(folder / "hosts"), str(folder / "play.yml")]
        path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "FOLDER": str(folder), "PATH": path, "TERM": "xterm", "ANSIBLE_NOCOLOR": "1"}

    def wait_for_looks(self, more: int, run: subprocess.Popen[str]) -> None:
        """Until it was looked at so often: each look is a line in a pipe."""
        seen = self.seen
        while self.seen < seen + more:
            ready, _, _ = select.select([self.pipe], [], [], 1)
            assert ready or run.poll() is None, "the run ended before"
            self.seen += os.read(self.pipe, 4096).count(b"look") if ready else 0


class Terminal:
    """A terminal of 64 columns that remembers what was drawn, and how it looked after each step."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.raw = b""

    def read(self, until: Callable[[str], bool] = lambda _raw: False) -> str:
        """All that was written, when it has come that far; or at the end."""
        while not until(self.raw.decode(errors="ignore")):
            try:
                more = os.read(self.master, 4096)
            except OSError:
                more = b""
            if not more:
                self.process.wait()
                break
            self.raw += more
        return self.raw.decode()

    def drawn(self) -> list[str]:
        """Each living line that was drawn."""
        return list(re.findall(r"\r\x1b\[K([^\r\n]*)", self.raw.decode()))

    def screen(self) -> list[str]:
        """The lines that stay."""
        lines = [""]
        for token in re.findall(r"\r\x1b\[K|\r?\n|[^\r\n]+|\r", self.raw.decode()):
            if token == "\r\x1b[K":
                lines[-1] = ""
            elif token.endswith("\n"):
                lines.append("")
            else:
                assert token != "\r"
                lines[-1] += token
        return [line.rstrip() for line in lines]


def test_progress_is_one_living_line_on_a_terminal(tmp_path: Path) -> None:
    host = Host(tmp_path)
    terminal = Terminal(host.command, host.environment)
    terminal.read(lambda raw: "starting: Hello" in raw)
    (tmp_path / "journal").write_text("Loading part 1 of 2 " + "and so on " * 20 + "\n", encoding="utf-8")
    terminal.read(lambda raw: "s loading weights: Loading" in raw and "(and 1 more)" in raw)
    (tmp_path / "ready").touch()
    terminal.read()
    assert terminal.process.returncode == 0, terminal.raw
    drawn = terminal.drawn()
    assert "wait for the engine" in {line.lower() for line in drawn}
    assert all(len(line) < COLUMNS for line in drawn)
    assert any(line.endswith("…") for line in drawn)
    # Nothing of it stays but that each engine is ready.
    lines = [line for line in terminal.screen() if line]
    assert [line.split(" *")[0] for line in lines[:1]] == ["PLAY [Wait]"]
    ready = sorted(re.sub(r"\d+ s", "N s", " ".join(line.split())) for line in lines[1:3])
    assert ready == ["one engine.service N s ready", "two engine.service N s ready"]
    assert [line.split(" *")[0] for line in lines[3:6]] == ["TASK [Say]", "ok: [one] => x", "PLAY RECAP"]
    assert len(lines) == 8


def test_elsewhere_a_line_is_printed_when_the_phase_changes(tmp_path: Path) -> None:
    host = Host(tmp_path)
    with subprocess.Popen(host.command, cwd=ROOT, env=host.environment, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        host.wait_for_looks(6, run)
        (tmp_path / "journal").write_text("Loading part 1 of 2\n", encoding="utf-8")
        host.wait_for_looks(6, run)
        (tmp_path / "ready").touch()
        out = run.stdout.read()
    assert run.returncode == 0, out
    assert "\r" not in out
    assert "\x1b" not in out
    # One line for each host and phase, of at least three looks in each; more only where 15 seconds went by.
    for phase in ("starting: Hello", "loading weights: Loading part 1 of 2", "ready"):
        assert out.count(f"s  {phase}") >= 2
    assert out.count("engine.service") < host.seen
