"""Events in parts: all of them, in order, the first at once, and none held up for long."""

import ast
import asyncio
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from steper_ray.reasoning import ReasoningDelta, StepStarted
from steper_ray.serving.gathering import PARTS_PER_SECOND, gathered, joined, part_seconds

HOUR = 3600.0


def words(text, index=1):
    return [ReasoningDelta(index, word) for word in text.split()]


async def told(events, log=None):
    try:
        for event in events:
            if isinstance(event, asyncio.Event):
                await event.wait()
            elif isinstance(event, Exception):
                raise event
            else:
                yield event
    finally:
        if log is not None:
            log.append("closed")


async def test_the_first_event_comes_at_once_and_what_comes_meanwhile_together():
    gate = asyncio.Event()
    events = [StepStarted(1, "q"), gate, *words("a b c"), *words("d", 2), StepStarted(3, "r")]
    async with aclosing(gathered(told(events), lambda: 0.02)) as parts:
        assert await anext(parts) == [StepStarted(1, "q")]
        gate.set()
        rest = [event async for part in parts for event in part]
    assert rest == [ReasoningDelta(1, "abc"), ReasoningDelta(2, "d"), StepStarted(3, "r")]


async def test_a_part_waits_for_its_time_while_events_are_read_on():
    read = []

    async def noted():
        for event in [StepStarted(1, "q"), *words("a b c d")]:
            read.append(event)
            yield event
            await asyncio.sleep(0)

    async with aclosing(gathered(noted(), lambda: HOUR)) as parts:
        await anext(parts)
        waiting = asyncio.ensure_future(anext(parts))
        while len(read) < 5:
            await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting


async def test_the_end_is_not_waited_for():
    parts = gathered(told([StepStarted(1, "q"), *words("a b")]), lambda: HOUR)
    assert [event async for part in parts for event in part] == [StepStarted(1, "q"), ReasoningDelta(1, "ab")]


async def test_an_error_comes_after_the_events_before_it():
    parts = gathered(told([*words("a"), ValueError("broken")]), lambda: 0.0)
    assert await anext(parts) == words("a")
    with pytest.raises(ValueError, match="broken"):
        await anext(parts)


async def test_closing_the_parts_closes_the_events():
    log = []
    parts = gathered(told([StepStarted(1, "q"), asyncio.Event()], log), lambda: 0.0)
    await anext(parts)
    await parts.aclose()
    assert log == ["closed"]


def test_every_stream_in_the_package_is_read_within_aclosing():
    """A stream that is left would be closed by the garbage collector, some time: what it holds runs on until then."""
    import steper_ray

    loops = []
    for file in Path(steper_ray.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            is_async = isinstance(node, ast.AsyncFor) or (
                isinstance(node, ast.comprehension) and node.is_async
            )
            if is_async:
                loops.append((file.name, ast.unparse(node.iter), isinstance(node.iter, ast.Name)))
    assert len(loops) > 9
    assert [(name, what) for name, what, is_held in loops if not is_held] == []


def test_joining_keeps_every_word_and_what_is_no_text():
    events = [*words("a b"), StepStarted(2, "q"), *words("c"), *words("d e", 2)]
    assert joined(events) == [
        ReasoningDelta(1, "ab"), StepStarted(2, "q"), ReasoningDelta(1, "c"), ReasoningDelta(2, "de")
    ]  # fmt: skip
    assert joined([]) == []


def test_many_streams_share_the_parts_of_a_second_and_none_waits_long():
    assert part_seconds(1) < 0.05  # text seems to flow
    for streams in (8, 16, 32):
        assert streams / part_seconds(streams) == pytest.approx(PARTS_PER_SECOND)
    assert part_seconds(1000) == part_seconds(500) <= 0.25
