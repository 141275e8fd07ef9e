"""The questions of a run as one Arrow file, a record batch a shard, so that no process holds them all.

- The same questions give the same file name; a finished file is verified by its SHA-256 before it is read.
- A shard of questions has a digest of its content: the ids of trajectory shards are made from it.
- A question id that comes twice is refused: trajectories are named by it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from steper_ray.core.copies import local
from steper_ray.core.errors import DataError
from steper_ray.core.files import commit, discard, file_sha256, storing, temporary, write_text
from steper_ray.core.fingerprints import digest, file_fingerprint
from steper_ray.schema import QUESTION_SCHEMA, Question, question_from_row, to_row


@dataclass(frozen=True, slots=True)
class QuestionFile:
    """A finished file: `digests[i]` is that of the i-th shard's questions, `key` the digest of all of them."""

    path: Path
    key: str
    count: int
    shard_size: int
    sha256: str
    digests: tuple[str, ...]
    skipped: int = 0
    """Records that were omitted when the questions and passages were read."""

    def __len__(self) -> int:
        return len(self.digests)

    def read(self, shard: int) -> tuple[Question, ...]:
        """The questions of one shard. Raises DataError where the file is damaged."""
        with self._opened() as reader:
            return _questions(reader.get_batch(shard))

    def __iter__(self) -> Iterator[Question]:
        with self._opened() as reader:
            for number in range(reader.num_record_batches):
                yield from _questions(reader.get_batch(number))

    def _opened(self) -> pa.ipc.RecordBatchFileReader:
        try:
            if file_fingerprint(self.path) != self.sha256:
                raise DataError(
                    f"{self.path}: changed since it was written (its SHA-256 differs). Delete it and run again"
                )
            return pa.ipc.open_file(pa.OSFile(str(local(self.path))))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: cannot be read: {error}. Delete it and run again") from error


def write_questions(
    folder: Path,
    questions: Iterable[Question],
    shard_size: int,
    name: str | None = None,
    skipped: Callable[[], int] = lambda: 0,
) -> QuestionFile:
    """Writes the questions below `folder` in shards of `shard_size` (the last may be smaller).

    With `name`, a digest of what the questions come from, a file of that name is taken as it is and the questions are
    not read. `skipped` is called once they are read. Raises DataError for an id that comes twice, and StorageError.
    """
    if name is not None and (known := known_questions(folder, shard_size, name)) is not None:
        return known
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fresh = temporary(folder / "questions")
        try:
            count, digests = _write(fresh, questions, shard_size)
            key = digest(digests)
            path = folder / f"{key[:32] if name is None else _stem(shard_size, name)}.arrow"
            written = QuestionFile(
                path, key, count, shard_size, file_sha256(fresh), tuple(digests), skipped()
            )
            commit(fresh, path)
        finally:
            discard(fresh)
    note = json.loads(json.dumps(asdict(written) | {"path": None}))
    write_text(path.with_suffix(".json"), json.dumps({**note, "check": digest(note)}) + "\n")
    return written


def known_questions(folder: Path, shard_size: int, name: str) -> QuestionFile | None:
    """The finished file of what `name` is a digest of; None where there is none, or it is damaged."""
    path = folder / f"{_stem(shard_size, name)}.arrow"
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        check = note.pop("check")
        found = QuestionFile(**{**note, "path": path, "digests": tuple(note["digests"])})
        return found if check == digest(note) and file_fingerprint(path) == found.sha256 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _stem(shard_size: int, name: str) -> str:
    return digest([name, shard_size])[:32]


def _write(path: Path, questions: Iterable[Question], shard_size: int) -> tuple[int, list[str]]:
    stream, ids, digests = iter(questions), array("q"), list[str]()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, QUESTION_SCHEMA) as writer:
        while shard := list(islice(stream, shard_size)):
            rows = [to_row(question) for question in shard]
            ids.extend(hash(question.id) for question in shard)  # 8 bytes a question
            digests.append(digest(rows)[:32])
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=QUESTION_SCHEMA))
    if len(np.unique(np.frombuffer(ids, dtype=np.int64))) < len(ids):
        _refuse_repeated(path)
    return len(ids), digests


def _refuse_repeated(path: Path) -> None:
    seen: set[str] = set()
    with pa.ipc.open_file(pa.OSFile(str(path))) as reader:
        for number in range(reader.num_record_batches):
            for key in reader.get_batch(number).column("id").to_pylist():
                if key in seen:
                    raise DataError(
                        f"question id {key!r} comes twice: trajectories are named by it, so give every question its "
                        "own id"
                    )
                seen.add(key)


def _questions(batch: pa.RecordBatch) -> tuple[Question, ...]:
    return tuple(question_from_row(row) for row in batch.to_pylist())
