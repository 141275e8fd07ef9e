"""What the OpenAPI description says beyond FastAPI's own knowledge: error bodies, the stream's events, the token."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from steper_ray.serving.chat_wire import ChatChunk, ChatRequest
from steper_ray.serving.wire import EVENTS, ErrorBody, Wire

_REF = "#/components/schemas/{model}"

ERRORS = {
    400: "The body is not valid JSON, or (chat) asks for what cannot be served.",
    401: "A token is set on the server and was not shown.",
    403: "No token is set on the server, and the client is not on its machine.",
    404: "No such model is served.",
    409: "The first request with this Idempotency-Key is under way; see Retry-After.",
    413: "The body or the question is too long.",
    415: "The body is not application/json.",
    422: "A field is missing, unknown or out of its range, or the Idempotency-Key came with another request.",
    429: "The queue is full, or the caller's limit is reached; see Retry-After.",
    500: "A fault of the server.",
    503: "The engine or the index cannot answer now; see Retry-After.",
    504: "No step was done before the deadline.",
}

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "Any text of your own for one question: asked again with it, the question gets its first answer. A failure, "
        "and an answer that a failure or the deadline ended (`degraded`), is not kept: it is reasoned again."
    ),
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]*$"},
}
_NUMBER = {"type": "string", "pattern": "^[0-9]+$"}
RATE_HEADERS = {
    "x-ratelimit-limit-requests": {
        "description": "Questions a minute, where the caller has such a limit.",
        "schema": _NUMBER,
    },
    "x-ratelimit-remaining-requests": {"description": "How many of them are left.", "schema": _NUMBER},
    "x-ratelimit-reset-requests": {
        "description": "When all of them are there again, such as `1m30s` or `120ms`.",
        "schema": {"type": "string"},
    },
}
REPLAYED = {
    "idempotent-replayed": {
        "description": "The answer was given before, under the same Idempotency-Key.",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
RETRY_AFTER = {"retry-after": {"description": "Seconds to wait before asking again.", "schema": _NUMBER}}


def documented(*statuses: int, but: tuple[int, ...] = ()) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": ErrorBody, "description": ERRORS[status]}
        for status in statuses
        if status not in but
    }


def streamed() -> dict[str, Any]:
    kinds = [
        {
            "type": "object",
            "properties": {"event": {"const": name}, "data": _json_text(model)},
            "required": ["event", "data"],
        }
        for name, model in EVENTS.items()
    ]
    return _stream({"description": "One server-sent event.", "oneOf": kinds})


def chunked() -> dict[str, Any]:
    data = {"anyOf": [_json_text(ChatChunk), _json_text(ErrorBody), {"const": "[DONE]"}]}
    text = "One server-sent event: a chunk, an error body as the last one, or [DONE]."
    return _stream(
        {"description": text, "type": "object", "properties": {"data": data}, "required": ["data"]}
    )


def _json_text(model: type[Wire]) -> dict[str, Any]:
    return {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": _REF.format(model=model.__name__)},
    }


def _stream(event: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI 3.2's way to describe one event of a stream, which readers of 3.1 pass over."""
    return {
        "description": "The answer, whole or as it grows",
        "content": {"text/event-stream": {"itemSchema": event}},
    }


def body(model: type[Wire]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template=_REF)
    schema.pop("$defs", None)  # they are among the components
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def true_openapi(app: FastAPI, *, token: bool) -> None:
    """Adds what FastAPI cannot know: models of events and of requests' parts, and whether a token is asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schema["components"]["schemas"] |= _other_schemas()
            _drop_fastapis_errors(schema)
            _tell_headers(schema)
            if token:
                _ask_for_token(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _other_schemas() -> dict[str, Any]:
    sent: list[type[Wire]] = [*EVENTS.values(), ChatChunk]
    pairs: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "serialization") for model in sent]
    parts = ChatRequest.model_json_schema(ref_template=_REF)["$defs"]
    return parts | models_json_schema(pairs, ref_template=_REF)[1]["$defs"]


def _drop_fastapis_errors(schema: dict[str, Any]) -> None:
    """FastAPI says of each path with a parameter that it may answer with a body of FastAPI's own; none does."""
    for model in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(model, None)
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]


def _tell_headers(schema: dict[str, Any]) -> None:
    """Of the middleware around every question: what it reads, and what it adds."""
    for operations in schema["paths"].values():
        if "post" not in operations:
            continue
        operation = operations["post"]
        operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
        operation["responses"]["200"].setdefault("headers", {}).update(RATE_HEADERS | REPLAYED)
        operation["responses"]["429"].setdefault("headers", {}).update(RATE_HEADERS)
        for status in ("409", "429", "503"):
            operation["responses"][status].setdefault("headers", {}).update(RETRY_AFTER)


def _ask_for_token(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        if path.startswith("/v1/"):
            for operation in operations.values():
                operation["security"] = [{"token": []}]
