"""An engine's deployment as the web side has it: what is asked again, what is refused at once, and who is asked."""

import asyncio
import threading
import time
from contextlib import aclosing

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentResponseGenerator

from steper_ray.core.errors import EngineSetupError
from steper_ray.reasoning import Begun, ReasoningDelta, StepDone, StepStarted
from steper_ray.schema import Step
from steper_ray.serving import handles
from steper_ray.serving.asking import EngineUnavailableError, OverloadedError
from steper_ray.serving.engine import Ask
from steper_ray.serving.handles import EngineClient

ASK = Ask("1", "Who?", 0.0, "student")
FIRST, LATER = [StepStarted(1, "q")], [ReasoningDelta(1, "word")]
DONE = Step(1, "q", (), "word")
STEP = [*FIRST, *LATER, StepDone(DONE)]


class Parts(DeploymentResponseGenerator):
    """A stream of parts that ends in an error, if there is one."""

    def __init__(self, *parts):
        self.parts, self.cancelled = list(parts), False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.parts:
            raise StopAsyncIteration
        if isinstance(part := self.parts.pop(0), BaseException):
            raise part
        return part

    def cancel(self):
        self.cancelled = True


class Handle:
    """Answers each call of a stream with the next of `streams`."""

    def __init__(self, *streams):
        self.asked, self.calls, self._streams = [], [], iter(streams)

    def options(self, *, stream):
        assert stream
        return self

    @property
    def parts(self):
        return self

    def remote(self, ask):
        self.asked.append(ask)
        self.calls.append(next(self._streams))
        return self.calls[-1]


@pytest.fixture
def known(monkeypatch):
    """Says what the controller knows."""

    def know(*, running, coming=False):
        monkeypatch.setattr(handles, "_state", lambda handle: handles._State(running, coming))

    know(running=True)
    return know


async def events_of(handle):
    return [event async for event in EngineClient(handle).events(ASK)]


async def test_a_stream_whose_replica_dies_before_its_first_part_is_asked_of_another(known):
    handle = Handle(Parts(ActorDiedError()), Parts(FIRST, LATER))
    assert await events_of(handle) == [*FIRST, *LATER]
    assert len(handle.calls) == 2


async def test_a_stream_that_kills_two_replicas_is_not_asked_a_third_time(known):
    handle = Handle(Parts(ActorDiedError()), Parts(ActorDiedError()), Parts(FIRST))
    with pytest.raises(EngineUnavailableError):
        await events_of(handle)
    assert len(handle.calls) == 2


async def test_a_stream_goes_on_at_another_replica_from_the_steps_that_were_told(known):
    lost = [*STEP, StepStarted(2, "r"), ReasoningDelta(2, "more")]
    handle = Handle(
        Parts(lost, ActorDiedError()),
        Parts([StepStarted(2, "r"), ReasoningDelta(2, "more or "), ReasoningDelta(2, "less")]),
    )
    assert await events_of(handle) == [*lost, ReasoningDelta(2, " or "), ReasoningDelta(2, "less")]
    assert [ask.begun for ask in handle.asked] == [Begun(), Begun((DONE,), "r")]


async def test_a_stream_that_loses_its_replica_twice_at_one_step_ends_and_once_at_each_does_not(known):
    with pytest.raises(EngineUnavailableError):
        await events_of(Handle(Parts(FIRST, ActorDiedError()), Parts(FIRST, LATER, ActorDiedError())))
    handle = Handle(
        Parts(FIRST, ActorDiedError()), Parts(STEP, ActorDiedError()), Parts([StepStarted(2, "r")])
    )
    assert await events_of(handle) == [*STEP, StepStarted(2, "r")]


async def test_a_stream_that_is_left_is_cancelled_and_a_whole_one_is_not(known):
    left, whole = Handle(Parts(FIRST, LATER)), Handle(Parts(FIRST, LATER))
    async with aclosing(EngineClient(left).events(ASK)) as events:
        await anext(events)
    assert left.calls[0].cancelled  # now, and not when the garbage is collected
    await events_of(whole)
    assert not whole.calls[0].cancelled


async def test_a_full_queue_is_told_as_one(known):
    with pytest.raises(OverloadedError):
        await events_of(Handle(Parts(BackPressureError(num_queued_requests=1, max_queued_requests=1))))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ObjectLostError("ref", "owner", "site"), EngineUnavailableError),
        (RayServeException("no such deployment"), EngineUnavailableError),
        (RayTaskError("answer", "", ValueError("x")).as_instanceof_cause(), ValueError),
        (RayTaskError("answer", "", EngineSetupError("x")).as_instanceof_cause(), EngineSetupError),
    ],
)
async def test_rays_own_errors_are_an_engine_that_is_away_and_the_engines_own_stay_themselves(
    known, error, kind
):
    with pytest.raises(kind):
        await events_of(Handle(Parts(error)))


async def test_without_a_replica_a_question_is_refused_at_once_but_waits_for_one_that_is_coming(known):
    known(running=False)
    with pytest.raises(EngineUnavailableError):
        await events_of(Handle())
    known(running=False, coming=True)
    assert await events_of(Handle(Parts(FIRST))) == FIRST


async def test_an_engine_that_has_just_answered_is_ready_whatever_the_controller_says(known):
    client = EngineClient(Handle(Parts(FIRST)))
    assert [event async for event in client.events(ASK)] == FIRST
    known(running=False)
    client._last_state = float("-inf")
    assert await client.ready()
    client._last_sign = time.monotonic() - handles.SIGN_SECONDS
    assert not await client.ready()


async def test_a_controller_that_fails_leaves_its_last_word_and_questions_are_tried(known, monkeypatch):
    def lost(handle):
        raise RayServeException("the controller is gone")

    def pass_time(client):
        client._last_state = client._last_sign = float("-inf")

    fresh, client = EngineClient(Handle(Parts(FIRST))), EngineClient(Handle(Parts(ActorDiedError()), Parts()))
    assert await client.ready()
    monkeypatch.setattr(handles, "_state", lost)
    pass_time(client)
    assert await client.ready()
    assert not await fresh.ready()  # never heard of: 503, and no 500
    assert [event async for event in fresh.events(ASK)] == FIRST
    client._handle = Handle(Parts(ActorDiedError()), Parts(ActorDiedError()))
    with pytest.raises(EngineUnavailableError):
        [event async for event in client.events(ASK)]
    pass_time(client)
    assert not await client.ready()
    known(running=True)
    pass_time(client)
    assert await client.ready()


async def test_a_controller_that_does_not_answer_is_not_waited_for(monkeypatch):
    answers = threading.Event()
    monkeypatch.setattr(handles, "_state", lambda handle: answers.wait(60))
    monkeypatch.setattr(handles, "STATE_WAIT_SECONDS", 0.01)
    client = EngineClient(Handle(Parts(FIRST)))
    assert not await client.ready()
    assert [event async for event in client.events(ASK)] == FIRST
    answers.set()


async def test_probes_that_come_together_put_one_question_to_the_controller(monkeypatch):
    asked, answers = [], threading.Event()

    def state(handle):
        asked.append(handle)
        answers.wait(10)
        return handles._State(running=True, coming=False)

    monkeypatch.setattr(handles, "_state", state)
    client = EngineClient("handle")
    probes = [asyncio.ensure_future(client.ready()) for _ in range(20)]
    while not asked:
        await asyncio.sleep(0)
    left = probes.pop()
    left.cancel()  # its question is the others' too
    answers.set()
    assert await asyncio.gather(*probes) == [True] * 19
    assert await client.ready()
    assert asked == ["handle"]
    assert left.cancelled()
