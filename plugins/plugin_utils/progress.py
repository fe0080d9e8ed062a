# MIT licence (see LICENSE)
"""What long steps say while they run: one living line on a terminal, a line now and then elsewhere.

Actions run in processes of their own; Ansible brings their lines to the main process. A living line takes the same
way as a string of a type of its own, and the main process alone draws it.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import unicodedata
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from ansible.utils.display import Display

#: Seconds between two lines of the same phase where no line can be rewritten.
REPEAT = 15.0
#: Brings the cursor to the first column and empties the line.
EMPTY = "\r\033[K"


class Live(str):
    """The text of a living line; an empty one takes it away. `key` says whose it is."""

    key: str

    def __new__(cls, key: str, text: str) -> Live:
        made = super().__new__(cls, text)
        made.key = key
        return made

    def __reduce__(self) -> tuple[type[Live], tuple[str, str]]:
        return Live, (self.key, str(self))


def cells(character: str) -> int:
    """Columns of a terminal that a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clipped(text: str, columns: int) -> str:
    """A text that stays within one line of a terminal, and moves no cursor: journals may hold anything."""
    kept: list[str] = []
    left = columns - 1
    for character in " ".join(text.split()):
        character = character if character.isprintable() else "?"
        left -= cells(character)
        if left < 0:
            return "".join(kept[:-1]) + "…"
        kept.append(character)
    return "".join(kept)


class Screen:
    """A terminal whose last line lives: what else is printed stands above it.

    `printing` is what prints a line for good (Display.display). Lines of Ansible's two threads do not mix.
    """

    def __init__(self, printing: Callable[..., None], out: TextIO) -> None:
        self.printing, self.out = printing, out
        self.lines: dict[str, str] = {}
        self.task = ""
        self.drawn = False
        self._lock, self._process = threading.RLock(), os.getpid()

    def display(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """In the place of Display.display, in all processes of a run."""
        if os.getpid() != self._process:
            self.printing(msg, *args, **kwargs)
        elif isinstance(msg, Live):
            self.show(msg.key, str(msg))
        else:
            with self._lock:
                self.clear()
                self.printing(msg, *args, **kwargs)
                # A question waits for its answer in its own line.
                if kwargs.get("newline", True):
                    self.draw()

    def begin(self, task: str) -> None:
        """Another task: what hosts said of the one before is over."""
        with self._lock:
            self.task = task
            self.lines.clear()
            self.draw()

    def show(self, key: str, text: str) -> None:
        """One speaker's line; the last that spoke is seen, and how many others there are."""
        with self._lock:
            self.lines.pop(key, None)
            if text:
                self.lines[key] = text
            self.draw()

    def text(self) -> str:
        """What the living line says now."""
        if not self.lines:
            return self.task
        last, others = list(self.lines.values())[-1], len(self.lines) - 1
        return f"(and {others} more) {last}" if others else last

    def draw(self) -> None:
        """Draw the living line anew."""
        # Asked each time: a terminal may be made narrower while we run, and some do not know how wide they are.
        line = clipped(self.text(), os.get_terminal_size(self.out.fileno()).columns or 80)
        if line or self.drawn:
            self.out.write(EMPTY + line)
            self.out.flush()
        self.drawn = bool(line)

    def clear(self) -> None:
        """Take the living line off the screen, for something else in its place."""
        if self.drawn:
            self.out.write(EMPTY)
            self.out.flush()
            self.drawn = False

    def close(self) -> None:
        """The end of the run, whatever ended it."""
        if os.getpid() == self._process:
            with self._lock:
                self.lines.clear()
                self.task = ""
                self.clear()


#: The terminal of this run; none where lines cannot be rewritten, or where another callback prints.
_screen: Screen | None = None


def can_rewrite(out: TextIO) -> bool:
    """Whether this is a terminal that can take a line back."""
    return out.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


def open_screen(out: TextIO) -> Screen | None:
    """From now on all that Ansible prints stands above a living line; nothing where `out` is no terminal."""
    global _screen
    if _screen is None and can_rewrite(out):
        display = Display()
        _screen = Screen(display.display, out)
        # All that Ansible prints ends in this method, warnings and lines of other processes included.
        setattr(display, "display", _screen.display)  # noqa: B010 (mypy refuses a method as a target)
        atexit.register(_screen.close)
    return _screen


class Progress:
    """How far a long step of one host is. Ends with `close`, or as a context manager."""

    def __init__(self, host: str, what: str) -> None:
        self.host, self.what = host, what
        self.began = time.monotonic()
        self._phase: str | None = None
        self._told_at = 0.0

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self.began

    def _line(self, text: str) -> str:
        return "    " + "  ".join(part for part in (self.host, self.what, text) if part)

    def say(self, phase: str, detail: str = "") -> None:
        """How far it is: a new phase is told at once, the same one every few seconds where no line can be rewritten."""
        line = self._line(f"{self.seconds:4.0f} s  {phase}" + (f": {detail}" if detail else ""))
        display, now = Display(), time.monotonic()
        due = phase != self._phase or now - self._told_at > REPEAT
        if _screen is not None:
            display.display(Live(self._line(""), line), newline=False, screen_only=True)
        if due:
            # Ansible's log has them as before.
            display.display(line, log_only=_screen is not None)
            self._phase, self._told_at = phase, now

    def tell(self, text: str) -> None:
        """A line that stays."""
        Display().display(self._line(text))

    def close(self, text: str = "") -> None:
        """The end; `text` stays if anything was said before."""
        if self._phase is not None:
            if _screen is not None:
                Display().display(Live(self._line(""), ""), newline=False, screen_only=True)
            if text:
                self.tell(f"{self.seconds:4.0f} s  {text}")
        self._phase = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
