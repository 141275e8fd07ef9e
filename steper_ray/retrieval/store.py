"""Passages on disk, looked up by position: an Arrow file that is memory-mapped, never loaded.

Writing is one streaming pass that also checks the ids and computes the corpus fingerprint. Knows nothing of
search.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from steper_ray.core.copies import local
from steper_ray.core.errors import DataError
from steper_ray.core.fingerprints import PassageDigest
from steper_ray.schema import PASSAGE_SCHEMA, Passage

PASSAGES = "passages.arrow"  # the file's name in an index
BATCH_ROWS = 4096  # rows of every batch but the last: turns a position into a batch and a row


def write_passages(passages: Iterable[Passage], path: Path) -> tuple[int, str]:
    """Writes passages as they stream by; returns their number and their fingerprint.

    Raises DataError for an empty corpus and for an id that comes twice.
    """
    digest, ids = PassageDigest(), array("q")
    stream = iter(passages)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, PASSAGE_SCHEMA) as writer:
        while rows := list(islice(stream, BATCH_ROWS)):
            for row in rows:
                ids.append(hash(row.id))  # 8 bytes a passage
                digest.add(row)
            columns = [[row.id for row in rows], [row.title for row in rows], [row.text for row in rows]]
            arrays = [pa.array(column, pa.string()) for column in columns]
            writer.write_batch(pa.record_batch(arrays, schema=PASSAGE_SCHEMA))
    if not ids:
        raise DataError("corpus: no passages: an index needs at least one; check `corpus.passages`")
    if len(np.unique(np.frombuffer(ids, np.int64))) < len(ids):
        _refuse_repeated(path)
    return len(ids), digest.hex()


def _refuse_repeated(path: Path) -> None:
    seen = set[str]()
    for passage in PassageStore(path):
        if passage.id in seen:
            raise DataError(
                f"corpus: passage id '{passage.id}' comes twice (passage {len(seen) + 1}): ids name passages, make "
                "them unique"
            )
        seen.add(passage.id)


class PassageStore:
    """Random access to the passages of `write_passages`. Safe to read from several threads."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or pyarrow.ArrowInvalid for a file that is missing or broken."""
        reader = pa.ipc.open_file(pa.memory_map(str(local(path))))
        self._batches: list[Any] = [reader.get_batch(n) for n in range(reader.num_record_batches)]
        self._columns = [[batch.column(n) for n in range(3)] for batch in self._batches]

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self._batches)

    def __getitem__(self, position: int) -> Passage:
        batch, row = divmod(position, BATCH_ROWS)
        return Passage(*(column[row].as_py() for column in self._columns[batch]))

    def by_id(self, id: str) -> Passage | None:
        """The passage with this id. The first call reads all ids; 16 bytes of each stay in memory."""
        hashes, positions = self._ids
        place = int(np.searchsorted(hashes, hash(id)))
        while place < len(hashes) and hashes[place] == hash(id):
            passage = self[int(positions[place])]
            if passage.id == id:
                return passage
            place += 1
        return None

    @cached_property
    def _ids(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The hashes of the ids in order, and the position of each."""
        ids = (hash(id) for columns in self._columns for id in columns[0].to_pylist())
        hashes = np.fromiter(ids, np.int64, len(self))
        positions = np.argsort(hashes, kind="stable")
        return hashes[positions], positions

    def texts(self, first: int, end: int) -> Iterator[tuple[str, str]]:
        """Title and text of the passages from `first` to before `end`, or of all that are there."""
        for number in range(first // BATCH_ROWS, len(self._batches)):
            start = number * BATCH_ROWS
            if start >= end:
                return
            batch = self._batches[number].slice(max(0, first - start), end - max(first, start))
            yield from zip(batch.column(1).to_pylist(), batch.column(2).to_pylist(), strict=True)

    def __iter__(self) -> Iterator[Passage]:
        for batch in self._batches:
            yield from map(Passage, *(batch.column(n).to_pylist() for n in range(3)))


@dataclass(frozen=True, slots=True)
class LongPassages:
    """Passages of an index with more than `limit` characters, title and text together."""

    limit: int
    count: int
    total: int
    id: str
    """Of the longest one, as are `title` and `chars`."""
    title: str
    chars: int

    def summary(self, happens: str) -> str:
        """One line for a person, empty where there are none; `happens` is `reasoning.long_passages`."""
        if not self.count:
            return ""
        verb = "cut there" if happens == "cut" else "left out"
        return (
            f"{self.count:,} of {self.total:,} have more than {self.limit:,} characters (reasoning.max_passage_chars) "
            f"and are {verb}; the longest, '{self.title[:80]}' (id '{self.id}'), has {self.chars:,}"
        )


def long_passages(index: Path, limit: int) -> LongPassages | None:
    """Counts them in one pass over a finished index; None where no passages can be read."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(local(index) / PASSAGES)))
        batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
    except (OSError, pa.ArrowException):
        return None
    count, longest = 0, ("", "", 0)
    for batch in batches:
        chars = pc.add(pc.utf8_length(batch["title"]), pc.utf8_length(batch["text"]))
        count += pc.sum(pc.greater(chars, limit)).as_py()
        most = pc.max(chars).as_py()
        if most > longest[2]:
            row = pc.index(chars, most).as_py()
            longest = (batch["id"][row].as_py(), batch["title"][row].as_py(), most)
    return LongPassages(limit, count, sum(batch.num_rows for batch in batches), *longest)
