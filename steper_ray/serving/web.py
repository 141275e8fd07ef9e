"""The HTTP side: routes, the page, server-sent events, and a typed body for every error.

It talks to whatever answers questions through `Engine`, so it runs behind Serve and in a test alike. Neither
questions nor answers are ever logged. No Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from steper_ray.errors import EngineDeadError, PromptTooLongError
from steper_ray.reasoning import Event, Finished
from steper_ray.schema import Trajectory
from steper_ray.serving.access import Access, BodyLimit, problem_response
from steper_ray.serving.api import (
    RETRY,
    Limits,
    Problem,
    event_out,
    parse_request,
    request_model,
    response,
    sse,
)
from steper_ray.serving.engine import Ask
from steper_ray.serving.openapi import ERRORS, body, documented, streamed, true_openapi
from steper_ray.serving.wire import About, Examples, Health, ReasonRequest, ReasonResponse

logger = logging.getLogger(__name__)

#: Beyond the deadline, for the engine to end at it and hand over what it has.
GRACE_SECONDS = 5.0
_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


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


@dataclass(frozen=True, slots=True)
class WebSettings:
    """What the app is made from. `token` None: only clients of this machine are served."""

    limits: Limits
    about: About
    examples: Sequence[str]
    request_timeout_s: float
    token: str | None


def make_app(engine: Engine, settings: WebSettings) -> FastAPI:
    """The whole HTTP application. There is no CORS header in it: other origins' scripts are kept out."""
    app = FastAPI(
        title="steper_ray reasoner",
        version="1",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        middleware=[
            Middleware(Access, token=settings.token),
            Middleware(BodyLimit, max_bytes=settings.limits.max_body_bytes),
        ],
        exception_handlers={Problem: _on_problem, HTTPException: _on_http, Exception: _on_fault},
    )
    _add_page(app)
    _add_health(app, engine)
    _add_reason(app, engine, settings)
    true_openapi(app, token=settings.token is not None)
    return app


def _add_page(app: FastAPI) -> None:
    folder = resources.files(__package__) / "static"
    files = {name: (folder / name).read_bytes() for name in _PAGE}

    def send(name: str) -> Response:
        # no-cache: ask each time, so that a new version's files never mix with an old one's.
        return Response(files[name], media_type=_PAGE[name], headers={"cache-control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return send("index.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return send(name)


def _add_health(app: FastAPI, engine: Engine) -> None:
    @app.get("/healthz", summary="Liveness: the process answers")
    async def healthz() -> Health:
        return Health(status="ok")

    @app.get("/readyz", summary="Readiness: the engine answers", responses=documented(503))
    async def readyz() -> Health:
        if not await engine.ready():
            raise _unavailable()
        return Health(status="ready")


def _add_reason(app: FastAPI, engine: Engine, settings: WebSettings) -> None:
    model = request_model(settings.limits)
    name, limit = settings.about.model, settings.request_timeout_s + GRACE_SECONDS

    @app.get("/v1/about", summary="What answers here", responses=documented(401, 403))
    async def about() -> About:
        return settings.about

    @app.get("/v1/examples", summary="Questions to try", responses=documented(401, 403))
    async def examples() -> Examples:
        return Examples(questions=list(settings.examples))

    @app.post(
        "/v1/reason",
        summary="Answer a question step by step",
        response_model=ReasonResponse,
        responses=documented(*ERRORS) | {200: streamed()},
        openapi_extra={"requestBody": body(model)},
    )
    async def reason(request: Request) -> Response:
        body = await _read(request, model)
        ask = Ask(f"reason-{uuid.uuid4().hex}", body.question, time.time(), body.unit, body.max_steps)
        deadline = asyncio.get_running_loop().time() + limit
        if body.stream:
            return await _stream(engine, ask, name, deadline)
        with _Told():
            async with asyncio.timeout_at(deadline):
                trajectory = await engine.answer(ask)
        return Response(response(trajectory, name).model_dump_json(), media_type="application/json")


async def _read(request: Request, model: type[ReasonRequest]) -> ReasonRequest:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "unsupported_media_type", "send the body as application/json")
    return parse_request(model, await request.body())


async def _stream(engine: Engine, ask: Ask, model: str, deadline: float) -> Response:
    """The events as they come. The first is awaited here: what fails before it is an HTTP error, not an event."""
    async with AsyncExitStack() as stack:
        events = await stack.enter_async_context(aclosing(engine.events(ask)))
        first = await _next(events, deadline)
        if isinstance(first, Finished):
            response(first.trajectory, model)  # nothing was done: raises why
        frames = _frames(events, first, model, deadline)
        stack.pop_all()  # from here on the frames close the events
    return _EventStream(frames, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


async def _frames(
    events: AsyncGenerator[Event, None], event: Event | None, model: str, deadline: float
) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        while event is not None:
            yield sse(*event_out(event, model))
            try:
                event = await _next(events, deadline)
            except Problem as problem:
                yield sse("error", problem.body)
                return


async def _next(events: AsyncGenerator[Event, None], deadline: float) -> Event | None:
    with _Told():
        async with asyncio.timeout_at(deadline):
            return await anext(events, None)


class _EventStream(StreamingResponse):
    """Closes its events when the client leaves, at once and not when the garbage is collected."""

    async def stream_response(self, send: Send) -> None:
        frames = self.body_iterator
        assert isinstance(frames, AsyncGenerator)
        async with aclosing(frames):
            await super().stream_response(send)


class _Told:
    """Turns what an engine's call may raise into what a client is told."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        match error:
            case OverloadedError():
                message = "too many questions are waiting; ask again in a moment"
                raise Problem(429, "overloaded", message, RETRY) from error
            case EngineUnavailableError() | EngineDeadError():
                raise _unavailable() from error
            case PromptTooLongError():
                message = "the question and its passages do not fit into the model's context"
                raise Problem(413, "question_too_long", message) from error
            case TimeoutError():
                raise Problem(504, "deadline", "no answer before the deadline") from error
            case Exception():
                raise _fault(error) from error


def _unavailable() -> Problem:
    message = "the engine is not ready; ask again in a moment"
    return Problem(503, "engine_unavailable", message, RETRY)


async def _on_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(error)


async def _on_http(_: Request, error: Exception) -> Response:
    """What the router refuses: an unknown path, a method that a path does not have."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        message = "this path does not take this method"
        return problem_response(Problem(405, "method_not_allowed", message, headers))
    if error.status_code == 404:
        return problem_response(Problem(404, "not_found", "nothing is at this path", headers))
    return problem_response(
        Problem(error.status_code, "invalid_request", "the request cannot be read", headers)
    )


async def _on_fault(_: Request, error: Exception) -> Response:
    return problem_response(_fault(error))


def _fault(error: Exception) -> Problem:
    # The kind alone: the message could hold a question or an answer.
    logger.error("a request failed with %s", type(error).__name__)
    return Problem(500, "internal_error", "a fault of the server; it has been logged")
