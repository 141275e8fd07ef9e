"""Admission to an engine: `size` questions in company, or one alone. Knows event loops and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """At most `size` turns at once, first come, first served; a turn alone waits until all others have ended."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._slots = asyncio.Semaphore(size)
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def company(self) -> AsyncIterator[None]:
        async with self._slots:
            yield

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Takes every slot: behind those that wait now, before those that come later."""
        async with self._alone:
            taken = 0
            try:
                for _ in range(self._size):
                    await self._slots.acquire()
                    taken += 1
                yield
            finally:
                for _ in range(taken):
                    self._slots.release()


class Breaker:
    """Opens after `limit` failures in a row, so that an outage does not cost every question its retries."""

    def __init__(self, limit: int) -> None:
        self._limit, self._failures, self._last = limit, 0, ""

    def note(self, failure: str | None) -> None:
        """One question has ended: with the error that it is owed for, or None."""
        self._failures = 0 if failure is None else self._failures + 1
        self._last = failure or ""

    @property
    def reason(self) -> str | None:
        """Why nothing more is asked for now; None while it is closed."""
        if self._failures < self._limit:
            return None
        return f"not asked, because the {self._failures} questions before it failed: {self._last}"
