"""Counters of each user's requests and tokens, which survive a restart.

They stand in one small file: names of users and of the models they asked for, and numbers; nothing of a prompt or an
answer. The file is written at most every few seconds and replaced as a whole, so a reader never sees half of it. After
a crash the last seconds are missing. A file that cannot be read is put aside, and counting begins anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any

LOG = logging.getLogger("modelhost.gateway")

#: Where it lies; the role says so.
FILE = os.environ.get("MODELHOST_USAGE", "/var/lib/modelhost/litellm/usage.json")
COUNTERS = ("requests", "refused", "prompt_tokens", "completion_tokens")
#: Bytes that the file can have, and models of one user: `claude-*` takes whatever name somebody makes up.
LARGEST = 4 << 20
MODELS = 16
OTHER = "other"
#: Counters end here rather than grow into numbers that other programs cannot read.
HIGHEST = 2**53 - 1


def now() -> str:
    """This moment, for people and programs."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Usage:
    """The counters. `users` names those of the key file; others are dropped when the file is written."""

    def __init__(self, path: str = FILE, users: Callable[[], Iterable[str]] | None = None) -> None:
        self.path = path
        self.users = users
        self.content: dict[str, Any] = {"since": now(), "users": {}}
        self._changed = False
        self._number = 0
        self._written = 0
        self._lock = threading.Lock()
        self._reported = ""
        self._read()

    def count(self, user: str, model: str = "", **amounts: int) -> None:
        """Add to the counters of a user, and of one of the models, if it is named."""
        entry = self.content["users"].setdefault(user, {**dict.fromkeys(COUNTERS, 0), "models": {}})
        entry["last"] = now()
        several = [entry]
        if model:
            models = entry["models"]
            name = model if model in models or len(models) < MODELS else OTHER
            several.append(models.setdefault(name, dict.fromkeys(COUNTERS, 0)))
        for counters in several:
            for name, amount in amounts.items():
                counters[name] = min(HIGHEST, counters[name] + amount)
        self._changed = True

    async def save(self) -> None:
        """Write the file if something changed, without holding up requests."""
        text = self._text()
        if text is not None:
            await asyncio.to_thread(self._write, self._number, text)

    def close(self) -> None:
        """Write the file if something changed, now."""
        # What was handed to a thread may not have been written yet.
        self._changed = self._changed or self._number > self._written
        text = self._text()
        if text is not None:
            self._write(self._number, text)

    def _text(self) -> str | None:
        """The file's new content; None if the present one is right."""
        if not self._changed:
            return None
        known = set(self.users()) if self.users is not None else set()
        # Nobody at all means that the key file cannot be read at the moment.
        if known:
            for name in self.content["users"].keys() - known:
                del self.content["users"][name]
        self._changed = False
        self._number += 1
        return json.dumps({**self.content, "written": now()}, indent=1, sort_keys=True) + "\n"

    def _write(self, number: int, text: str) -> None:
        """Replace the file. A text that is older than the written one is left out."""
        part = self.path + ".part"
        with self._lock:
            if number <= self._written:
                return
            try:
                # What a crash left behind goes first, so that the mode is surely ours.
                if os.path.lexists(part):
                    os.unlink(part)
                with os.fdopen(
                    os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
                ) as out:
                    out.write(text)
                    out.flush()
                    os.fsync(out.fileno())
                os.replace(part, self.path)
            except OSError as error:
                # Tried again at the next round; said once.
                self._changed = True
                self._report("%s cannot be written, so counters will be lost at a restart: %s" % (self.path, error))
                return
            self._written, self._reported = number, ""

    def _read(self) -> None:
        """Go on from the file, if there is a good one."""
        try:
            with open(self.path, encoding="utf-8") as handle:
                text = handle.read(LARGEST + 1)
            if len(text) > LARGEST:
                raise ValueError("it is too large")
            self.content = checked(json.loads(text))
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            aside = self.path + ".damaged"
            try:
                os.replace(self.path, aside)
            except OSError as second:
                aside = "(not moved: %s)" % second
            LOG.warning("%s cannot be used (%s); it is now %s, and counting begins anew", self.path, error, aside)

    def _report(self, message: str) -> None:
        if message != self._reported:
            LOG.error("%s", message)
            self._reported = message


def checked(content: Any) -> dict[str, Any]:
    """The content of a file, field by field; ValueError if it is not what is written here."""
    if not isinstance(content, dict) or not isinstance(content.get("users"), dict):
        raise ValueError("it has no users")
    users = {}
    for name, entry in content["users"].items():
        models = entry.get("models", {}) if isinstance(entry, dict) else None
        if not isinstance(models, dict):
            raise ValueError("the entry of a user is none")
        users[name] = {
            **numbers(entry),
            "last": str(entry.get("last", ""))[:20],
            "models": {model: numbers(item) for model, item in list(models.items())[: MODELS + 1]},
        }
    return {"since": str(content.get("since", ""))[:20], "users": users}


def numbers(entry: Any) -> dict[str, int]:
    """Counters of one entry."""
    found = {}
    for name in COUNTERS:
        value = entry.get(name, 0) if isinstance(entry, dict) else None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= HIGHEST:
            raise ValueError("%s is no number" % name)
        found[name] = value
    return found
