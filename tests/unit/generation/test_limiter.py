"""The limit of requests at once: what widens and halves it, who comes first, and the budgets of a minute."""

import asyncio

import pytest
from fake_time import FakeTime

from steper_ray.generation.endpoint.limiter import Limiter


def limiter(ceiling=64, **settings):
    time = FakeTime()
    made = Limiter(ceiling, clock=time, sleep=time.sleep, **settings)
    made.time = time
    return made


async def settled():
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def filled(limits):
    """The slots that the limiter gives out at once, with one more request waiting in the line."""
    slots = [await limits.acquire() for _ in range(limits.limit)]
    waiting = asyncio.create_task(limits.acquire())
    await settled()
    assert not waiting.done()
    return slots, waiting


async def leave(slots, how):
    for slot in slots:
        with slot:
            how(slot)
    await settled()


def served(slot):
    slot.accepted()


def refused(slot):
    slot.overloaded()


def untold(slot):
    pass


async def narrowed():
    """A limiter whose limit was halved from 8 to 4."""
    limits = limiter()
    slots, waiting = await filled(limits)
    await leave(slots, refused)
    await leave([await waiting], untold)
    return limits


async def test_it_begins_with_few_requests_and_never_passes_the_ceiling():
    assert limiter(64).limit == 8
    assert limiter(3).limit == 3
    limits = limiter(10)
    for _ in range(5):
        slots, waiting = await filled(limits)
        assert limits.in_use == limits.limit <= 10
        await leave(slots, served)
        await leave([await waiting], served)
    assert limits.limit == 10


async def test_until_the_first_refusal_a_round_of_served_requests_doubles_the_limit():
    limits = limiter()
    slots, _ = await filled(limits)
    await leave(slots, served)
    assert limits.limit == 16


async def test_after_a_refusal_a_round_of_served_requests_adds_about_one():
    limits = await narrowed()
    for done in range(1, 11):
        slots, waiting = await filled(limits)
        await leave(slots, served)
        await leave([await waiting], untold)
        assert 4 + 0.85 * done - 1 < limits.limit <= 4 + done


async def test_requests_that_nobody_waits_behind_leave_the_limit():
    limits = limiter()
    await leave([await limits.acquire() for _ in range(8)], served)
    assert limits.limit == 8


async def test_a_burst_of_refusals_halves_once_and_the_next_round_again():
    limits = limiter()
    slots, waiting = await filled(limits)
    await leave(slots, refused)
    assert limits.limit == 4
    later = [await waiting, await limits.acquire()]
    await leave(later, refused)
    assert limits.limit == 2


async def test_answers_to_requests_from_before_a_refusal_do_not_widen_the_limit():
    limits = limiter()
    slots, waiting = await filled(limits)
    await leave(slots[:1], refused)
    await leave(slots[1:], served)
    assert limits.limit == 4
    await leave([await waiting], untold)


async def test_one_request_at_once_is_always_allowed():
    limits = limiter()
    for _ in range(6):
        await leave([await limits.acquire()], refused)
    assert limits.limit == 1


async def test_requests_start_in_the_order_they_came():
    limits, started = limiter(2), []

    async def request(number):
        with await limits.acquire() as slot:
            started.append(number)
            await asyncio.sleep(0)
            slot.accepted()

    await asyncio.gather(*map(request, range(20)))
    assert started == list(range(20))


@pytest.mark.parametrize("which", [0, 1])
async def test_a_request_that_is_cancelled_in_the_line_leaves_it_to_the_others(which):
    limits = limiter(1)
    slot = await limits.acquire()
    waiting = [asyncio.create_task(limits.acquire()) for _ in range(2)]
    await settled()
    waiting[which].cancel()
    await settled()
    with slot:
        pass
    with await waiting[1 - which]:
        assert waiting[which].cancelled()
    assert limits.in_use == 0


async def test_an_error_frees_the_place():
    limits = limiter(1)
    with pytest.raises(ZeroDivisionError), await limits.acquire():
        raise ZeroDivisionError
    assert limits.in_use == 0


async def test_no_minute_holds_more_requests_than_the_setting():
    limits, started = limiter(requests_per_minute=30), []
    for _ in range(100):
        with await limits.acquire():
            started.append(limits.time.now)
    assert max(sum(at <= other < at + 60 for other in started) for at in started) == 30


async def test_a_request_waits_until_the_tokens_of_those_before_it_are_worked_off():
    limits, started = limiter(tokens_per_minute=600), []
    for tokens in (100, 300, 50, 0):
        with await limits.acquire(tokens):
            started.append(limits.time.now)
    assert started == pytest.approx([0, 10, 40, 45])


async def test_tokens_that_were_not_used_come_back_and_those_beyond_are_charged():
    limits = limiter(tokens_per_minute=600)
    for booked, used, expected in ((100, 20, 2), (100, 200, 22)):
        with await limits.acquire(booked) as slot:
            slot.used(used // 2)
            slot.used(used)
        with await limits.acquire():
            assert limits.time.now == pytest.approx(expected)


async def test_a_request_beyond_the_tokens_of_a_minute_is_not_kept_forever():
    limits = limiter(tokens_per_minute=10)
    with await limits.acquire(1000):
        pass
    with await limits.acquire():
        assert limits.time.now == pytest.approx(6000)


async def test_the_line_moves_on_when_a_request_gives_tokens_back():
    limits = limiter(tokens_per_minute=60)
    first = await limits.acquire(100)
    waiting = asyncio.create_task(limits.acquire())
    while limits.time.now == 0:
        await asyncio.sleep(0)
    with first:
        first.used(10)
    with await waiting:
        assert limits.time.now == pytest.approx(10)


async def test_nobody_starts_while_the_endpoint_wants_a_pause():
    limits = limiter()
    with await limits.acquire() as slot:
        slot.overloaded(7.5)
    with await limits.acquire():
        assert limits.time.now == pytest.approx(7.5)
