"""Field types of the layouts' models: checked text, ids, and fields that people store in several forms.

`validated` turns a record into its model, or raises Malformed with the field and what it should be.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from steper_ray.corpora.places import Malformed

Record = Mapping[str, Any]


class Layout(BaseModel):
    """A record of one layout; fields it does not name are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Model = TypeVar("Model", bound=Layout)


def validated(model: type[Model], record: Record) -> Model:
    """Raises Malformed."""
    try:
        return model.model_validate(record)
    except ValidationError as error:
        raise Malformed(_reason(error, record)) from None


_WANTED = {
    "string_type": "a string",
    "list_type": "a list",
    "tuple_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
}


def _reason(error: ValidationError, record: Record) -> str:
    """The first fault in one line."""
    first = error.errors(include_url=False)[0]
    name, kind, value = ".".join(str(part) for part in first["loc"]), first["type"], first["input"]
    if kind == "missing":
        has = f" (the record has: {', '.join(list(record)[:20])})" if len(first["loc"]) == 1 else ""
        return f"field '{name}' is missing{has}"
    if value is None:
        return f"field '{name}' is null"
    if kind in _WANTED:
        return f"field '{name}' must be {_WANTED[kind]}, not {type(value).__name__}"
    if kind == "too_long":
        return f"field '{name}' must have {first['ctx']['max_length']} parts, not {len(value)}"
    if kind == "value_error":
        return f"field '{name}' {first['ctx']['error']}"
    return f"field '{name}': {first['msg']}"


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a character that is not Unicode text ({error.reason})") from error
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty")
    return _text(value)


def _id(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _number(value: Any) -> Any:
    return str(value) if isinstance(value, float) else _id(value)


def _unless_blank(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


def from_json(value: Any) -> Any:
    """Some releases store lists as strings of JSON; an empty string stands for none."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value else []
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is a string that is not JSON: {error}") from error


def _listed(value: Any) -> Any:
    """One answer or several; tables store several as a list in JSON or Python's spelling (DPR), SQuAD under `text`."""
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    value = _number(value)
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = None
        if isinstance(found, list) and found:
            return found
    return [value]


def _or_empty(value: Any) -> Any:
    return [] if value is None else value


def pairs(*seconds: str) -> Callable[[Any], Any]:
    """Reads `[[title, second], ...]`, which hub copies store as two columns: `{title: [...], second: [...]}`.

    `seconds` are the names that the second column may have.
    """

    def read(value: Any) -> Any:
        value = from_json(value)
        if not isinstance(value, dict):
            return value
        second = next((name for name in seconds if value.get(name) is not None), seconds[0])
        titles, others = value.get("title"), value.get(second)
        if not isinstance(titles, list) or not isinstance(others, list):
            raise ValueError(f"must have the lists 'title' and '{second}' (it has: {', '.join(value)})")
        if len(titles) != len(others):
            raise ValueError(f"has {len(titles)} of 'title' and {len(others)} of '{second}'")
        return list(zip(titles, others, strict=True))

    return read


MaybeEmpty = Annotated[str, AfterValidator(_text)]
Text = Annotated[str, AfterValidator(_not_blank)]
Stripped = Annotated[str, AfterValidator(_not_blank), AfterValidator(str.strip)]
Id = Annotated[str, BeforeValidator(_id), AfterValidator(_not_blank)]
"""A string or a whole number, as a string."""
OptionalAnswer = Annotated[Stripped | None, BeforeValidator(_unless_blank), BeforeValidator(_number)]
"""Absent, null and blank are the same: test splits without answers have any of them."""

Item = TypeVar("Item")
Items = Annotated[tuple[Item, ...], BeforeValidator(from_json), BeforeValidator(_or_empty)]
"""A list, or a string of JSON; null is empty."""
Context = Annotated[list[tuple[MaybeEmpty, list[MaybeEmpty]]], BeforeValidator(pairs("sentences", "content"))]
"""`[[title, [sentence, ...]], ...]`, or as a hub copy has it."""
Facts = Annotated[
    tuple[tuple[Stripped, int | None], ...], BeforeValidator(pairs("sent_id")), BeforeValidator(_or_empty)
]
"""`[[title, number of the sentence], ...]`, or as a hub copy has it."""
Answer = Annotated[str, BeforeValidator(_number), AfterValidator(_text)]
"""A number stands for its digits."""
Answers = Annotated[tuple[Answer, ...], BeforeValidator(_listed), BeforeValidator(_or_empty)]


def answers(*values: str | None) -> tuple[str, ...]:
    """The canonical answer and its aliases, stripped, each once; blank ones are dropped."""
    return tuple(dict.fromkeys(filter(None, ((value or "").strip() for value in values))))
