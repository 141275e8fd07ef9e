"""A question put to the engine, whole or as a stream: every route that asks does it here.

It holds the deadline, turns what the engine raises into problems, and aborts the engine's request when
the client leaves. It knows no route and no body. No Ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from steper_ray.core.errors import EngineDeadError, EngineSetupError, PromptTooLongError
from steper_ray.reasoning import Event, Finished
from steper_ray.schema import Trajectory
from steper_ray.serving.api import RETRY, Problem, check_done
from steper_ray.serving.engine import Ask
from steper_ray.serving.faults import trace_of
from steper_ray.serving.observing import Observer, Watch

logger = logging.getLogger(__name__)

#: Beyond the deadline, for the engine to end at it and hand over what it has.
GRACE_SECONDS = 5.0

#: A stream that is silent for so long gets a comment: proxies cut silent connections, and one that only passes bytes on
#: (HAProxy) finds out by them that its client has left.
BEAT_SECONDS = 10.0
_BEAT = b": still at it\n\n"


class EngineUnavailableError(Exception):
    """No replica of the engine can answer now."""


class OverloadedError(Exception):
    """The queue before the engine is full."""


class Engine(Protocol):
    """Answers questions. Its calls raise EngineUnavailableError, OverloadedError, EngineDeadError, PromptTooLongError.

    Cancelling `answer`, or closing `events`, aborts the request all the way down.
    """

    async def answer(self, ask: Ask) -> Trajectory: ...

    def events(self, ask: Ask) -> AsyncGenerator[Event, None]: ...

    async def ready(self) -> bool: ...


class Frames(Protocol):
    """How a route writes a stream: the bytes of each event, none for some, and of what ends it early."""

    def event(self, event: Event) -> bytes: ...

    def problem(self, problem: Problem) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Asker:
    """The engine as the routes see it: `timeout_s` is the deadline of one question."""

    engine: Engine
    timeout_s: float
    observers: Sequence[Observer] = ()

    async def answer(self, ask: Ask) -> Trajectory:
        """A trajectory of one step at least. Raises Problem."""
        with Watch(self.observers, ask) as watch:
            with _AsProblem():
                async with asyncio.timeout_at(self._deadline()):
                    trajectory = await self.engine.answer(ask)
            watch.finished(trajectory)
            check_done(trajectory)
        return trajectory

    async def stream(self, ask: Ask, frames: Frames) -> Response:
        """The events as they come. Raises Problem: what fails before the first is an HTTP error, not an event."""
        deadline = self._deadline()
        async with AsyncExitStack() as stack:
            watch = stack.enter_context(Watch(self.observers, ask))
            events = await stack.enter_async_context(aclosing(self.engine.events(ask)))
            first = await _next(events, deadline)
            if isinstance(first, Finished):
                check_done(first.trajectory)
            body = _written(watch, events, first, frames, deadline)
            return _EventStream(body, stack.pop_all())

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.timeout_s + GRACE_SECONDS


async def _written(
    watch: Watch,
    events: AsyncGenerator[Event, None],
    event: Event | None,
    frames: Frames,
    deadline: float,
) -> AsyncGenerator[bytes, None]:
    try:
        while event is not None:
            with _AsProblem():
                watch.event(event)
                frame = frames.event(event)
            if frame:
                yield frame
            event = await _next(events, deadline)
    except Problem as problem:
        watch.failed(problem)
        yield frames.problem(problem)


async def _next(events: AsyncGenerator[Event, None], deadline: float) -> Event | None:
    with _AsProblem():
        async with asyncio.timeout_at(deadline):
            return await anext(events, None)


class _EventStream(StreamingResponse):
    """Closes `held`, its events, at its end: when the client leaves at once, and not when the garbage is collected."""

    def __init__(self, body: AsyncGenerator[bytes, None], held: AsyncExitStack) -> None:
        super().__init__(body, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        held.push_async_callback(body.aclose)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not where the body is sent: a client that leaves before its first byte ends that before it begins.
        async with self._held, _beating(send, BEAT_SECONDS) as send:
            await super().__call__(scope, receive, send)


@asynccontextmanager
async def _beating(send: Send, every_s: float) -> AsyncGenerator[Send, None]:
    """A `send` for a stream whose messages are whole events: between two of them comments keep it alive."""
    one_at_a_time = asyncio.Lock()
    clock = asyncio.get_running_loop()
    last, going = clock.time(), False

    async def pass_on(message: Message) -> None:
        nonlocal last, going
        async with one_at_a_time:
            await send(message)
            last = clock.time()
            going = message.get("more_body", message["type"] == "http.response.start")

    async def beat() -> None:
        nonlocal last
        while True:
            await asyncio.sleep(every_s - (clock.time() - last))
            async with one_at_a_time:
                if clock.time() - last < every_s:
                    continue
                if going:
                    await send({"type": "http.response.body", "body": _BEAT, "more_body": True})
                last = clock.time()

    task = asyncio.create_task(beat())
    try:
        yield pass_on
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


class _AsProblem:
    """Turns what an engine's call may raise into a Problem."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        match error:
            case OverloadedError():
                message = "too many questions are waiting; ask again in a moment"
                raise Problem(429, "overloaded", message, RETRY) from error
            case EngineSetupError():
                message = "the engine cannot answer until its settings are corrected; they are in its log"
                raise Problem(503, "engine_unavailable", message, RETRY) from error
            case EngineUnavailableError() | EngineDeadError():
                raise unavailable() from error
            case PromptTooLongError():
                message = "the question and its passages do not fit into the model's context"
                raise Problem(413, "question_too_long", message, param="question") from error
            case TimeoutError():
                raise Problem(504, "deadline", "no answer before the deadline") from error
            case Exception():
                raise fault(error) from error


def unavailable() -> Problem:
    message = "the engine is not ready; ask again in a moment"
    return Problem(503, "engine_unavailable", message, RETRY)


def fault(error: Exception) -> Problem:
    logger.error("a request failed with %s", trace_of(error))
    return Problem(500, "internal_error", "a fault of the server; it has been logged")
