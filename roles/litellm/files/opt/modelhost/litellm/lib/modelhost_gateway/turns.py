"""Whose body is looked at next. The process has one thread, and a body of many small parts keeps it busy for long."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncIterator


class Turns:
    """One body of a user at a time, and after it a pause as long as it took: so one user's bodies, refused ones too,
    take at most half of the thread, and the others' requests come in between."""

    def __init__(self) -> None:
        #: A user's lock, as long as a body of theirs waits or is looked at.
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def of(self, user: str) -> AsyncIterator[None]:
        """This user's turn. Nothing may be awaited in it."""
        lock = self._locks.setdefault(user, asyncio.Lock())
        await lock.acquire()
        began = time.thread_time()
        try:
            yield
        finally:
            # The callback holds the lock until then.
            asyncio.get_running_loop().call_later(time.thread_time() - began, lock.release)
