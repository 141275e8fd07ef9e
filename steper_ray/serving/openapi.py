"""Parts of the OpenAPI document that FastAPI cannot derive: error bodies and the events of streams."""

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
    408: "The body was not complete in time.",
    413: "The body or the question is too long.",
    415: "The body is not application/json.",
    422: "A field is missing, unknown or out of its range.",
    429: "The queue is full; see Retry-After.",
    500: "A fault of the server.",
    503: "The engine or the index cannot answer now; see Retry-After.",
    504: "No step was done before the deadline.",
}

_RETRY_AFTER = {
    "retry-after": {
        "description": "Seconds to wait before asking again.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    }
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these error statuses."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        found[status] = {"model": ErrorBody, "description": ERRORS[status]}
        if status in (429, 503):
            found[status]["headers"] = _RETRY_AFTER
    return found


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


def complete_openapi(app: FastAPI) -> None:
    """Adds the models of events and of requests' parts, which FastAPI does not see in the routes."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schema["components"]["schemas"] |= _other_schemas()
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _other_schemas() -> dict[str, Any]:
    sent: list[type[Wire]] = [*EVENTS.values(), ChatChunk]
    pairs: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "serialization") for model in sent]
    parts = ChatRequest.model_json_schema(ref_template=_REF)["$defs"]
    schemas: dict[str, Any] = parts | models_json_schema(pairs, ref_template=_REF)[1]["$defs"]
    return schemas
