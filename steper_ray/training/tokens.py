"""Trajectories as token ids: memory-mapped Arrow files, one a Parquet file of trajectories (see `token_writer`).

- A row holds all that batches are made from, whatever the method, the steps and the packing: selecting needs no text.
- A token file is whole or not there: its note, written after it, holds its SHA-256, size, rows and highest token id.
- No bit is read that was not written: the SHA-256 is verified before training, each row's CRC whenever it is read.

No Ray, no model.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from steper_ray.core.copies import local
from steper_ray.core.errors import TrainingError
from steper_ray.core.fingerprints import file_fingerprint

Ints = npt.NDArray[np.int32]

_IDS = pa.list_(pa.int32())
LISTS = ("trunk", "question", "chain", "cuts", "ends", "tasks", "soft_ids", "soft_logprobs")
#: `draw` is the question's number of splits.py. A step's trunk is the first `cuts` ids of `trunk`, its target the first
#: `ends` ids of `chain` and the end of sequence. `soft_ids` and `soft_logprobs` have the teacher's likeliest tokens,
#: as many of each id of `chain`. `crc` is the CRC-32 of the row's lists, in their order.
SCHEMA = pa.schema(
    [("id", pa.string()), ("draw", pa.float64())]
    + [(name, _IDS) for name in LISTS[:-1]]
    + [(LISTS[-1], pa.list_(pa.float16())), ("crc", pa.uint32())]
)
_FIX = "Delete it and train again: it alone is made again"


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token files of the trajectories at `source`, one a Parquet file."""

    source: Path
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """The note of a whole token file. `words` are the tokens of its chains, `soft` those that have soft targets."""

    sha256: str
    bytes: int
    rows: int
    highest: int
    words: int
    soft: int


def note_of(file: Path) -> Note | None:
    """The note of a token file; None where it or its note is missing or cut short."""
    try:
        note = Note(**json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
        return note if file.stat().st_size == note.bytes else None
    except (OSError, ValueError, TypeError):
        return None


def is_whole(file: Path) -> bool:
    """Whether a token file is there and its bytes are those that were written."""
    note = note_of(file)
    return note is not None and file_fingerprint(file) == note.sha256


def crc(lists: Iterable[Ints]) -> int:
    return reduce(lambda crc, ids: zlib.crc32(ids.tobytes(), crc), lists, 0)


class Lists:
    """A column of lists, in place: row i is `values[offsets[i] : offsets[i + 1]]`."""

    def __init__(self, column: pa.ListArray) -> None:
        self.offsets: Ints = column.offsets.to_numpy()
        self.values: Ints = column.values.to_numpy()

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)

    def row(self, index: int) -> Ints:
        return self.values[self.offsets[index] : self.offsets[index + 1]]


class Chunk:
    """One record batch, in place."""

    def __init__(self, file: Path, batch: pa.RecordBatch) -> None:
        self._file = file
        self.ids: pa.StringArray = batch.column("id")
        self.draws: npt.NDArray[np.float64] = batch.column("draw").to_numpy()
        self._lists = [Lists(batch.column(name)) for name in LISTS]
        self.trunk, self.question, self.chain, self.cuts, self.ends, self.tasks, *_ = self._lists
        self._crc: npt.NDArray[np.uint32] = batch.column("crc").to_numpy()

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> list[Any]:
        """The lists of a trajectory, as LISTS names them. Raises TrainingError where a bit changed."""
        lists: list[Any] = [column.row(index) for column in self._lists]
        if crc(lists) != self._crc[index]:
            raise TrainingError(
                f"{self._file}: damaged at trajectory {self.ids[index].as_py()} (its CRC-32 differs). {_FIX}"
            )
        return lists


class OpenTokens:
    """The token files of one source, memory-mapped: what is read is shared by all processes of a node.

    Rows are numbered over all files. Raises TrainingError for a file that is not whole.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.source = tokens.source
        self.chunks: list[Chunk] = []
        self.highest = self.eos = -1
        for file in tokens.files:
            self._open(file)
        self._starts = np.cumsum([0, *map(len, self.chunks)])

    def _open(self, file: Path) -> None:
        note = note_of(file)
        if note is None:
            raise TrainingError(f"{file}: this file of tokens is missing or not whole. {_FIX}")
        self.highest = max(self.highest, note.highest)
        try:
            # The mapping outlives the open file for as long as an array looks at it.
            with pa.memory_map(str(local(file))) as mapped, pa.ipc.open_file(mapped) as reader:
                self.eos = int(reader.schema.metadata[b"eos"])
                self.chunks += [Chunk(file, reader.get_batch(i)) for i in range(reader.num_record_batches)]
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise TrainingError(f"{file}: this file of tokens cannot be read: {error}. {_FIX}") from error

    def __len__(self) -> int:
        return int(self._starts[-1])

    def ids(self) -> pa.StringArray:
        """A copy of all ids."""
        return pa.concat_arrays([pa.array([], pa.string()), *(chunk.ids for chunk in self.chunks)])

    def place(self, row: int) -> tuple[Chunk, int]:
        """The chunk of a row and its index there."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.chunks[number], row - int(self._starts[number])

    def beyond(self, size: int) -> tuple[str, int] | None:
        """The first trajectory with a token id of at least `size`, and the id; None where there is none."""
        if self.highest < size:
            return None
        for chunk in self.chunks:
            for index, name in enumerate(chunk.ids):
                columns = (chunk.trunk, chunk.question, chunk.chain)
                highest = max((int(c.row(index).max(initial=-1)) for c in columns), default=-1)
                if highest >= size:
                    return name.as_py(), highest
        return "of any trajectory", self.highest
