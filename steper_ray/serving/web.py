"""The HTTP side: routes, the page, and a typed body for every error.

It talks to whatever answers questions through `Engine`, so it runs behind Serve and in a test alike. Neither
questions nor answers are ever logged. No Ray.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from steper_ray.config import SamplingConfig
from steper_ray.reasoning import Event
from steper_ray.serving.access import Access, problem_response
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
from steper_ray.serving.asking import Asker, Engine, fault, unavailable
from steper_ray.serving.bodies import Bodies
from steper_ray.serving.chat import ChatFrames, Head, as_openai, completion, to_ask
from steper_ray.serving.chat_wire import ChatCompletion, ModelList, ModelOut, chat_model
from steper_ray.serving.engine import Ask
from steper_ray.serving.observing import Observer
from steper_ray.serving.openapi import ERRORS, body, chunked, complete_openapi, documented, streamed
from steper_ray.serving.wire import About, Examples, Health, ReasonResponse, Wire

M = TypeVar("M", bound=Wire)

#: By the endings of its files, which are all that lies in `static/`.
_PAGE = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


#: The paths that take a body.
_ASKING = frozenset(("/v1/reason", "/v1/chat/completions"))


@dataclass(frozen=True, slots=True)
class WebSettings:
    """The parts of the application. Without a `token` only clients of this machine are served.

    `sampling` is how the engine decodes: what a chat request may ask for.
    """

    limits: Limits
    about: About
    examples: Sequence[str]
    request_timeout_s: float
    token: str | None
    sampling: SamplingConfig
    observers: Sequence[Observer] = ()


def make_app(engine: Engine, settings: WebSettings) -> FastAPI:
    """The whole HTTP application. It sends no CORS header: scripts of other origins get no access."""
    app = FastAPI(
        title="steper_ray reasoner",
        version="1",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the Host that a client made up
        middleware=[
            Middleware(Access, token=settings.token),
            Middleware(Bodies, paths=_ASKING, max_bytes=settings.limits.max_body_bytes),
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
    # The middleware asks for the token; the dependency describes it in the OpenAPI document.
    token = Depends(HTTPBearer(scheme_name="token", auto_error=False))
    routes = APIRouter(dependencies=[token] if settings.token else [])
    asker = Asker(engine, settings.request_timeout_s, settings.observers)
    _add_reason(routes, asker, settings)
    _add_models(routes, settings.about.models)
    _add_chat(routes, asker, settings)
    app.include_router(routes)
    complete_openapi(app)
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


def _add_reason(routes: APIRouter, asker: Asker, settings: WebSettings) -> None:
    model = request_model(settings.limits)
    names = settings.about.models

    @routes.get("/v1/about", summary="What answers here", responses=documented(401, 403))
    async def about() -> About:
        return settings.about

    @routes.get("/v1/examples", summary="Questions to try", responses=documented(401, 403))
    async def examples() -> Examples:
        return Examples(questions=list(settings.examples))

    @routes.post(
        "/v1/reason",
        summary="Answer a question step by step",
        response_model=ReasonResponse,
        responses=documented(*ERRORS) | {200: streamed()},
        openapi_extra={"requestBody": body(model)},
    )
    async def reason(request: Request) -> Response:
        body = await _read(request, model)
        name = pick_model(body.model, names)
        trace = request.headers.get("traceparent")
        id = f"reason-{uuid.uuid4().hex}"
        ask = Ask(id, body.question, time.time(), name, body.unit, body.max_steps, trace, body.stop)
        if body.stream:
            return await asker.stream(ask, ReasonFrames(name, Grounded(ask.question)))
        return _json(response(await asker.answer(ask), name))


@dataclass(frozen=True, slots=True)
class ReasonFrames:
    """The events of one question at /v1/reason."""

    model: str
    grounded: Grounded

    def event(self, event: Event) -> bytes:
        return sse(*event_out(event, self.model, self.grounded))

    def problem(self, problem: Problem) -> bytes:
        return sse("error", problem.body)


def _add_models(routes: APIRouter, names: Sequence[str]) -> None:
    started = int(time.time())
    served = {name: ModelOut(id=name, created=started) for name in names}

    @routes.get("/v1/models", summary="The students that are served", responses=documented(401, 403))
    async def models() -> ModelList:
        return ModelList(data=list(served.values()))

    # A path: names of models have slashes in them.
    @routes.get("/v1/models/{model:path}", summary="One student", responses=documented(401, 403, 404, 422))
    async def one(model: str) -> ModelOut:
        return served[pick_model(model, names)]


def _add_chat(routes: APIRouter, asker: Asker, settings: WebSettings) -> None:
    limits, sampling = settings.limits, settings.sampling
    model = chat_model(limits.max_steps, sampling)

    @routes.post(
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
            ask = to_ask(body, head, now, limits, request.headers.get("traceparent"))
            if body.stream:
                usage = body.stream_options is not None and bool(body.stream_options.include_usage)
                return await asker.stream(ask, ChatFrames(head, ask.question, include_usage=usage))
            return _json(completion(await asker.answer(ask), head))
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
    """A refusal of the router: an unknown path, a method that a path does not have."""
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
    """The client left in the middle of its body: no fault, and no reply is read."""
    return problem_response(Problem(400, "malformed_json", "the body ends early"))


async def _on_fault(_: Request, error: Exception) -> Response:
    return problem_response(fault(error))
