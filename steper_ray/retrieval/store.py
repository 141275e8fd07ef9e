"""Passages on disk, looked up by position: an Arrow file that is memory-mapped, never loaded.

Writing is one streaming pass that also checks the ids and computes the corpus fingerprint. Knows nothing of
search.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from steper_ray.core.fingerprints import PassageDigest
from steper_ray.errors import DataError
from steper_ray.schema import PASSAGE_SCHEMA, Passage

BATCH_ROWS = 4096  # rows of every batch but the last: turns a position into a batch and a row


def write_passages(passages: Iterable[Passage], path: Path) -> tuple[int, str]:
    """Writes passages as they stream by; returns their number and their fingerprint.

    Raises DataError for an empty corpus and for an id that comes twice.
    """
    digest, seen = PassageDigest(), set[str]()
    stream = iter(passages)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, PASSAGE_SCHEMA) as writer:
        while rows := list(islice(stream, BATCH_ROWS)):
            for row in rows:
                if row.id in seen:
                    raise DataError(
                        f"corpus: passage id '{row.id}' comes twice (passage {len(seen) + 1}): ids name "
                        "passages, make them unique"
                    )
                seen.add(row.id)
                digest.add(row)
            columns = [[row.id for row in rows], [row.title for row in rows], [row.text for row in rows]]
            arrays = [pa.array(column, pa.string()) for column in columns]
            writer.write_batch(pa.record_batch(arrays, schema=PASSAGE_SCHEMA))
    if not seen:
        raise DataError("corpus: no passages: an index needs at least one; check `corpus.passages`")
    return len(seen), digest.hex()


class PassageStore:
    """Random access to the passages of `write_passages`. Safe to read from several threads."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or pyarrow.ArrowInvalid for a file that is missing or broken."""
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches: list[Any] = [reader.get_batch(n) for n in range(reader.num_record_batches)]

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self._batches)

    def __getitem__(self, position: int) -> Passage:
        batch, row = divmod(position, BATCH_ROWS)
        fields = (self._batches[batch].column(n)[row].as_py() for n in range(3))
        return Passage(*fields)

    def __iter__(self) -> Iterator[Passage]:
        for batch in self._batches:
            columns = (batch.column(n).to_pylist() for n in range(3))
            yield from map(Passage, *columns)
