"""What one process makes of its questions: turns, outages, suspects, and failures that cost nobody else."""

import asyncio
from dataclasses import replace

import pytest
from distilled import question, rollout_set, trajectory

from steper_ray.core.errors import EngineDeadError, EngineSetupError, GenerationError, RetrievalError
from steper_ray.rollouts.asker import LEAST_FAILURES, Asker
from steper_ray.rollouts.deaths import Verdicts
from steper_ray.rollouts.teachers import Earlier
from steper_ray.schema import StopReason

TAG = (0, 0)
NOTHING = Earlier(None, (), (), frozenset())


class Notes:
    """Remembers what was noted, in order."""

    def __init__(self):
        self.noted = []

    async def asked(self, key, alone):
        self.noted.append(("alone" if alone else "asked", key))

    async def done(self, key, tag, work):
        self.noted.append(("done", key))

    async def dying(self, words):
        self.noted.append(("dying", words))


class Teacher:
    """Does with a question as `does` says: an exception is raised, a stop reason ends it."""

    sample = 0

    def __init__(self, does=lambda q: StopReason.ANSWERED):
        self.does, self.asked, self.now, self.most = does, [], 0, 0

    async def run(self, question):
        self.asked.append(question.id)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        does = self.does(question)
        if isinstance(does, Exception):
            raise does
        return replace(
            trajectory(int(question.id[1:])), stop_reason=does, error="busy" if does.is_owed else None
        )


class DeadError(Exception):
    pass


async def die(error):
    raise DeadError(str(error))


@pytest.fixture
def spec(tmp_path):
    return rollout_set(tmp_path, [trajectory(1)]).spec


async def ask(spec, teacher, numbers, in_flight=4, verdicts=Verdicts(frozenset(), {})):  # noqa: B008
    notes = Notes()
    asker = Asker(notes, verdicts, in_flight, die)
    asks = (asker.ask(spec, question(n), [teacher], NOTHING, TAG) for n in numbers)
    return await asyncio.gather(*asks), notes


@pytest.mark.parametrize(
    "failure",
    [
        StopReason.GENERATOR_FAILED,
        RetrievalError("no shard"),
        ZeroDivisionError("a bug"),
        GenerationError("oom"),
    ],
)
async def test_one_questions_failure_of_any_kind_is_owed_and_costs_no_other(spec, failure):
    found, notes = await ask(
        spec, Teacher(lambda q: failure if q.id == "q2" else StopReason.ANSWERED), range(1, 5)
    )
    assert [one.owed is None for one in found] == [True, False, True, True]
    assert [len(one.finals) for one in found] == [1, 0, 1, 1]
    said = "busy" if isinstance(failure, StopReason) else str(failure)
    assert said in found[1].owed.error
    assert found[1].owed.attempts == 1
    assert sorted(key for event, key in notes.noted if event == "done") == ["q1~0", "q2~0", "q3~0", "q4~0"]


async def test_a_setting_that_refuses_everything_ends_the_run_and_a_dead_engine_its_process(spec):
    with pytest.raises(EngineSetupError, match="no such model"):
        await ask(spec, Teacher(lambda q: EngineSetupError("no such model")), [1])
    with pytest.raises(DeadError, match="gone"):
        await ask(spec, Teacher(lambda q: EngineDeadError("gone")), [1])


async def test_so_many_are_asked_at_once_and_a_suspect_alone(spec):
    class Alone(Teacher):
        async def run(self, question):
            if question.id == "q5":
                assert self.now == 0
            return await super().run(question)

    teacher = Alone()
    found, notes = await ask(spec, teacher, range(1, 12), verdicts=Verdicts(frozenset({"q5~0"}), {}))
    assert all(one.owed is None for one in found)
    assert teacher.most == 4
    assert [key for event, key in notes.noted if event == "alone"] == ["q5~0"]


async def test_a_question_given_up_is_owed_without_being_asked(spec):
    teacher = Teacher()
    found, _ = await ask(spec, teacher, [1, 2], verdicts=Verdicts(frozenset(), {"q2~0": 4}))
    assert teacher.asked == ["q1"]
    assert "engines died 4 times while this was asked" in found[1].owed.error


async def test_an_outage_costs_so_many_questions_their_retries_and_no_more(spec):
    teacher = Teacher(lambda q: StopReason.GENERATOR_FAILED)
    found, _ = await ask(spec, teacher, range(100))
    assert len(teacher.asked) == LEAST_FAILURES
    left = [
        one.owed
        for one in found
        if one.owed.error.startswith("not asked, because the 32 questions before it")
    ]
    assert len(left) == 100 - LEAST_FAILURES
    assert {one.attempts for one in left} == {0}


async def test_a_failure_now_and_then_is_no_outage(spec):
    teacher = Teacher(lambda q: StopReason.ANSWERED if q.id.endswith("0") else StopReason.GENERATOR_FAILED)
    await ask(spec, teacher, range(100))
    assert len(teacher.asked) == 100
