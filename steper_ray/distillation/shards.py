"""Content-addressed shards of trajectories: the unit that is committed, reused and redone after a kill.

A shard's id is a hash of its questions and of the run's identity, so a committed shard is what a rerun would
write. It is committed once both of its files stand: the Parquet file first, then its manifest, each
written under a temporary name and renamed. Pure files: no engine, no Ray.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from steper_ray.distillation.identity import digest
from steper_ray.errors import DataError
from steper_ray.schema import TRAJECTORY_SCHEMA, Question, Trajectory, to_row, trajectory_from_row

T = TypeVar("T")

_TEMPORARY = ".writing-"


@dataclass(frozen=True, slots=True)
class Shard:
    """Some questions in input order, under the id of their content."""

    id: str
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """What a committed shard holds: question ids in input order, counts of its trajectories, the identity's digest
    and the file's size."""

    id: str
    identity: str
    question_ids: tuple[str, ...]
    stop_reasons: dict[str, int]
    file_bytes: int


def cut(questions: Sequence[Question], size: int, identity: str) -> list[Shard]:
    """Shards of `size` questions, the last may be smaller. Raises DataError for an id that comes twice."""
    counts = Counter(question.id for question in questions)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"question id {twice[0]!r} comes {counts[twice[0]]} times ({len(twice)} ids come repeatedly): "
            "examples are named by it, so give every question an id of its own"
        )
    shards = []
    for start in range(0, len(questions), size):
        part = tuple(questions[start : start + size])
        shards.append(Shard(digest([identity, [to_row(q) for q in part]])[:32], part))
    return shards


def by_question(streams: Sequence[Iterable[T]], question_id: Callable[[T], str]) -> Iterator[tuple[T, ...]]:
    """What several teachers made of each question, the first teacher's first.

    Each stream has its questions in the first one's order; all but the first may leave some out.
    """
    grouped = [groupby(stream, key=question_id) for stream in streams]
    heads = [next(stream, None) for stream in grouped[1:]]
    for key, own in grouped[0]:
        found = list(own)
        for number, head in enumerate(heads):
            if head is not None and head[0] == key:
                found.extend(head[1])
                heads[number] = next(grouped[number + 1], None)
        yield tuple(found)


class ShardStore:
    """The committed shards below one folder, which every actor of a run must be able to write to."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self._identity = folder, identity

    def clean(self) -> None:
        """Makes the folder and removes what a killed run left unfinished. No other run may write here now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"{_TEMPORARY}*"):
            leftover.unlink(missing_ok=True)

    def manifest(self, shard_id: str) -> ShardManifest | None:
        """The manifest of a committed shard; None where one of its files is missing or cut short."""
        try:
            fields = json.loads(self._path(shard_id, "json").read_text(encoding="utf-8"))
            manifest = ShardManifest(**{**fields, "question_ids": tuple(fields["question_ids"])})
            size = self._path(shard_id, "parquet").stat().st_size
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return None
        return manifest if size == manifest.file_bytes else None

    def commit(self, shard: Shard, trajectories: Sequence[Trajectory]) -> ShardManifest:
        """Writes the shard's trajectories: in the questions' order, those of one question in the samples' order.

        The first commit stands: an actor of a killed driver may live on for a moment, beside that of the next run.
        """
        ids = tuple(q.id for q in shard.questions)
        own = [key for key, _ in groupby(trajectories, key=lambda trajectory: trajectory.question.id)]
        if tuple(own) != ids or len({t.id for t in trajectories}) < len(trajectories):
            raise ValueError(f"shard {shard.id}: the trajectories are not those of its questions")
        if (committed := self.manifest(shard.id)) is not None:
            return committed
        table = pa.Table.from_pylist([to_row(t) for t in trajectories], schema=TRAJECTORY_SCHEMA)
        data = self._temporary()
        pq.write_table(table, data, compression="zstd")
        manifest = ShardManifest(
            id=shard.id,
            identity=self._identity,
            question_ids=ids,
            stop_reasons=dict(sorted(Counter(t.stop_reason.value for t in trajectories).items())),
            file_bytes=data.stat().st_size,
        )
        note = self._temporary()
        note.write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
        _move(data, self._path(shard.id, "parquet"))
        _move(note, self._path(shard.id, "json"))
        return manifest

    def adopt(self, other: Path) -> None:
        """Copies the committed shards of another folder, of whatever identity, that are not here yet."""
        self.clean()
        for note in sorted(other.glob("shard-*.json")):
            mine = self.folder / note.name
            if not mine.exists():
                for source in (note.with_suffix(".parquet"), note):
                    copy = self._temporary()
                    shutil.copyfile(source, copy)
                    _move(copy, self.folder / source.name)

    def read(self, shard_id: str) -> list[Trajectory]:
        """The trajectories of a committed shard, as they were committed. Raises DataError if it cannot be read."""
        path = self._path(shard_id, "parquet")
        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{path}: cannot be read: {error}. Delete it and build again: it alone is redone"
            ) from error
        return [trajectory_from_row(row) for row in rows]

    def _path(self, shard_id: str, ending: str) -> Path:
        return self.folder / f"shard-{shard_id}.{ending}"

    def _temporary(self) -> Path:
        return self.folder / f"{_TEMPORARY}{uuid.uuid4().hex}"


def _move(source: Path, target: Path) -> None:
    """Renames once the bytes are on the disk: a name never stands for a file cut short."""
    with source.open("rb") as stream:
        os.fsync(stream.fileno())
    source.replace(target)
