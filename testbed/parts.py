#!/usr/bin/env python3
"""Run parts of the test beside each other, and print the output of each whole when it has ended.

parts.py [--lanes N] [--behind PART]… LOGS REPORT COMMAND PART…

A part is one argument: words for COMMAND, such as "scenario default". Its output goes to LOGS/scenario-default.log, its
result into REPORT (JUnit XML, with seconds). The next part starts when a lane is free, so name the longest first. Parts
that are named --behind take what processor time the others leave: an engine waits for no unit test.
An interrupt reaches all parts, and nothing that they started goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import totals

#: What a lane needs: two engines at once are the most that a part runs, at 3 GiB each.
LANE_GIB = 7
#: Seconds that interrupted parts have for tidying up.
GRACE = 60
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: From <linux/prctl.h>: a signal for this process when its parent ends, as by a SIGTERM for the shell alone; and
#: whatever loses its parent becomes a child of this process.
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
STEP = re.compile(rb"^\S*INFO\S* +\S*\[\S+ > (\w+)\S* \S*Executing", re.M)


@dataclass
class Part:
    """One part that runs, or has run."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)
    read: int = 0
    #: Molecule's steps and when each was seen to begin.
    steps: list[tuple[str, float]] = field(default_factory=list)

    def look(self) -> None:
        """Read what has come since the last look."""
        with self.log.open("rb") as handle:
            handle.seek(self.read)
            new = handle.read()
        new = new[: new.rfind(b"\n") + 1]
        self.read += len(new)
        self.steps += [(found.decode(), time.monotonic()) for found in STEP.findall(new)]

    def seconds(self) -> float:
        return time.monotonic() - self.began


def lanes() -> int:
    """How many parts this machine runs at once, unless it is said."""
    if os.environ.get("MODELHOST_TEST_LANES"):
        return int(os.environ["MODELHOST_TEST_LANES"])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(memory // LANE_GIB)))


def descendants() -> list[int]:
    """Every process that this one started, or one of those did."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, waiting = [], [os.getpid()]
    while waiting:
        here = children.get(waiting.pop(), [])
        found += here
        waiting += here
    return found


class Run:
    """All parts."""

    def __init__(self, logs: Path, report: Path, command: str, lanes: int, behind: list[str]) -> None:
        self.logs, self.report, self.command, self.lanes, self.behind = logs, report, command, lanes, behind
        self.running: dict[int, Part] = {}
        self.failed = False
        self.terminal = sys.stdout.isatty()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *ENDS})
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def start(self, name: str) -> None:
        log = self.logs / (re.sub(r"[^\w.]+", "-", name) + ".log")
        self.say(f"started: {name} (its output so far: {os.path.relpath(log)})")
        with log.open("wb") as handle:
            process = subprocess.Popen(
                [self.command, *name.split()],
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self.behind_the_others if name in self.behind else self.as_usual,
            )
        self.running[process.pid] = Part(name, log, process)

    @staticmethod
    def as_usual() -> None:
        """A part takes signals as if it had been started by a shell."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def behind_the_others(self) -> None:
        os.nice(10)
        self.as_usual()

    def say(self, text: str) -> None:
        print(f"{self.erased()}    {text}", flush=True)

    def erased(self) -> str:
        return "\r\033[K" if self.terminal else ""

    def show(self) -> None:
        """One living line for a person who waits."""
        for part in self.running.values():
            part.look()
        if self.terminal:
            told = (
                f"{part.name}{': ' + part.steps[-1][0] if part.steps else ''} {part.seconds():.0f} s"
                for part in self.running.values()
            )
            print(f"{self.erased()}    {' · '.join(told)}", end="", flush=True)

    def reap(self) -> None:
        """Take note of all that has ended; a part's orphans come here as well."""
        while self.running:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.running:
                part = self.running.pop(pid)
                part.process.returncode = os.waitstatus_to_exitcode(status)
                self.ended(part, used.ru_utime + used.ru_stime)

    def ended(self, part: Part, processor: float) -> None:
        part.look()
        code, seconds = part.process.returncode, part.seconds()
        self.failed = self.failed or code != 0
        print(f"{self.erased()}==> {part.name}", flush=True)
        with part.log.open("rb") as handle:
            sys.stdout.flush()
            for block in iter(lambda: handle.read(1 << 16), b""):
                sys.stdout.buffer.write(block)
        self.say(f"{part.name}: {'ok' if code == 0 else f'FAILED (exit code {code})'} ({seconds:.0f} s)")
        ends = [when for _step, when in part.steps[1:]] + [time.monotonic()]
        steps = [(step, f"{end - began:.1f}") for (step, began), end in zip(part.steps, ends)]
        totals.add_case(self.report, part.name, str(code), f"{seconds:.1f}", part.log, f"{processor:.0f}", steps)

    def wait(self, seconds: float) -> bool:
        """Until something has ended; whether it was an interrupt that came."""
        told = signal.sigtimedwait({signal.SIGCHLD, *ENDS}, seconds)
        return told is not None and told.si_signo in ENDS

    def end(self) -> None:
        """Let parts tidy up, then leave nothing behind."""
        self.say("interrupted; waiting for the parts to tidy up (once more to wait no longer)")
        for pid in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGINT)
        limit = time.monotonic() + GRACE
        while self.running and time.monotonic() < limit:  # clock: the limit for what hangs
            if self.wait(1):
                break
            self.reap()
        while found := descendants():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.wait(0.2)
            self.reap()
        self.say("hosts that are left are removed by the next run of their scenario")
        # The caller should see that it was an interrupt.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.kill(os.getpid(), signal.SIGINT)

    def all(self, names: list[str]) -> int:
        waiting = list(names)
        while waiting or self.running:
            while waiting and len(self.running) < self.lanes:
                self.start(waiting.pop(0))
            if self.wait(1):
                self.end()
            self.reap()
            self.show()
        return int(self.failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lanes", type=int, default=lanes())
    parser.add_argument("--behind", action="append", default=[])
    parser.add_argument("logs", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("command")
    parser.add_argument("parts", nargs="+")
    given = parser.parse_args()
    given.logs.mkdir(parents=True, exist_ok=True)
    return Run(given.logs, given.report, given.command, given.lanes, given.behind).all(given.parts)


if __name__ == "__main__":
    sys.exit(main())
