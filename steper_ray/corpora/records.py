"""Records out of files, one at a time, each with its place: JSON, Parquet, CSV and TSV, plain or compressed.

A record that cannot be read goes to an `ErrorLog`, which stops or takes a note by setting. Memory holds one
record (of Parquet one small batch). Knows nothing of what the records mean.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from steper_ray.core.errors import DataError

_COMPRESSED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_TABLES = {".csv": ",", ".tsv": "\t"}
_TEXT = (".jsonl", ".json", *_TABLES)
SUFFIXES = (*_TEXT, *(text + suffix for text in _TEXT for suffix in _COMPRESSED), ".parquet")
_PARQUET_ROWS = 256
_BOM = b"\xef\xbb\xbf"
_PEEK = 4096


class Malformed(ValueError):
    """A record that cannot be used; the message says why. Never leaves this room."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that was omitted: its file, its line (`line 3`) or number (`record 3`), and why."""

    file: str
    record: str
    reason: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands."""

    file: Path
    record: str


@dataclass(slots=True)
class ErrorLog:
    """What happens to a malformed record. Reading a file twice notes each of its records once."""

    on_error: Literal["stop", "skip"]
    _notes: dict[Skipped, None] = field(default_factory=dict)

    @property
    def skipped(self) -> list[Skipped]:
        return list(self._notes)

    def malformed(self, place: Place, reason: str) -> None:
        """Raises DataError with `on_error` stop; otherwise takes a note."""
        if self.on_error == "stop":
            raise DataError(
                f"{place.file}, {place.record}: {reason}. Correct it (docs/data.md lists the layouts), or set "
                "corpus.on_error=skip to leave such records out"
            )
        self.leave_out(place, reason)

    def leave_out(self, place: Place, reason: str) -> None:
        """Notes a record that is well-formed but of no use."""
        self._notes[Skipped(str(place.file), place.record, reason)] = None


def find_files(path: Path, setting: str) -> list[Path]:
    """The files a setting names: a file, all data files of a folder, or those of a glob, sorted by name.

    Raises DataError where there are none.
    """
    path = path.expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise DataError(
                f"{path}: no data files in this folder ({', '.join(SUFFIXES)}): correct {setting}"
            )
        return files
    if path.is_file():
        return [path]
    files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not files:
        raise DataError(f"{path}: no such file: correct {setting}")
    return files


def read_records(files: list[Path], log: ErrorLog) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Every JSON object of the files. A file that ends in the middle is malformed at that place."""
    for file in files:
        for place, value in _read_parquet(file, log) if file.suffix == ".parquet" else _read_text(file, log):
            if isinstance(value, dict):
                yield place, value
            else:
                log.malformed(place, f"expected an object, found {_kind(value)}")


def _read_text(file: Path, log: ErrorLog) -> Iterator[tuple[Place, Any]]:
    """A table by its name; otherwise an array where the file begins with '[', and one value a line where not."""
    with _open(file) as stream:
        position = "its beginning"
        try:
            if stream.peek(len(_BOM)).startswith(_BOM):
                stream.read(len(_BOM))
            is_array = stream.peek(_PEEK)[:_PEEK].lstrip().startswith(b"[")
            read = _read_table if _table(file) else _read_array if is_array else _read_lines
            for place, value in read(file, stream, log):
                position = place.record
                yield place, value
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            if file.suffix not in _COMPRESSED:
                raise DataError(f"{file}: cannot be read: {error}") from error
            log.malformed(
                Place(file, f"after {position}"), f"the {file.suffix} file is broken or cut off ({error})"
            )


def _table(file: Path) -> str | None:
    """The separator of a CSV or TSV file's columns; None for any other file."""
    return _TABLES.get(Path(file.stem).suffix if file.suffix in _COMPRESSED else file.suffix)


def _read_table(file: Path, stream: BinaryIO, log: ErrorLog) -> Iterator[tuple[Place, Any]]:
    """Rows by the names of the first line; an empty cell is a field that is not there."""
    number = 0
    csv.field_size_limit(1 << 30)  # the default of 131,072 characters is less than a long passage
    try:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        for number, row in enumerate(csv.DictReader(text, delimiter=_table(file) or ","), start=1):
            place = Place(file, f"record {number}")
            if None in row or None in row.values():
                log.malformed(place, "the row has another number of columns than the first line")
            else:
                yield place, {name: value for name, value in row.items() if value}
    except (UnicodeDecodeError, csv.Error) as error:
        log.malformed(Place(file, f"record {number + 1}"), f"nothing from here on can be read: {error}")


def _open(file: Path) -> Any:
    """A buffered byte stream that can peek."""
    try:
        return _COMPRESSED.get(file.suffix, partial(open, mode="rb"))(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be opened: {error.strerror}") from error


def _read_lines(file: Path, stream: BinaryIO, log: ErrorLog) -> Iterator[tuple[Place, Any]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        place = Place(file, f"line {number}")
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            log.malformed(place, f"not UTF-8 ({error.reason} at byte {error.start})")
        except (ValueError, RecursionError) as error:
            hint = "" if line.endswith(b"\n") else " (the last line: is the file cut off?)"
            log.malformed(place, f"not valid JSON{hint}: {error}")
        else:
            yield place, value


def _read_array(file: Path, stream: BinaryIO, log: ErrorLog) -> Iterator[tuple[Place, Any]]:
    number = 0
    try:
        for number, value in enumerate(ijson.items(stream, "item", use_float=True), start=1):
            yield Place(file, f"record {number}"), value
    except ijson.JSONError as error:
        message = " ".join(str(error).split())
        place = Place(file, f"record {number + 1}")
        log.malformed(
            place, f"not valid JSON, and nothing after it can be read (is the file cut off?): {message}"
        )


def _read_parquet(file: Path, log: ErrorLog) -> Iterator[tuple[Place, Any]]:
    number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield Place(file, f"record {number}"), row
    except (pa.ArrowException, OSError) as error:
        log.malformed(Place(file, f"record {number + 1}"), f"not readable as Parquet: {error}")


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
