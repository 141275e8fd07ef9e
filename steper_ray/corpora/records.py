"""Records out of files, one at a time, each with its place: JSON, tables, Arrow, Parquet and documents.

A record that cannot be read goes to the `ErrorLog`. Memory holds one record (of Parquet and Arrow one small batch).
Knows nothing of what the records mean.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steper_ray.core.errors import DataError
from steper_ray.corpora.documents import read_document
from steper_ray.corpora.files import BROKEN, DOCUMENTS, DataFile
from steper_ray.corpora.json_files import read_json
from steper_ray.corpora.places import ErrorLog, Place

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_ROWS = 256


def read_records(
    files: Iterable[DataFile], log: ErrorLog, characters: int = 0
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Every object of the files. A file that ends in the middle is malformed at that place.

    `characters` is the length that documents are split to; 0 reads no documents.
    """
    for file in files:
        position = "its beginning"
        try:
            for place, value in _read(file, log, characters):
                position = place.record
                if isinstance(value, dict):
                    yield place, value
                else:
                    log.malformed(place, f"expected an object, found {_kind(value)}")
        except BROKEN as error:
            if not file.is_compressed:
                raise DataError(f"{file}: cannot be read: {error}") from error
            log.malformed(Place(str(file), f"after {position}"), f"the file is broken or cut off ({error})")


def _read(file: DataFile, log: ErrorLog, characters: int) -> Iterator[tuple[Place, Any]]:
    if characters and file.suffix in DOCUMENTS:
        return read_document(file, characters, log)
    if file.suffix in _SEPARATORS:
        return _read_table(file, log)
    if file.suffix in (".parquet", ".arrow"):
        return _read_columns(file, log)
    return read_json(file, log)


def _read_table(file: DataFile, log: ErrorLog) -> Iterator[tuple[Place, Any]]:
    """Rows by the names of the first line; an empty cell is a field that is not there.

    A first line whose second and last cell is a list is a row: DPR's files of questions and answers have no names.
    """
    separator, line = _SEPARATORS[file.suffix], 0
    csv.field_size_limit(1 << 30)  # the default of 131,072 characters is less than a long passage
    try:
        with file.open() as stream:
            first = stream.peek(1 << 16).split(b"\n", 1)[0]
            # Under the name .csv there are tabs too, and semicolons where commas are decimal points.
            separator = next((one for one in "\t;" if one.encode() in first and b"," not in first), separator)
            if b"\t[" in first:
                separator = "\t"
            text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
            rows = csv.reader(text, delimiter=separator)
            names: list[str] | None = None
            for row in rows:
                place, line = Place(str(file), f"line {line + 1}"), rows.line_num
                if names is None:
                    if not (len(row) == 2 and row[1].startswith("[")):
                        names = row
                        continue
                    names = ["question", "answers"]
                if not row:
                    continue
                if len(row) != len(names):
                    log.malformed(place, f"the row has {len(row)} columns, the first line has {len(names)}")
                else:
                    yield place, {name: cell for name, cell in zip(names, row, strict=True) if cell}
    except (UnicodeDecodeError, csv.Error) as error:
        log.malformed(Place(str(file), f"line {line + 1}"), f"nothing from here on can be read: {error}")


def _read_columns(file: DataFile, log: ErrorLog) -> Iterator[tuple[Place, Any]]:
    """Rows of a Parquet file, or of an Arrow file as `datasets` writes them."""
    number, parquet = 0, file.suffix == ".parquet"
    try:
        with file.open() as stream:
            batches = (
                pq.ParquetFile(stream).iter_batches(_ROWS, use_threads=False)
                if parquet
                else pa.ipc.open_stream(stream)
            )
            for batch in batches:
                for start in range(0, batch.num_rows, _ROWS):
                    for row in batch.slice(start, _ROWS).to_pylist():
                        number += 1
                        yield Place(str(file), f"record {number}"), row
    except (pa.ArrowException, OSError) as error:
        name = "Parquet" if parquet else "Arrow"
        log.malformed(Place(str(file), f"record {number + 1}"), f"not readable as {name}: {error}")


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
