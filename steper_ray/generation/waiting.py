"""Waiting with a deadline: what every engine's stream does between two chunks. It knows no engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from steper_ray.errors import GenerationError

T = TypeVar("T")


class DeadlineError(GenerationError):
    """The time of one generation is over."""


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
            raise DeadlineError(
                f"the generation did not end within {self._seconds:g} s (engine.timeout_s)"
            ) from None
