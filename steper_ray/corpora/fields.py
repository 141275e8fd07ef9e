"""Checked access to the fields of a record: what comes out has the type that was asked for.

Every function raises Malformed, naming the field. Text must be UTF-8 and ids may be whole numbers.
"""

from __future__ import annotations

import json
from typing import Any

from steper_ray.corpora.records import Malformed

Record = dict[str, Any]


def get(record: Record, name: str) -> Any:
    """A field that must be there and not null."""
    if record.get(name) is None:
        has = ", ".join(list(record)[:20])
        raise Malformed(
            f"field '{name}' is null"
            if name in record
            else f"field '{name}' is missing (the record has: {has})"
        )
    return record[name]


def either(record: Record, *names: str) -> str:
    """The first of the names whose field is not null; the first of all where none is."""
    return next((name for name in names if record.get(name) is not None), names[0])


def as_text(value: Any, name: str, *, empty: bool = False) -> str:
    """A string with something in it; `empty` allows a blank one."""
    if not isinstance(value, str):
        raise Malformed(f"field '{name}' must be a string, not {type(value).__name__}")
    if not empty and not value.strip():
        raise Malformed(f"field '{name}' is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Malformed(
            f"field '{name}' has a character that is not Unicode text ({error.reason})"
        ) from error
    return value


def as_id(value: Any, name: str) -> str:
    """A string or a whole number, as a string."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else as_text(value, name)


def as_list(value: Any, name: str, length: int | None = None) -> list[Any]:
    """A list, of a certain length if one is given."""
    if not isinstance(value, list):
        raise Malformed(f"field '{name}' must be a list, not {type(value).__name__}")
    if length is not None and len(value) != length:
        raise Malformed(f"field '{name}' must have {length} parts, not {len(value)}")
    return value


def as_record(value: Any, name: str) -> Record:
    if not isinstance(value, dict):
        raise Malformed(f"field '{name}' must be an object, not {type(value).__name__}")
    return value


def as_index(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Malformed(f"field '{name}' must be a whole number from 0, not {value!r}"[:200])
    return value


def text(record: Record, name: str, *, empty: bool = False) -> str:
    return as_text(get(record, name), name, empty=empty)


def identifier(record: Record, name: str) -> str:
    return as_id(get(record, name), name)


def items(record: Record, name: str) -> list[Any]:
    """A list; some releases store it as a string of JSON."""
    value = get(record, name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"field '{name}' is a string that is not JSON: {error}") from error
    return as_list(value, name)


def pairs(record: Record, name: str, *seconds: str) -> list[Any]:
    """A list of `[title, second]`, which Hugging Face's copies store as two columns: `{title: [...], second: [...]}`.

    `seconds` are the names that the second column may have.
    """
    value = record.get(name)
    if not isinstance(value, dict):
        return items(record, name)
    titles = as_list(get(value, "title"), f"{name}.title")
    second = either(value, *seconds)
    values = as_list(get(value, second), f"{name}.{second}", length=len(titles))
    return [[title, other] for title, other in zip(titles, values, strict=True)]


def optional_items(record: Record, name: str) -> list[Any]:
    return [] if record.get(name) in (None, "") else items(record, name)


def answers(first: Any, others: list[Any]) -> tuple[str, ...]:
    """The canonical answer and its aliases, stripped, each once; blank aliases are dropped."""
    canonical = as_text(first, "answer").strip()
    aliases = (as_text(other, "answers", empty=True).strip() for other in others)
    return tuple(dict.fromkeys((canonical, *filter(None, aliases))))
