"""Waiting with a deadline: what every engine's stream does between two chunks. It knows no engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from steper_ray.errors import GenerationError

T = TypeVar("T")


class Deadline:
    """The end of the time one generation may take, from the moment this is made. Needs a running loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._at = asyncio.get_running_loop().time() + seconds

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """The result, or GenerationError when the time is over; then the awaitable has been cancelled."""
        try:
            async with asyncio.timeout_at(self._at):
                return await awaitable
        except TimeoutError:
            raise GenerationError(
                f"the generation did not end within {self._seconds:g} s (engine.timeout_s)"
            ) from None
