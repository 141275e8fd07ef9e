"""Waiting with a deadline: what every engine's stream does between two chunks. It knows no engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from steper_ray.core.errors import GenerationError

T = TypeVar("T")


class DeadlineError(GenerationError):
    """The time of one generation is over."""


class Pulse:
    """Time of an engine's last answer to any request: while it answers, those in its queue wait for their turn."""

    def __init__(self) -> None:
        self._at = float("-inf")

    def beat(self) -> None:
        """The engine has just answered. Needs a running loop."""
        self._at = asyncio.get_running_loop().time()

    @property
    def at(self) -> float:
        return self._at


class Deadline:
    """The end of the time one generation may take, from the moment this is made. Needs a running loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._clock = asyncio.get_running_loop().time
        self._at = self._clock() + seconds

    @property
    def left(self) -> float:
        """Seconds until the end, below 0 after it."""
        return self._at - self._clock()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time spent inside does not count."""
        started = self._clock()
        try:
            yield
        finally:
            self._at += self._clock() - started

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """The result, or DeadlineError when the time is over; then the awaitable has been cancelled."""
        try:
            async with asyncio.timeout_at(self._at):
                return await awaitable
        except TimeoutError:
            raise self._over() from None

    async def begin(self, awaitable: Awaitable[T], pulse: Pulse) -> T:
        """As `wait`, for a request's first answer: the time spent in the engine's queue does not count.

        Until that answer the time is over only if the engine has answered no request in all of it.
        """
        first = asyncio.ensure_future(awaitable)
        try:
            while not first.done() and (left := self._idle_until(pulse) - self._clock()) > 0:
                await asyncio.wait({first}, timeout=left)
            if not first.done():
                raise self._over()
        finally:
            if not first.done():
                first.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await first
        self._at = self._clock() + self._seconds
        return first.result()

    def _idle_until(self, pulse: Pulse) -> float:
        return max(self._at, pulse.at + self._seconds)

    def _over(self) -> DeadlineError:
        return DeadlineError(f"the generation did not end within {self._seconds:g} s (engine.timeout_s)")
