"""What the OpenAPI description says beyond FastAPI's own knowledge: error bodies, the stream's events, the token."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from steper_ray.serving.wire import EVENTS, ErrorBody, ReasonRequest

ERRORS = {
    400: "The body is not valid JSON.",
    401: "A token is set on the server and was not shown.",
    403: "No token is set on the server, and the client is not on its machine.",
    413: "The body or the question is too long.",
    415: "The body is not application/json.",
    422: "A field is missing, unknown or out of its range.",
    429: "The queue is full; see Retry-After.",
    500: "A fault of the server.",
    503: "The engine or the index cannot answer now; see Retry-After.",
    504: "No step was done before the deadline.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody, "description": ERRORS[status]} for status in statuses}


def streamed() -> dict[str, Any]:
    events = {name: {"$ref": f"#/components/schemas/{model.__name__}"} for name, model in EVENTS.items()}
    text = "Server-sent events; each one's data is JSON of the model that x-events names for it."
    schema = {"type": "string", "description": text, "x-events": events}
    return {
        "description": "The answer, whole or as it grows",
        "content": {"text/event-stream": {"schema": schema}},
    }


def body(model: type[ReasonRequest]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}


def true_openapi(app: FastAPI, *, token: bool) -> None:
    """Adds what FastAPI cannot know: the events' models, and whether a token is asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schema["components"]["schemas"] |= _event_schemas()
            if token:
                _ask_for_token(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _event_schemas() -> dict[str, Any]:
    pairs: list[tuple[type[BaseModel], JsonSchemaMode]] = [(m, "serialization") for m in EVENTS.values()]
    return models_json_schema(pairs, ref_template="#/components/schemas/{model}")[1]["$defs"]


def _ask_for_token(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        if path.startswith("/v1/"):
            for operation in operations.values():
                operation["security"] = [{"token": []}]
