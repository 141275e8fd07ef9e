"""Questions that kill engines: who is suspected, asked alone and given up, and which deaths count. No Ray."""

import asyncio
import random

import pytest

from steper_ray.distillation.engine_log import EngineLog
from steper_ray.distillation.suspects import GIVE_UP, SUSPECT, History, Life
from steper_ray.distillation.turns import Turns
from steper_ray.errors import EngineDeadError

LIMIT = 5


def life(*, done=(), left=(), alone=()):
    return Life(frozenset(done), frozenset(left), frozenset(alone))


def test_what_was_in_flight_at_two_deaths_is_suspected_until_it_is_done():
    company = life(done="a", left="bc")
    assert [History([company]).killed_alone(key) for key in "abc"] == [None, None, None]
    history = History([company, company])
    assert [history.killed_alone(key) for key in "abcd"] == [None, 0, 0, None]
    history = History([company, company, life(done="b", left="c", alone="c")])
    assert [history.killed_alone(key) for key in "bc"] == [None, 1]
    done = [company, company, life(done="b")]
    assert History([*done, company]).killed_alone("b") is None
    assert History([*done, company, company]).killed_alone("b") == 0


def test_what_killed_alone_is_a_suspect_at_once():
    assert History([life(left="b", alone="b")]).killed_alone("b") == 1


def test_only_deaths_alone_give_a_question_up_and_they_explain_those_in_company():
    company, alone = life(left="abc"), life(done="a", left="b", alone="b")
    assert History([company] * 5).given_up("a") is None
    assert History([company] * 5).explained == 0
    assert History([company, alone]).given_up("b") is None
    assert History([company, alone]).explained == 0
    assert GIVE_UP == 2
    history = History([company, alone, life(left="z"), alone])
    assert history.given_up("b") == 3
    assert history.given_up("a") is None
    assert history.explained == 3  # all but that of z


async def order_of(turns, *suspicions):
    """The numbers of the turns in the order they began, each with those that were under way with it."""
    began, now = [], set()

    async def one(number, killed):
        async with turns.turn(killed) as alone:
            now.add(number)
            began.append((number, alone, frozenset(now) - {number}))
            for _ in range(3):
                await asyncio.sleep(0)
            now.remove(number)

    await asyncio.gather(*(one(number, killed) for number, killed in enumerate(suspicions)))
    return began


async def test_turns_are_given_in_order_and_no_more_than_there_are_slots():
    began = await order_of(Turns(3), *[None] * 10)
    assert [number for number, _, _ in began] == list(range(10))
    assert max(len(company) for _, _, company in began) == 2
    assert not any(alone for _, alone, _ in began)


async def test_suspects_go_first_and_alone():
    began = await order_of(Turns(3), None, 0, None, 0, None)
    assert [number for number, _, _ in began] == [1, 3, 0, 2, 4]
    assert [alone for _, alone, _ in began] == [True, True, False, False, False]
    assert [company for _, _, company in began[:2]] == [frozenset(), frozenset()]


async def test_a_suspect_that_comes_later_waits_for_those_under_way_but_not_for_those_that_wait():
    turns, began = Turns(2), []

    async def one(name, killed, until):
        async with turns.turn(killed):
            began.append(name)
            await until.wait()

    go, never_mind = asyncio.Event(), asyncio.Event()
    never_mind.set()
    first = [asyncio.create_task(one(n, None, go)) for n in range(2)]
    rest = [asyncio.create_task(one(n, None, never_mind)) for n in range(2, 5)]
    while len(began) < 2:
        await asyncio.sleep(0)
    suspect = asyncio.create_task(one("suspect", 0, never_mind))
    for _ in range(5):
        await asyncio.sleep(0)
    assert began == [0, 1]
    go.set()
    await asyncio.gather(*first, *rest, suspect)
    assert began == [0, 1, "suspect", 2, 3, 4]


@pytest.mark.parametrize(
    ("suspicions", "order"),
    [
        ((0, 0, 1, None), [0, 2, 1, 3]),  # a suspect that has not killed yet stands witness
        ((1, None, None), [1, 0, 2]),  # or a question that is no suspect
        ((1, 1), [0, 1]),  # or nobody, where there is nobody else
    ],
)
async def test_before_a_killer_is_asked_again_the_engine_must_survive_another_question(suspicions, order):
    began = await order_of(Turns(2), *suspicions)
    assert [number for number, _, _ in began] == order
    assert began[0][1] is True


async def test_a_killer_is_not_asked_at_the_same_point_of_an_engines_life_again():
    killed = [life(left="abc"), life(done="a", left="b", alone="b")]
    for survived, order in ((1, [1, 2, 0, 3]), (0, [1, 0, 2, 3]), (2, [1, 0, 2, 3])):
        history = History([*killed[:1], Life(killed[1].done, killed[1].left, killed[1].alone, survived)])
        began = await order_of(Turns(2, history.witnesses), 1, 0, None, None)
        assert [number for number, _, _ in began] == order


def log_in(tmp_path, limit=LIMIT):
    return EngineLog(tmp_path / "engines", limit)


def test_the_log_tells_what_was_in_flight_whatever_cut_it_short(tmp_path):
    notes, history = log_in(tmp_path).started()
    assert history.killed_alone("a") is None
    awkward = 'line\n"ünï" ,'
    for key in ("a", "b", awkward):
        notes.asked(key, alone=False)
    notes.done("a")
    (file,) = (tmp_path / "engines").iterdir()
    with file.open("ab") as stream:
        stream.write(b'["done", "b')
    second, history = log_in(tmp_path).started()
    assert [history.killed_alone(key) for key in ("a", "b", awkward)] == [None] * 3
    for key in ("b", awkward):
        second.asked(key, alone=False)
    _, history = log_in(tmp_path).started()
    assert [history.killed_alone(key) for key in ("a", "b", awkward)] == [None, 0, 0]


def test_samples_of_a_question_are_suspected_together(tmp_path):
    for _ in range(SUSPECT):
        notes, _ = log_in(tmp_path).started()
        for _ in range(3):
            notes.asked("q", alone=False)
        notes.done("q")
    _, history = log_in(tmp_path).started()
    assert history.killed_alone("q") == 0


def test_deaths_that_nobody_explains_end_the_build_with_an_engines_last_words(tmp_path):
    log = log_in(tmp_path)
    for number in range(LIMIT):
        notes, _ = log.started()
        notes.asked(str(number), alone=True)
        notes.died(f"word {number}")
    with pytest.raises(EngineDeadError, match=f"started {LIMIT} times and died.*word {LIMIT - 1}"):
        log.started()
    log.clear()
    log.started()


async def live(log, keys, kills, in_flight, done):
    """One engine's life over the questions, with the project's own parts in the actor's order. True: all are done."""
    notes, history = log.started()
    turns, asked, death = Turns(in_flight, history.witnesses), 0, asyncio.Event()

    async def one(key):
        nonlocal asked
        if history.given_up(key) is not None:
            done[key] = "given up"
            return
        async with turns.turn(history.killed_alone(key)) as alone:
            notes.asked(key, alone)
            asked += 1
            number = asked
            await asyncio.sleep(0)
            if kills(key, number):
                death.set()
            if death.is_set():  # a process that is gone does nothing more, least of all ends its turn
                await asyncio.Event().wait()
            done[key] = "answered"
            notes.done(key)

    all_done = asyncio.gather(*(one(key) for key in keys))
    dead = asyncio.create_task(death.wait())
    await asyncio.wait([all_done, dead], return_when=asyncio.FIRST_COMPLETED)
    for task in (all_done, dead):
        task.cancel()
    await asyncio.gather(all_done, dead, return_exceptions=True)
    return not death.is_set()


async def lives(log, keys, kills, in_flight):
    """The fate of each question, and how many engines died."""
    deaths = 0
    while not await live(log, keys, kills, in_flight, done := {}):
        deaths += 1
        assert deaths < 100
    return done, deaths


@pytest.mark.parametrize("seed", range(40))
async def test_poisoned_questions_are_given_up_wherever_they_stand_and_all_others_are_answered(
    tmp_path, seed
):
    rng = random.Random(seed)
    keys = [f"q{n}" for n in range(rng.randint(1, 24))]
    poison = set(rng.sample(keys, min(len(keys), rng.randint(1, 4))))
    if len(poison) == len(keys) > 1:  # an engine that dies of everything is another test's
        poison.pop()
    in_flight = rng.choice([1, 2, 8, 64])
    done, deaths = await lives(log_in(tmp_path), keys, lambda key, _: key in poison, in_flight)
    assert done == {key: "given up" if key in poison else "answered" for key in keys}
    assert deaths <= (SUSPECT + GIVE_UP) * len(poison)


@pytest.mark.parametrize("in_flight", [1, 3, 64])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
async def test_an_engine_that_dies_of_anything_ends_the_build_and_is_blamed_on_no_question(
    tmp_path, in_flight, at
):
    """It dies at the n-th question of each life, whichever that is."""
    keys = [f"q{n}" for n in range(30)]
    with pytest.raises(EngineDeadError, match=f"started {LIMIT} times"):
        await lives(log_in(tmp_path), keys, lambda _, asked: asked == at, in_flight)


async def test_after_one_accident_nothing_is_asked_alone(tmp_path):
    log, accident = log_in(tmp_path), iter([True])
    await lives(log, [f"q{n}" for n in range(12)], lambda _, asked: asked == 5 and next(accident, False), 4)
    assert not any(b'"alone"' in path.read_bytes() for path in log.folder.iterdir())


async def test_accidents_cost_no_question(tmp_path):
    keys, accidents = [f"q{n}" for n in range(12)], iter([True, True, True])
    done, deaths = await lives(
        log_in(tmp_path), keys, lambda _, asked: asked == 5 and next(accidents, False), 4
    )
    assert set(done.values()) == {"answered"}
    assert deaths == 3
