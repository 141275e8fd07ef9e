"""The HTTP side: routes, the page, and a typed body for every error.

It talks to whatever answers questions through `Engine`, so it runs behind Serve and in a test alike. Neither
questions nor answers are ever logged. No Ray.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from steper_ray.config import CallerLimits, IdempotencyConfig, SamplingConfig
from steper_ray.reasoning import Event
from steper_ray.serving.access import Access, BodyLimit, problem_response
from steper_ray.serving.admission import Idempotency, Quotas, check_length, keep_if_complete
from steper_ray.serving.api import (
    Grounded,
    Limits,
    Problem,
    event_out,
    parse_request,
    pick_model,
    request_model,
    response,
    sse,
)
from steper_ray.serving.asking import Asker, Engine, fault, longest_s, unavailable
from steper_ray.serving.callers import Callers
from steper_ray.serving.chat import ChatFrames, Head, as_openai, completion, to_ask
from steper_ray.serving.chat_wire import ChatCompletion, ModelList, ModelOut, chat_model
from steper_ray.serving.engine import Ask
from steper_ray.serving.keys import KeyEntry
from steper_ray.serving.ledger import Ledger, LocalLedger
from steper_ray.serving.observing import Observer
from steper_ray.serving.openapi import ERRORS, body, chunked, documented, streamed, true_openapi
from steper_ray.serving.wire import About, Examples, Health, ReasonResponse, Wire

M = TypeVar("M", bound=Wire)

#: By the endings of its files, which are all that lies in `static/`.
_PAGE = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class WebSettings:
    """What the app is made from. `token` None, and no `keys`: only clients of this machine are served.

    `sampling` is how the engine decodes: what a chat request may ask for. `keys_file` is where the keys came from: it
    is read again when it changes.
    """

    limits: Limits
    about: About
    examples: Sequence[str]
    request_timeout_s: float
    token: str | None
    sampling: SamplingConfig
    keys: tuple[KeyEntry, ...] = ()
    keys_file: Path | None = None
    caller_limits: CallerLimits = field(default_factory=CallerLimits)
    idempotency: IdempotencyConfig = field(default_factory=IdempotencyConfig)
    observers: Sequence[Observer] = ()


def make_app(engine: Engine, settings: WebSettings, ledger: Ledger | None = None) -> FastAPI:
    """The whole HTTP application. There is no CORS header in it: other origins' scripts are kept out.

    `ledger`: where several replicas share one; by default the app has its own.
    """
    callers = Callers(settings.token, settings.keys, settings.caller_limits, settings.keys_file)
    ledger = ledger or LocalLedger(longest_s(settings.request_timeout_s), settings.idempotency)
    app = FastAPI(
        title="steper_ray reasoner",
        version="1",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the Host that a client made up
        middleware=[
            Middleware(Access, callers=callers),
            Middleware(BodyLimit, max_bytes=settings.limits.max_body_bytes),
            Middleware(Quotas, ledger=ledger),
            Middleware(Idempotency, ledger=ledger, max_bytes=settings.idempotency.max_bytes),
        ],
        exception_handlers={
            Problem: _on_problem,
            HTTPException: _on_http,
            ClientDisconnect: _on_leaving,
            Exception: _on_fault,
        },
    )
    _add_page(app)
    _add_health(app, engine)
    asker = Asker(engine, settings.request_timeout_s, settings.observers)
    _add_reason(app, asker, settings)
    _add_models(app, settings.about.models)
    _add_chat(app, asker, settings)
    true_openapi(app, token=callers.guarded)
    return app


def _add_page(app: FastAPI) -> None:
    folder = resources.files(__package__) / "static"
    files = {file.name: (file.read_bytes(), _PAGE[Path(file.name).suffix]) for file in folder.iterdir()}

    def send(name: str) -> Response:
        content, kind = files[name]
        # no-cache: ask each time, so that a new version's files never mix with an old one's.
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

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
            raise unavailable()
        return Health(status="ready")


def _add_reason(app: FastAPI, asker: Asker, settings: WebSettings) -> None:
    model = request_model(settings.limits)
    names = settings.about.models

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
        check_length(request, body.question)
        name = pick_model(body.model, names)
        trace = request.headers.get("traceparent")
        id = f"reason-{uuid.uuid4().hex}"
        ask = Ask(id, body.question, time.time(), name, body.unit, body.max_steps, trace, body.stop)
        ended = partial(keep_if_complete, request)
        if body.stream:
            return await asker.stream(ask, ReasonFrames(name, Grounded(ask.question)), ended)
        return _json(response(await asker.answer(ask, ended), name))


@dataclass(frozen=True, slots=True)
class ReasonFrames:
    """The events of one question at /v1/reason."""

    model: str
    grounded: Grounded

    def event(self, event: Event) -> bytes:
        return sse(*event_out(event, self.model, self.grounded))

    def problem(self, problem: Problem) -> bytes:
        return sse("error", problem.body)


def _add_models(app: FastAPI, names: Sequence[str]) -> None:
    started = int(time.time())
    served = {name: ModelOut(id=name, created=started) for name in names}

    @app.get("/v1/models", summary="The students that are served", responses=documented(401, 403))
    async def models() -> ModelList:
        return ModelList(data=list(served.values()))

    # A path: names of models have slashes in them.
    @app.get("/v1/models/{model:path}", summary="One student", responses=documented(401, 403, 404))
    async def one(model: str) -> ModelOut:
        return served[pick_model(model, names)]


def _add_chat(app: FastAPI, asker: Asker, settings: WebSettings) -> None:
    limits, sampling = settings.limits, settings.sampling
    model = chat_model(limits.max_steps, sampling)

    @app.post(
        "/v1/chat/completions",
        summary="Answer a question, for clients of OpenAI's chat completions",
        response_model=ChatCompletion,
        responses=documented(*ERRORS) | {200: chunked()},
        openapi_extra={"requestBody": body(model)},
    )
    async def chat(request: Request) -> Response:
        try:
            body = await _read(request, model)
            now = time.time()
            name = pick_model(body.model, settings.about.models)
            head = Head(f"chatcmpl-{uuid.uuid4().hex}", int(now), name)
            ask = to_ask(body, head, now, limits, sampling, request.headers.get("traceparent"))
            check_length(request, ask.question)
            ended = partial(keep_if_complete, request)
            if body.stream:
                usage = body.stream_options is not None and bool(body.stream_options.include_usage)
                return await asker.stream(ask, ChatFrames(head, ask.question, include_usage=usage), ended)
            return _json(completion(await asker.answer(ask, ended), head))
        except Problem as problem:
            raise as_openai(problem) from problem


async def _read(request: Request, model: type[M]) -> M:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "unsupported_media_type", "send the body as application/json")
    return parse_request(model, await request.body())


def _json(value: Wire) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")


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


async def _on_leaving(_: Request, __: Exception) -> Response:
    """The client left in the middle of its body: no fault, and nobody reads this."""
    return problem_response(Problem(400, "malformed_json", "the body ends early"))


async def _on_fault(_: Request, error: Exception) -> Response:
    return problem_response(fault(error))
