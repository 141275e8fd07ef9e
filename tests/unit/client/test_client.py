"""The client of the reasoner endpoint: against the real endpoint over HTTP, and against scripted replies."""

import asyncio
import json
import subprocess
import sys
from contextlib import aclosing

import httpx
import pytest
from fake_time import FakeTime
from local_endpoint import CHAIN, QUESTION, SECRET, LocalEngine, listening, replies
from scripted import KeywordRetriever

from steper_ray.client import (
    AccessError,
    Answer,
    BusyError,
    Client,
    FailedError,
    QuestionError,
    UnreachableError,
)
from steper_ray.core.errors import EngineDeadError
from steper_ray.schema import Passage, StopReason
from steper_ray.serving import asking
from steper_ray.serving.asking import OverloadedError
from steper_ray.serving.wire import DeltaEvent, PassagesEvent, StepOut, StepStartedEvent

# ---- against the endpoint


@pytest.fixture
def opened():
    """A client of an endpoint over an engine."""
    doors = []

    def open_one(engine, token=None, shown=None, **client):
        doors.append(listening(engine, token=token))
        return Client(doors[-1].__enter__(), shown, **client)

    yield open_one
    for door in doors:
        door.__exit__(None, None, None)


async def test_an_answer_has_its_text_chain_passages_steps_and_usage(opened):
    async with opened(LocalEngine(replies()), token=SECRET, shown=SECRET) as client:
        answer = await client.reason(QUESTION)
    assert (answer.text, answer.question, answer.stop_reason) == ("Cem", QUESTION, StopReason.ANSWERED)
    assert answer.chain == tuple(CHAIN)
    assert [passage.id for passage in answer.passages] == ["1", "2"]
    assert [step.index for step in answer.steps] == [1, 2, 3]
    assert answer.usage.completion_tokens == sum(step.usage.completion_tokens for step in answer.steps) > 0


async def test_a_stream_tells_the_steps_and_ends_in_the_same_answer(opened):
    async with opened(LocalEngine(replies() * 2)) as client:
        events = [event async for event in client.stream(QUESTION)]
        whole = await client.reason(QUESTION)
    kinds = [type(event) for event in events if not isinstance(event, DeltaEvent)]
    assert kinds == [StepStartedEvent, PassagesEvent, StepOut] * 3 + [Answer]
    assert any(isinstance(event, DeltaEvent) for event in events)
    assert [event for event in events if isinstance(event, StepOut)] == list(events[-1].steps)
    assert (events[-1].text, events[-1].chain) == (whole.text, whole.chain)


async def test_a_stream_carries_text_with_every_line_end_that_unicode_knows(opened):
    # JSON leaves all of these but LF and CR as they are; as the end of a line they would cut an event in two.
    text = "Alba was shot \u2028 by\u2029Bo\x85 \x0b\x0c\x1c\x1d\x1e\r\n\nevent: answer\r\ndata: {}"
    retriever = KeywordRetriever([Passage("1\u2028", "Alba", text)])
    async with opened(LocalEngine(["So the answer is: C\u2028e\x85m."], retriever)) as client:
        *events, answer = [event async for event in client.stream(QUESTION, unit="chain")]
    (found,) = [event for event in events if isinstance(event, PassagesEvent)]
    assert [(passage.id, passage.text) for passage in found.passages] == [("1\u2028", text)]
    assert "".join(event.text for event in events if isinstance(event, DeltaEvent)).endswith("C\u2028e\x85m.")
    assert answer.passages == tuple(found.passages)


async def test_a_stream_that_is_none_is_no_answer():
    async with scripted(lambda _: httpx.Response(200, html="<p>Welcome</p>")) as client:
        with pytest.raises(FailedError, match="no answer of a reasoner"):
            [event async for event in client.stream(QUESTION)]


async def test_the_requests_limits_hold(opened):
    async with opened(LocalEngine([" ".join(CHAIN), *replies()])) as client:
        assert (await client.reason(QUESTION, unit="chain")).chain == (" ".join(CHAIN),)
        assert (await client.reason(QUESTION, max_steps=1)).stop_reason is StopReason.STEP_LIMIT


async def test_when_an_answer_counts_is_chosen_for_one_question_and_for_many(opened):
    engine = LocalEngine(["So the answer is: Cem."] * 6)
    async with opened(engine) as client:
        whole = await client.reason(QUESTION, stop="stable")
        *_, streamed = [event async for event in client.stream(QUESTION, stop="stable")]
        (one,) = [answer async for answer in client.reason_many([QUESTION], stop="stable")]
    assert [len(answer.steps) for answer in (whole, streamed, one)] == [2, 2, 2]


async def test_errors_tell_what_to_do_about_them(opened):
    async with opened(LocalEngine([])) as client:
        with pytest.raises(QuestionError, match="must not be empty") as refused:
            await client.reason(" ")
        assert (refused.value.status, refused.value.code) == (422, "invalid_request")
    async with opened(LocalEngine([]), token=SECRET, shown="wrong") as client:
        with pytest.raises(AccessError, match="token") as locked_out:
            await client.reason(QUESTION)
        assert "wrong" not in str(locked_out.value)
    async with opened(LocalEngine([], broken=OverloadedError()), retries=0) as client:
        with pytest.raises(BusyError) as busy:
            await client.reason(QUESTION)
        assert (busy.value.status, busy.value.code) == (429, "overloaded")
    async with opened(LocalEngine([], broken=ValueError("private"))) as client:
        with pytest.raises(FailedError):
            await client.reason(QUESTION)


async def test_a_silent_stream_gets_comments_which_no_reader_takes_for_events(opened, monkeypatch):
    monkeypatch.setattr(asking, "BEAT_SECONDS", 0.02)
    engine = LocalEngine([CHAIN[0], "No full stop"], hang_at=1, request_timeout_s=1.0)
    sent = []

    async def keep(reply):
        told = reply.aiter_raw

        async def heard(*args):
            async for part in told(*args):
                sent.append(part)
                yield part

        reply.aiter_raw = heard

    async with opened(engine) as client:
        client._http.event_hooks["response"].append(keep)
        events = [event async for event in client.stream(QUESTION)]
    frames = b"".join(sent).split(b"\n\n")
    silent = [frame for frame in frames if frame.startswith(b":")]
    assert len(silent) > 1
    assert all(frame.startswith(b"event: ") for frame in frames[:-1] if frame not in silent)
    assert frames[-2].startswith(b"event: answer\n")
    assert frames[-1] == b""  # none after the end
    assert [type(event) for event in events].count(StepOut) == 1
    assert isinstance(events[-1], Answer)
    assert events[-1].stop_reason == StopReason.DEADLINE


async def test_a_failure_within_a_stream_is_raised_after_what_came_before_it(opened):
    events = []

    async def read(stream):
        async for event in stream:
            events.append(event)

    async with opened(LocalEngine([replies()[0], EngineDeadError("gone")])) as client:
        with pytest.raises(FailedError) as failed:
            await read(client.stream(QUESTION))
    assert failed.value.code == "engine_unavailable"
    assert sum(isinstance(event, StepOut) for event in events) == 1


async def test_closing_a_stream_aborts_the_engines_request(opened):
    engine = LocalEngine(["No full stop"], hang_at=0)
    async with opened(engine) as client:
        async with aclosing(client.stream(QUESTION)) as events:
            async for event in events:
                if isinstance(event, DeltaEvent):
                    break
        async with asyncio.timeout(60):
            while not engine.generator.aborted:
                await asyncio.sleep(0.01)


def test_it_brings_neither_ray_nor_torch():
    code = "import sys, steper_ray.client; print([m for m in ('ray', 'torch', 'vllm') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# ---- asked again


def answer_to(question, **more):
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 0}
    return {
        "id": "1", "question": question, "answer": question.upper(), "stop_reason": "answered", "steps": [],
        "model": "m", "usage": usage,
    } | more  # fmt: skip


def scripted(handler, **client):
    """A client whose requests `handler(question)` answers: a response, or an exception that is raised."""

    async def handle(request):
        question = json.loads(request.content)["question"]
        reply = handler(question)
        reply = await reply if asyncio.iscoroutine(reply) else reply
        if isinstance(reply, Exception):
            raise reply
        return reply or httpx.Response(200, json=answer_to(question))

    return Client("http://test", transport=httpx.MockTransport(handle), **client)


@pytest.fixture
def pauses(monkeypatch):
    """The waits before a further attempt, which take no time."""
    time = FakeTime()
    monkeypatch.setattr("steper_ray.client.client.sleep", time.sleep)
    return time.pauses


async def test_what_is_refused_for_the_moment_is_asked_again_when_the_server_says(pauses):
    outcomes = [
        httpx.Response(429, headers={"retry-after": "7"}),
        httpx.Response(
            503, headers={"retry-after": "2"}, json={"error": {"code": "new", "message": "later"}}
        ),
        httpx.ConnectError("refused"),
        None,
    ]
    async with scripted(lambda _: outcomes.pop(0)) as client:
        assert (await client.reason("who?")).text == "WHO?"
    first, second, third = pauses
    assert 7 <= first <= 7.5
    assert 2 <= second <= 3
    assert 0 <= third <= 2
    assert len({first % 1, second % 1, third % 1}) == 3  # jitter


@pytest.mark.parametrize(
    ("reply", "error", "asked"),
    [
        (httpx.Response(429), BusyError, 3),
        (httpx.ConnectError("refused"), UnreachableError, 3),
        (httpx.ConnectTimeout("nobody"), UnreachableError, 3),
        (httpx.ReadTimeout("silent"), FailedError, 1),
        (httpx.Response(422, json={"error": {"code": "c", "message": "m"}}), QuestionError, 1),
        (httpx.Response(401), AccessError, 1),
        (httpx.Response(500, text="<html>"), FailedError, 1),
        (httpx.Response(504), FailedError, 1),
        (httpx.Response(200, text="<html>"), FailedError, 1),
    ],
)
async def test_only_what_may_pass_is_asked_again_and_not_for_ever(pauses, reply, error, asked):
    questions = []
    async with scripted(lambda question: questions.append(question) or reply, retries=2) as client:
        with pytest.raises(error):
            await client.reason("who?")
    assert len(questions) == asked


async def test_a_newer_servers_further_fields_are_left_out():
    def handle(question):
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 0, "joules": 3}
        return httpx.Response(200, json=answer_to(question, shoe_size=7, usage=usage))

    async with scripted(handle) as client:
        assert (await client.reason("who?")).usage.completion_tokens == 2


# ---- many


async def test_many_are_answered_in_order_and_so_many_at_once():
    running, most = 0, 0

    async def handle(question):
        nonlocal running, most
        running += 1
        # Time for all others to begin that may; a later question takes less of it than an earlier one.
        for _ in range(100 - 4 * int(question[1:])):
            await asyncio.sleep(0)
            most = max(most, running)
        running -= 1
        done.append(question)

    done = []
    questions = [f"q{i}" for i in range(20)]
    async with scripted(handle) as client:
        answers = [answer.text async for answer in client.reason_many(questions, concurrency=3)]
    assert answers == [question.upper() for question in questions]
    assert done != questions
    assert most == 3


async def test_questions_are_taken_only_as_answers_are():
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield f"q{len(taken)}"

    async with (
        scripted(lambda _: None) as client,
        aclosing(client.reason_many(endless(), concurrency=2)) as answers,
    ):
        for number in range(1, 50):
            assert (await anext(answers)).text == f"Q{number}"
            assert len(taken) <= number + 2 * 2


async def test_one_questions_error_stands_in_its_place(pauses):
    def handle(question):
        if question == "bad":
            return httpx.Response(422, json={"error": {"code": "invalid_request", "message": "no"}})
        return httpx.Response(503) if question == "busy" else None

    async with scripted(handle, retries=1) as client:
        results = [one async for one in client.reason_many(["a", "bad", "busy", "b"])]
    assert [type(one) for one in results] == [Answer, QuestionError, BusyError, Answer]


async def test_an_error_that_no_question_would_escape_ends_them_all():
    asked = []
    async with scripted(lambda q: asked.append(q) or httpx.Response(401)) as client:
        with pytest.raises(AccessError):
            await anext(client.reason_many((f"q{i}" for i in range(100)), concurrency=2))
    assert len(asked) <= 4


async def test_closing_many_aborts_what_is_under_way():
    second, left = asyncio.Event(), []

    async def handle(question):
        if question == "first":
            await second.wait()
            return
        second.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.append(question)

    async with (
        scripted(handle) as client,
        aclosing(client.reason_many(["first", "second", "third"], concurrency=2)) as answers,
    ):
        assert (await anext(answers)).text == "FIRST"
    assert "second" in left
