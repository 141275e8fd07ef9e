"""The endpoint without Ray: failures of engine and retriever, deadlines, and clients that leave."""

import asyncio
import json
from contextlib import aclosing

import pytest
from local_endpoint import (
    ABOUT,
    CHAIN,
    LIMITS,
    PASSAGES,
    QUESTION,
    LocalEngine,
    client,
    error_of,
    events_of,
    replies,
)
from scripted import KeywordRetriever

from steper_ray.config import SamplingConfig
from steper_ray.core.errors import (
    EngineDeadError,
    EngineSetupError,
    GenerationError,
    PromptTooLongError,
    RefusedError,
    RetrievalError,
)
from steper_ray.reasoning import ReasoningDelta, StepDone
from steper_ray.schema import StopReason
from steper_ray.serving import web
from steper_ray.serving.asking import EngineUnavailableError, OverloadedError
from steper_ray.serving.engine import Ask
from steper_ray.serving.web import WebSettings, make_app

# ---- failures


FAILURES = [
    (OverloadedError(), 429, "overloaded"),
    (EngineUnavailableError(), 503, "engine_unavailable"),
    (EngineDeadError("gone"), 503, "engine_unavailable"),
    (EngineSetupError("private: no such model"), 503, "engine_unavailable"),
    (PromptTooLongError("2000 tokens"), 413, "question_too_long"),
    (ValueError("the question was: private"), 500, "internal_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("broken", "status", "code"), FAILURES)
def test_an_engine_that_cannot_answer_is_a_typed_error_before_any_event(broken, status, code, stream, caplog):
    body = {"question": QUESTION, "stream": stream}
    reply = client(LocalEngine([], broken=broken)).post("/v1/reason", json=body)
    assert error_of(reply)[:2] == (status, code)
    assert ("retry-after" in reply.headers) == (status in (429, 503))
    assert "private" not in reply.text + caplog.text
    assert QUESTION not in caplog.text


def test_a_failure_before_the_first_step_is_an_error_and_after_it_an_answer_with_its_reason():
    lost = LocalEngine([], KeywordRetriever([], RetrievalError("/secret/path is gone")))
    reply = client(lost).post("/v1/reason", json={"question": QUESTION})
    assert error_of(reply)[:2] == (503, "retriever_failed")
    assert "secret" not in reply.text
    half = LocalEngine([replies()[0], GenerationError("status 500")])
    body = client(half).post("/v1/reason", json={"question": QUESTION}).json()
    assert (body["stop_reason"], body["answer"]) == ("generator_failed", CHAIN[0])


def test_a_failure_within_a_stream_is_its_last_event():
    engine = LocalEngine([GenerationError("status 500")])
    events = events_of(client(engine).post("/v1/reason", json={"question": QUESTION, "stream": True}))
    assert [name for name, _ in events] == ["step_started", "passages", "error"]
    assert events[-1][1]["error"]["code"] == "generator_failed"
    engine = LocalEngine([EngineDeadError("gone")])
    events = events_of(client(engine).post("/v1/reason", json={"question": QUESTION, "stream": True}))
    assert events[-1][1]["error"]["code"] == "engine_unavailable"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("searching", [False, True])
def test_an_unexpected_error_is_a_typed_500_and_logged_with_its_place_but_without_its_words(
    searching, stream, caplog
):
    error = ValueError("private")
    lost = KeywordRetriever([], error) if searching else None
    engine = LocalEngine([error], lost)
    reply = client(engine).post("/v1/reason", json={"question": QUESTION, "stream": stream})
    if stream:
        assert events_of(reply)[-1][0] == "error"
        assert events_of(reply)[-1][1]["error"]["code"] == "internal_error"
    else:
        assert error_of(reply)[:2] == (500, "internal_error")
    where = ("search" if searching else "stream", "scripted.py")
    assert all(word in caplog.text for word in ("ValueError", "line ", *where))
    assert "private" not in reply.text + caplog.text
    assert (engine._stats.failed, engine._stats.done) == (0 if searching else 1, 0)


def test_an_error_in_the_writing_of_a_stream_ends_it_with_an_error_event(monkeypatch):
    real = web.event_out

    def failing(*args):
        if isinstance(args[0], StepDone):
            raise ValueError("private")
        return real(*args)

    monkeypatch.setattr(web, "event_out", failing)
    reply = client(LocalEngine(replies())).post("/v1/reason", json={"question": QUESTION, "stream": True})
    *_, (name, last) = events_of(reply)
    assert (name, last["error"]["code"]) == ("error", "internal_error")
    assert "private" not in reply.text


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (PromptTooLongError("3000 of 2048 tokens"), 413, "question_too_long"),
        (RefusedError("content filter"), 422, "invalid_request"),
    ],
)
def test_a_prompt_that_is_refused_is_the_questions_fault_and_later_the_answer_so_far(error, status, code):
    reply = client(LocalEngine([error])).post("/v1/reason", json={"question": QUESTION})
    assert error_of(reply)[:2] == (status, code)
    half = client(LocalEngine([replies()[0], error])).post("/v1/reason", json={"question": QUESTION}).json()
    assert (half["stop_reason"], half["degraded"], half["answer"]) == ("rejected", True, CHAIN[0])


def test_the_deadline_returns_the_steps_that_were_done():
    engine = LocalEngine(replies(), hang_at=1, request_timeout_s=2.0)
    engine.generator._replies[1] = "No full stop"
    body = client(engine).post("/v1/reason", json={"question": QUESTION}).json()
    assert (body["stop_reason"], body["answer"]) == ("deadline", CHAIN[0])


def test_an_engine_that_hangs_beyond_its_deadline_is_a_typed_error(monkeypatch):
    monkeypatch.setattr("steper_ray.serving.asking.GRACE_SECONDS", 0.0)
    engine = LocalEngine(["No full stop"], hang_at=0)
    reply = client(engine, timeout_s=0.2).post("/v1/reason", json={"question": QUESTION})
    assert error_of(reply)[:2] == (504, "deadline")
    assert engine._stats.aborted == 1


# ---- the engine


async def test_time_in_the_queue_counts_against_the_deadline():
    engine = LocalEngine(["No full stop"], hang_at=0)
    trajectory = await engine.answer(Ask("a", QUESTION, asked_at=0.0, model="test"))
    assert trajectory.stop_reason is StopReason.DEADLINE


async def test_closing_the_events_aborts_the_generator_and_counts_it():
    engine = LocalEngine(["No full stop"], hang_at=0)
    async with aclosing(engine.events(Ask("a", QUESTION, asked_at=float("inf"), model="test"))) as events:
        async for event in events:
            if isinstance(event, ReasoningDelta):
                break
    stats = await engine.stats()
    assert (stats.running, stats.aborted, stats.done) == (0, 1, 0)
    assert engine.generator.aborted == 1


async def test_cancelling_an_answer_aborts_the_generator():
    engine = LocalEngine(["No full stop"], hang_at=0)
    task = asyncio.create_task(engine.answer(Ask("a", QUESTION, asked_at=float("inf"), model="test")))
    while not (await engine.stats()).running:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.generator.aborted == 1


async def test_an_engine_whose_generator_died_stays_unhealthy():
    engine = LocalEngine([EngineDeadError("gone")])
    engine.check_health()
    with pytest.raises(EngineDeadError):
        await engine.answer(Ask("a", QUESTION, asked_at=float("inf"), model="test"))
    with pytest.raises(EngineDeadError):
        engine.check_health()
    with pytest.raises(EngineDeadError, match="gone"):
        await engine.answer(Ask("b", QUESTION, asked_at=float("inf"), model="test"))
    assert len(engine.generator.prompts) == 1


async def test_an_endpoint_that_refuses_everybody_is_logged_and_asked_again_and_its_replica_stays(caplog):
    refusal = EngineSetupError("http://endpoint/v1 refused the key (401): set it in $KEY")
    engine = LocalEngine([refusal, refusal, *replies()])
    for _ in range(2):
        with pytest.raises(EngineSetupError):
            await engine.answer(Ask("a", QUESTION, asked_at=float("inf"), model="test"))
        engine.check_health()
    [line] = [record.getMessage() for record in caplog.records if "refused the key" in record.getMessage()]
    assert line.startswith("no question can be answered: http://endpoint/v1")
    trajectory = await engine.answer(Ask("b", QUESTION, asked_at=float("inf"), model="test"))
    assert trajectory.stop_reason is StopReason.ANSWERED


async def test_a_client_that_leaves_a_stream_aborts_the_generator():
    engine = LocalEngine(["No full stop"], hang_at=0)
    app = make_app(engine, WebSettings(LIMITS, ABOUT, (), 60.0, None, SamplingConfig()))
    body = json.dumps({"question": QUESTION, "stream": True}).encode()
    left = asyncio.Event()
    requests = iter([{"type": "http.request", "body": body}])

    async def receive():
        message = next(requests, None)
        if message is None:
            await left.wait()
            return {"type": "http.disconnect"}
        return message

    async def send(message):
        if b"event: delta" in message.get("body", b""):
            left.set()

    await app(
        {
            "type": "http",
            "method": "POST",
            "path": "/v1/reason",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "asgi": {"version": "3.0"},
        },
        receive,
        send,
    )
    stats = await engine.stats()
    assert (stats.running, stats.aborted) == (0, 1)


class SlowRetriever:
    """An asynchronous retriever that answers `quick` searches, and then none any more."""

    def __init__(self, quick):
        self.left, self.cancelled = quick, 0

    async def find(self, queries, k):
        if self.left:
            self.left -= 1
            return KeywordRetriever(PASSAGES).search(queries, k)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def test_a_search_that_takes_too_long_ends_in_the_answer_so_far_which_says_so():
    retriever = SlowRetriever(quick=1)
    engine = LocalEngine(replies(), retriever, retrieval_timeout_s=0.01)
    reply = client(engine).post("/v1/reason", json={"question": QUESTION})
    assert reply.status_code == 200
    body = reply.json()
    assert (body["stop_reason"], body["degraded"], len(body["steps"])) == ("retriever_failed", True, 1)
    assert body["answer"] == CHAIN[0]
    assert retriever.cancelled == 1


def test_a_first_search_that_takes_too_long_is_a_typed_503():
    reply = client(LocalEngine(replies(), SlowRetriever(quick=0), retrieval_timeout_s=0.01)).post(
        "/v1/reason", json={"question": QUESTION}
    )
    assert error_of(reply)[:2] == (503, "retriever_failed")
    assert reply.headers["retry-after"]
