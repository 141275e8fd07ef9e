"""A stream's events in fewer, larger parts: to pass one from process to process costs more than to write a token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from steper_ray.reasoning import Event, ReasoningDelta

#: Upper bound on stream chunks per second, across all streams: each costs the three processes on its way
#: more than the engine needs for a token. A few streams so grow faster than the eye can follow, many in longer
#: parts.
PARTS_PER_SECOND = 200
SHORTEST_PART_SECONDS, LONGEST_PART_SECONDS = 0.03, 0.25


def part_seconds(streams: int) -> float:
    """Seconds between two parts of one of `streams` streams."""
    return min(LONGEST_PART_SECONDS, max(SHORTEST_PART_SECONDS, streams / PARTS_PER_SECOND))


async def gathered(
    events: AsyncGenerator[Event, None], every_s: Callable[[], float]
) -> AsyncGenerator[list[Event], None]:
    """All events in their order, in lists of which one comes every `every_s()` seconds at most.

    The first event comes at once, and so do one after a pause and the last; text of one step is put together. The
    reasoning itself is never held up. Closing the parts closes the events.
    """
    queue: asyncio.Queue[Event | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    queue.put_nowait(event)
        finally:
            queue.put_nowait(None)

    reading = asyncio.create_task(read())
    clock = asyncio.get_running_loop()
    free_at = clock.time()
    try:
        going = True
        while going:
            part = [await queue.get()]
            if part[0] is not None:
                # No longer than there is something to wait for.
                await asyncio.wait({reading}, timeout=max(0.0, free_at - clock.time()))
            while part[-1] is not None and not queue.empty():
                part.append(queue.get_nowait())
            going = part[-1] is not None
            free_at = clock.time() + every_s()
            if passed_on := joined([event for event in part if event is not None]):
                yield passed_on
        await reading  # raises what the events raised
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.exception()  # seen: the reader has it, or has left


def joined(events: Sequence[Event]) -> list[Event]:
    """The events with neighbouring texts of one step as one."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if (
            isinstance(event, ReasoningDelta)
            and isinstance(last, ReasoningDelta)
            and last.index == event.index
        ):
            found[-1] = ReasoningDelta(event.index, last.text + event.text)
        else:
            found.append(event)
    return found
