"""Several awaitables together: all results, or the first error and none of them left running."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def together(asks: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order. An error, or a cancellation, cancels what is still under way and waits for its end."""
    tasks = [asyncio.ensure_future(ask) for ask in asks]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
