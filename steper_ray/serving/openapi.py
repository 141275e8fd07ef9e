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
    413: "The body or the question is too long.",
    415: "The body is not application/json.",
    422: "A field is missing, unknown or out of its range.",
    429: "The queue is full; see Retry-After.",
    500: "A fault of the server.",
    503: "The engine or the index cannot answer now; see Retry-After.",
    504: "No step was done before the deadline.",
}


def documented(*statuses: int, but: tuple[int, ...] = ()) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": ErrorBody, "description": ERRORS[status]}
        for status in statuses
        if status not in but
    }


def streamed() -> dict[str, Any]:
    events = {name: {"$ref": _REF.format(model=model.__name__)} for name, model in EVENTS.items()}
    text = "Server-sent events; each one's data is JSON of the model that x-events names for it."
    schema = {"type": "string", "description": text, "x-events": events}
    return {
        "description": "The answer, whole or as it grows",
        "content": {"text/event-stream": {"schema": schema}},
    }


def chunked() -> dict[str, Any]:
    text = "Server-sent events; each one's data is a chunk, an error body as the last one, or [DONE]."
    schema = {"type": "string", "description": text, "x-data": {"$ref": _REF.format(model="ChatChunk")}}
    return {
        "description": "The answer, whole or as it grows",
        "content": {"text/event-stream": {"schema": schema}},
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


def _ask_for_token(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        if path.startswith("/v1/"):
            for operation in operations.values():
                operation["security"] = [{"token": []}]
