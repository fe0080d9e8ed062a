"""The parts of `./run test` beside each other: output in one piece, results counted, and nothing goes on after an
interrupt."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from patience import HANGS, wait_until

ROOT = Path(__file__).resolve().parents[2]
#: What stands in for `./run`: its first word says what to do, in the folder where the test wants it.
COMMAND = """#!/bin/bash
cd "$(dirname "$0")"
case $1 in
  meet) echo "$2 one"; touch "$2"; until [ -e "$3" ]; do sleep 0.02; done; echo "$2 two" ;;
  alone) mkdir busy && echo alone && sleep 0.1 && rmdir busy ;;
  nice) nice ;;
  fail) echo "what went wrong"; exit 3 ;;
  steps) echo "INFO     [default > create] Executing"; echo "INFO     [default > verify] Executing" ;;
  stay) trap 'echo tidied >tidied; exit 130' INT
    setsid bash -c 'trap "" INT TERM HUP; touch grandchild; exec sleep 4321.'"$2" & touch stays; wait ;;
  deaf) trap '' INT TERM; touch stays; while :; do sleep 0.1; done ;;
esac
"""


@pytest.fixture
def command(tmp_path: Path) -> Path:
    path = tmp_path / "command"
    path.write_text(COMMAND, encoding="utf-8")
    path.chmod(0o755)
    return path


def arguments(command: Path, lanes: int, *parts: str) -> list[str]:
    folder = command.parent
    script = [sys.executable, str(ROOT / "testbed/parts.py"), "--lanes", str(lanes)]
    return [*script, str(folder / "logs"), str(folder / "reports/parts.xml"), str(command), *parts]


def run(command: Path, lanes: int, *parts: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments(command, lanes, *parts), capture_output=True, text=True, check=False, timeout=HANGS)


def totals(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "testbed/totals.py"), "total", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_two_at_once_and_each_output_in_one_piece(command: Path) -> None:
    """Either waits for the other."""
    done = run(command, 2, "meet a b", "meet b a")
    assert done.returncode == 0, done.stdout
    for name in ("a", "b"):
        assert f"{name} one\n{name} two\n" in done.stdout
    assert (command.parent / "logs/meet-a-b.log").read_text() == "a one\na two\n"


def test_not_more_than_there_are_lanes(command: Path) -> None:
    assert run(command, 1, "alone 1", "alone 2", "alone 3").returncode == 0


def test_a_part_behind_the_others_leaves_them_the_processor(command: Path) -> None:
    own = os.nice(0)
    for part, expected in (("nice", min(own + 10, 19)), ("nice x", own)):
        script = [sys.executable, str(ROOT / "testbed/parts.py"), "--behind", "nice", str(command.parent / "logs")]
        script += [str(command.parent / "parts.xml"), str(command), part]
        subprocess.run(script, check=True, capture_output=True, timeout=HANGS)
        assert (command.parent / f"logs/{part.replace(' ', '-')}.log").read_text() == f"{expected}\n"


def test_what_fails_is_printed_and_counted_and_the_others_run(command: Path) -> None:
    done = run(command, 1, "fail", "alone")
    assert done.returncode == 1
    assert "==> fail\nwhat went wrong\n" in done.stdout
    assert "fail: FAILED (exit code 3)" in done.stdout
    told = totals(command.parent / "reports")
    assert told.returncode == 1
    assert "FAILED parts: parts::fail" in told.stdout
    assert told.stdout.endswith("1 passed, 1 failed\n")


def test_the_totals_show_seconds_by_part_and_step(command: Path) -> None:
    assert run(command, 2, "steps", "alone").returncode == 0
    parts = command.parent / "reports/parts.xml"
    tree = ElementTree.parse(parts)
    (steps,) = [case for case in tree.iter("testcase") if case.get("name") == "steps"]
    assert [step.get("name") for step in steps.iter("property")] == ["processor", "create", "verify"]
    # What the parts took here is this machine's business; the table shows what is told.
    steps.set("time", "9")
    for step, seconds in zip(steps.iter("property"), ("3", "0.4", "7.4")):
        step.set("value", seconds)
    tree.write(parts)
    head, first, second, *_rest = totals(command.parent / "reports").stdout.splitlines()
    assert head.split() == ["part", "seconds", "CPU", "here", "result", "steps"]
    assert first.split() == ["steps", "9", "3", "ok", "verify", "7"]
    assert re.fullmatch(r"alone +\d+ +\d+ +ok", second), second


def running(words: str) -> bool:
    """Whether a process has these words in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        # It may end while it is looked at.
        with contextlib.suppress(OSError):
            if words.encode() in path.read_bytes():
                return True
    return False


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_parts_tidy_up_and_leaves_nothing(command: Path, sent: signal.Signals) -> None:
    """A grandchild with a session of its own, which hears nothing, goes as well."""
    folder, mark = command.parent, f"{os.getpid()}{int(sent)}"
    runner = subprocess.Popen(arguments(command, 2, f"stay {mark}", "alone"), stdout=subprocess.PIPE, text=True)
    wait_until(lambda: (folder / "stays").exists() and (folder / "grandchild").exists(), "the part runs")
    wait_until(lambda: running(f"4321.{mark}"), "its grandchild runs")
    runner.send_signal(sent)
    out, _err = runner.communicate(timeout=HANGS)
    assert runner.returncode == -signal.SIGINT, out
    assert (folder / "tidied").exists(), out
    assert not running(f"4321.{mark}")


def test_who_asks_twice_waits_for_nothing(command: Path) -> None:
    folder = command.parent
    runner = subprocess.Popen(arguments(command, 1, "deaf"), stdout=subprocess.PIPE, text=True)
    wait_until((folder / "stays").exists, "the part runs")
    runner.send_signal(signal.SIGINT)
    assert runner.stdout
    for line in runner.stdout:
        if "interrupted" in line:
            break
    runner.send_signal(signal.SIGINT)
    runner.communicate(timeout=HANGS)
    assert runner.returncode == -signal.SIGINT
    assert not running(str(command))


def test_nothing_goes_on_when_the_shell_above_is_ended(command: Path) -> None:
    folder, mark = command.parent, f"{os.getpid()}0"
    shell = subprocess.Popen(["bash", "-c", '"$@"; true', "-", *arguments(command, 1, f"stay {mark}")])
    wait_until(lambda: (folder / "stays").exists() and running(f"4321.{mark}"), "the part runs")
    shell.terminate()
    shell.wait(timeout=HANGS)
    wait_until(lambda: not running(f"4321.{mark}"), "nothing is left")
    assert (folder / "tidied").exists()
