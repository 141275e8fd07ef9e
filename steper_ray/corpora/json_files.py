"""JSON files, streamed: a record a line, arrays, `{"data": [...]}`, `{id: record}`, and records over several lines.

The form is seen from the first value of a file, of which no more than a few records are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import ijson

from steper_ray.corpora.files import DataFile
from steper_ray.corpora.places import ErrorLog, Place

_PEEK = 4096  # bytes
_WRAPPERS = (
    "data",
    "examples",
    "questions",
    "passages",
    "documents",
    "rows",
    "records",
    "items",
    "instances",
)
#: A value with one of these is a record, and what it holds is part of it.
_OF_RECORDS = ("id", "_id", "question", "query", "text", "title")
_ENOUGH = 4  # objects, and nothing else, in a value: it maps ids to records

Form = Literal["lines", "values", "map"] | str
"""`lines`, `values` (one after another), `map` (id to record), or the path of an array's items."""


def read_json(file: DataFile, log: ErrorLog) -> Iterator[tuple[Place, Any]]:
    """Every value of the file, with its place."""
    form = _form(file)
    with file.open() as stream:
        if form == "lines":
            yield from _lines(file, stream, log)
        else:
            yield from _values(file, stream, log, form)


def _form(file: DataFile) -> Form:
    with file.open() as stream:
        begins = stream.peek(_PEEK)[:_PEEK].lstrip()
        if begins.startswith(b"["):
            return "item"
        first_line = stream.peek(_PEEK)[:_PEEK].split(b"\n", 1)[0].strip()
        if not begins.startswith(b"{"):
            return "lines"
        try:
            if (found := _container(stream)) is not None:
                return found
        except ijson.JSONError:
            return "values" if first_line == b"{" else "lines"
    with file.open() as stream:
        line = next((line for line in stream if line.strip()), b"")
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return "values"
    return "lines"


def _container(stream: BinaryIO) -> Form | None:
    """The form of a first value that holds the records; None for one that is a record. Raises ijson.JSONError."""
    depth = objects = others = 0
    key, at_value = "", False
    for event, value in ijson.basic_parse(stream, multiple_values=True):
        if at_value and event == "start_array" and key in _WRAPPERS:
            return f"{key}.item"
        if at_value and event == "start_map":
            objects += 1
        elif at_value:
            others += 1
        if key in _OF_RECORDS and others:
            return None
        if objects == _ENOUGH and not others:
            return "map"
        at_value = False
        if event == "map_key" and depth == 1:
            key, at_value = value, True
        depth += (event in ("start_map", "start_array")) - (event in ("end_map", "end_array"))
        if not depth:
            return "map" if objects and not others else None
    return None


def _lines(file: DataFile, stream: BinaryIO, log: ErrorLog) -> Iterator[tuple[Place, Any]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        place = Place(str(file), f"line {number}")
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            log.malformed(place, f"not UTF-8 ({error.reason} at byte {error.start})")
        except (ValueError, RecursionError) as error:
            hint = "" if line.endswith(b"\n") else " (the last line: is the file cut off?)"
            log.malformed(place, f"not valid JSON{hint}: {error}")
        else:
            yield place, value


def _values(file: DataFile, stream: BinaryIO, log: ErrorLog, form: Form) -> Iterator[tuple[Place, Any]]:
    number = 0
    try:
        if form == "map":
            for key, value in ijson.kvitems(stream, "", use_float=True):
                number += 1
                named = isinstance(value, dict) and not ("id" in value or "_id" in value)
                yield Place(str(file), f"record {key!r}"), {"id": key, **value} if named else value
            return
        path, several = ("", True) if form == "values" else (form, False)
        found = ijson.items(stream, path, use_float=True, multiple_values=several)
        for number, value in enumerate(found, start=1):
            yield Place(str(file), f"record {number}"), value
    except ijson.JSONError as error:
        message = " ".join(str(error).split())
        log.malformed(
            Place(str(file), f"record {number + 1}"),
            f"not valid JSON, and nothing after it can be read (is the file cut off?): {message}",
        )
