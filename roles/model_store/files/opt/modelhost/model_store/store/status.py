# MIT licence (see LICENSE)
"""How far a job is, in a file that whoever waits for it can read at any time."""

from __future__ import annotations

import collections
import json
import os
import sys
import threading
import time

#: Seconds over which a rate is averaged.
SPAN = 15.0


class Status:
    """Counts bytes of all threads and writes the file each second."""

    def __init__(self, path: str | None, command: str):
        self.path = path
        self.lock = threading.Lock()
        self.state = {"state": "running", "command": command, "doing": "", "error": "", "results": []}
        self.total = 0  # bytes that the job moves in all
        self.done = 0  # of these, what is there by now
        self.transferred = 0  # what came over the network in this run
        self.began = time.time()
        self.samples = collections.deque([(time.monotonic(), 0)])
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)
        self.write()
        self.thread.start()

    def passed(self, count: int, network: bool = False) -> None:
        """`count` bytes more are there (fewer, if negative: they turned out wrong)."""
        with self.lock:
            self.done += count
            if network and count > 0:
                self.transferred += count

    def expect(self, count: int) -> None:
        """`count` bytes more are to be moved."""
        with self.lock:
            self.total += count

    def say(self, text: str) -> None:
        """One line for the journal, which is also what the job is doing now."""
        self.state["doing"] = text
        print(text, flush=True)

    def result(self, **item) -> None:
        """What became of one model."""
        with self.lock:
            self.state["results"].append(item)

    def end(self, state: str, error: str = "") -> None:
        """The last word. `state`: done or failed."""
        self.ended.set()
        self.thread.join()
        self.state.update(state=state, error=error)
        self.write()
        if error:
            print(error, file=sys.stderr, flush=True)

    def write(self) -> None:
        """Rewrite the file, whole."""
        if not self.path:
            return
        now = time.monotonic()
        with self.lock:
            # What came, not what turned out right: a rate does not fall because a file has to be fetched again.
            self.samples.append((now, max(self.done, self.samples[-1][1])))
            while len(self.samples) > 2 and now - self.samples[0][0] > SPAN:
                self.samples.popleft()
            (then, before), (_, count) = self.samples[0], self.samples[-1]
            rate = (count - before) / (now - then) if now - then > 0.5 else 0.0
            text = json.dumps(
                {
                    **self.state,
                    "total": self.total,
                    "done": self.done,
                    "transferred": self.transferred,
                    "rate": rate,
                    "left": (self.total - self.done) / rate if rate > 0 else None,
                    "seconds": round(time.time() - self.began, 1),
                    "pid": os.getpid(),
                }
            )
        try:
            with open(self.path + ".new", "w", encoding="utf-8") as handle:
                handle.write(text)
            os.replace(self.path + ".new", self.path)
        except OSError as error:  # a full disk stops the job elsewhere, with a better message
            print("%s: %s" % (self.path, error), file=sys.stderr, flush=True)

    def _tick(self) -> None:
        while not self.ended.wait(1.0):
            self.write()
