"""An endpoint that is busy, breaks off or restarts: what is asked again and how many requests it is sent at once."""

import asyncio
import logging
from contextlib import AsyncExitStack, aclosing, suppress

import pytest
from fake_time import FakeTime
from http_endpoint import (
    ANSWER,
    BREAK,
    KEY,
    Endpoint,
    clients,
    piece,
    refusal,
    serving,
    unanswered,
    url_of,
)

from steper_ray.config import SamplingConfig
from steper_ray.core.errors import EngineSetupError, GenerationError
from steper_ray.generation import generate

GREEDY = SamplingConfig(max_tokens=12)
BUSY = (429, refusal(f"slow down, {KEY}"))
HANGING = (200, [piece(" Bo"), None])


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ENDPOINT_KEY", KEY)


@pytest.fixture
async def endpoint(environment):
    async with serving(Endpoint()) as endpoint:
        yield endpoint


@pytest.fixture
async def opened(endpoint):
    async with clients(endpoint.url) as opened:
        yield opened


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
async def test_an_endpoint_that_is_busy_for_a_moment_is_asked_again(endpoint, opened, status):
    endpoint.replies = [(status, refusal("not now")), ANSWER]
    generator = opened()
    assert (await generate(generator, "Q", GREEDY)).text == " Bo was"
    assert len(generator.time.pauses) == 1
    assert 0 <= generator.time.pauses[0] <= 0.5
    assert generator.limiter.limit == (4 if status in (429, 503, 529) else 8)


@pytest.mark.parametrize(("name", "value"), [("retry-after", "7"), ("retry-after-ms", "7000")])
async def test_the_pause_that_an_endpoint_asks_for_is_kept_by_all(endpoint, name, value):
    endpoint.replies = [(*BUSY, {name: value}), ANSWER, ANSWER]
    started, scripted = [], endpoint.reply

    class Long(FakeTime):
        """Holds the refused request back until the other one has come."""

        async def sleep(self, seconds):
            await super().sleep(seconds if seconds <= 1 else 0)
            if seconds > 1:
                self.pauses[-1] = seconds
                await other.wait()

    async def reply():
        started.append(generator.time.now)
        if len(started) == 2:
            other.set()
        return await scripted()

    endpoint.reply, other = reply, asyncio.Event()
    async with clients(endpoint.url, Long) as opened:
        generator = opened(max_batch=1)
        await asyncio.gather(*(generate(generator, "Q", GREEDY) for _ in range(2)))
        assert started[:2] == pytest.approx([0, 7])
        assert 7 <= max(generator.time.pauses) <= 7.5


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_an_endpoint_that_stays_broken_fails_the_request_alone_after_its_attempts(
    endpoint, opened, status
):
    endpoint.replies = [(status, refusal("out of memory"))] * 9
    generator = opened(retries=3)
    with pytest.raises(GenerationError, match="out of memory") as raised:
        await generate(generator, "Q", GREEDY)
    assert type(raised.value) is GenerationError
    assert len(endpoint.bodies) == 4
    assert generator.limiter.in_use == 0


async def test_a_pause_beyond_the_timeout_is_an_error_at_once(endpoint, opened):
    endpoint.replies = [(*BUSY, {"retry-after": "100"})]
    generator = opened(timeout_s=99)
    with pytest.raises(GenerationError, match="slow down"):
        await generate(generator, "Q", GREEDY)
    assert generator.time.pauses == []


@pytest.mark.parametrize(
    "broken",
    [[], [BREAK], [refusal("the engine restarts")], [refusal("try later", 503)], [piece(""), BREAK]],
)
async def test_a_stream_that_breaks_before_its_first_token_is_asked_for_again(endpoint, opened, broken):
    endpoint.replies = [(200, broken), ANSWER]
    assert (await generate(opened(), "Q", GREEDY)).text == " Bo was"


@pytest.mark.parametrize("broken", [[BREAK], [refusal("the engine restarts")], [refusal("later", 503)], []])
async def test_nothing_that_was_given_out_is_repeated(endpoint, opened, broken):
    endpoint.replies = [(200, [piece(" Bo"), *broken]), ANSWER]
    chunks = opened().stream("Q", GREEDY)
    assert (await anext(chunks)).text == " Bo"
    with pytest.raises(GenerationError, match=r"broke off|ended the stream"):
        await anext(chunks)
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize(
    "reply",
    [
        (429, refusal("You exceeded your current quota", "insufficient_quota")),
        (402, refusal("Insufficient balance")),
        (200, [refusal("You exceeded your current quota", "insufficient_quota")]),
    ],
)
async def test_a_used_up_quota_stops_everything_and_is_not_asked_again(endpoint, opened, reply):
    endpoint.replies = [reply]
    generator = opened()
    with pytest.raises(EngineSetupError, match=r"quota of the key in \$ENDPOINT_KEY.*engine\.url"):
        await generate(generator, "Q", GREEDY)
    assert generator.limiter.limit == 8


@pytest.mark.parametrize(("word", "attempts"), [("false", 1), ("true", 2)])
async def test_the_endpoints_own_word_about_retries_counts(endpoint, opened, word, attempts):
    status = 400 if word == "true" else 500
    endpoint.replies = [(status, refusal("no"), {"x-should-retry": word})] * 2
    with pytest.raises(GenerationError, match="no"):
        await generate(opened(retries=1), "Q", GREEDY)
    assert len(endpoint.bodies) == attempts


@pytest.mark.usefixtures("environment")
async def test_nobody_at_the_url_fails_the_request_alone_after_the_attempts():
    with unanswered() as listener:
        url = url_of(listener)
        async with clients(url) as opened:
            generator = opened(retries=2)
            with pytest.raises(GenerationError, match=rf"cannot reach {url} .*engine\.url") as raised:
                await generate(generator, "Q", GREEDY)
            assert type(raised.value) is GenerationError
            assert len(generator.time.pauses) == 2


@pytest.mark.usefixtures("environment")
async def test_an_endpoint_that_restarts_is_waited_for():
    endpoint, listener = Endpoint(), unanswered()
    endpoint.replies = [ANSWER]

    class Restart(FakeTime):
        async def sleep(self, seconds):
            await super().sleep(seconds)
            if len(self.pauses) == 3:
                await stack.enter_async_context(serving(endpoint, listener))

    async with AsyncExitStack() as stack:
        generator = (await stack.enter_async_context(clients(url_of(listener), Restart)))()
        assert (await generate(generator, "Q", GREEDY)).text == " Bo was"
        assert len(generator.time.pauses) == 3


async def test_a_burst_of_refusals_halves_the_limit_once_and_is_told_once(endpoint, opened, caplog):
    caplog.set_level(logging.WARNING)
    endpoint.replies = [BUSY] * 8 + [ANSWER] * 8
    generator = opened()
    arrived = asyncio.Barrier(8)
    scripted = endpoint.reply

    async def together():
        reply = await scripted()
        if reply[0] == 429:
            await arrived.wait()
        return reply

    endpoint.reply = together
    done = await asyncio.gather(*(generate(generator, f"prompt {n}", GREEDY) for n in range(8)))
    assert [completion.text for completion in done] == [" Bo was"] * 8
    assert generator.limiter.limit == 4
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("steper_ray")]
    assert line == "the endpoint of tiny answers 429: asking again, 4 requests at once for now"


async def test_a_generation_that_runs_into_the_timeout_halves_the_limit(endpoint, opened):
    endpoint.replies = [HANGING]
    generator = opened(timeout_s=0.2)
    with pytest.raises(GenerationError, match=r"engine\.timeout_s"):
        await generate(generator, "Q", GREEDY)
    assert (generator.limiter.limit, generator.limiter.in_use) == (4, 0)


async def test_the_wait_for_a_place_is_no_part_of_the_timeout(endpoint, opened):
    endpoint.replies = [ANSWER]
    generator = opened(timeout_s=0.5, max_batch=1)
    with await generator.limiter.acquire():
        waiting = asyncio.create_task(generate(generator, "Q", GREEDY))
        await asyncio.sleep(0.6)
        assert not waiting.done()
    assert (await waiting).text == " Bo was"


async def test_every_end_of_a_stream_frees_its_place(endpoint, opened):
    generator = opened(max_batch=1, retries=0)
    endpoint.replies = [HANGING, HANGING, BUSY, (200, [piece(" Bo"), BREAK]), ANSWER]
    async with aclosing(generator.stream("Q", GREEDY)) as chunks:  # the reader leaves
        await anext(chunks)
        assert generator.limiter.in_use == 1
    assert generator.limiter.in_use == 0
    cancelled = asyncio.create_task(generate(generator, "Q", GREEDY))
    while len(endpoint.bodies) < 2:
        await asyncio.sleep(0)
    waiting = asyncio.create_task(generate(generator, "Q", GREEDY))
    await asyncio.sleep(0)
    for task in (waiting, cancelled):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert generator.limiter.in_use == 0
    for _ in range(2):
        with pytest.raises(GenerationError):
            await generate(generator, "Q", GREEDY)
        assert generator.limiter.in_use == 0
    assert (await generate(generator, "Q", GREEDY)).text == " Bo was"
    assert len(endpoint.bodies) == 5


async def test_tokens_are_booked_with_the_longest_completion_and_settled_by_the_usage(endpoint, opened):
    endpoint.replies = [BUSY, ANSWER, ANSWER]
    generator = opened(tokens_per_minute=60)
    took = []
    acquire, leave = generator.limiter.acquire, generator.limiter.leave

    async def noted(tokens=0):
        took.append(tokens)
        return await acquire(tokens)

    def settled(slot):
        took.append(slot.tokens - slot.unused)
        leave(slot)

    generator.limiter.acquire, generator.limiter.leave = noted, settled
    await generate(generator, "four" * 5, GREEDY)
    async with aclosing(generator.stream("four" * 5, GREEDY)) as chunks:  # cut: its usage never comes
        await anext(chunks)
    assert took == [5 + 12, 0, 5 + 12, 7 + 2, 5 + 12, 5 + 1]


class Narrow(Endpoint):
    """Answers when it is told to, and refuses what comes while `capacity` requests are held."""

    capacity = 3

    def __init__(self):
        super().__init__()
        self.held, self.refused, self.most = [], 0, 0

    async def reply(self):
        self.most = max(self.most, len(self.held) + 1)
        if len(self.held) == self.capacity:
            self.refused += 1
            return *BUSY, {}
        gate = asyncio.Event()
        self.held.append(gate)
        await gate.wait()
        return *ANSWER, {}


@pytest.mark.usefixtures("environment")
async def test_an_endpoints_capacity_is_found_and_kept_close_to():
    async with serving(Narrow()) as endpoint, clients(endpoint.url) as opened:
        generator = opened(max_batch=6, retries=100)
        limiter, limits = generator.limiter, []
        tasks = {asyncio.create_task(generate(generator, "Q", GREEDY)) for _ in range(120)}
        undone = set(tasks)
        while undone:
            # Every request that may be under way has come to the endpoint: it finishes the oldest one.
            full = limiter.in_use >= min(limiter.limit, len(undone))
            if endpoint.held and full and len(endpoint.held) == limiter.in_use:
                limits.append(limiter.limit)
                endpoint.held.pop(0).set()
                _, undone = await asyncio.wait(undone, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(0)
        assert {task.result().text for task in tasks} == {" Bo was"}
        assert endpoint.most <= 6
        steady = limits[40:]
        assert set(steady) <= {2, 3, 4}
        assert 2.2 <= sum(steady) / len(steady) <= 3.2, sum(steady)
        assert endpoint.refused < 40
