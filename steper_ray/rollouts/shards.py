"""Shards of trajectories on disk: the unit that is committed, verified, reused and redone.

- A shard's id is a hash of its questions and of the set's identity: a committed shard is what a rerun would write.
- It is committed once its manifest stands, which is written after the Parquet file and carries that file's name and
  SHA-256 and a check of itself; a shard that differs from its manifest is not committed.
- What is committed is never lost: a shard that is written again, because it owes something, goes to another file, and
  its manifest is replaced in one step.
- Final trajectories are rows; what is owed stands in the manifest, with the error and the number of attempts.

Pure files: no engine, no Ray.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from steper_ray.core.errors import DataError
from steper_ray.core.files import copy_file, file_sha256, read_many, read_table, write_table, write_text
from steper_ray.core.fingerprints import digest
from steper_ray.schema import TRAJECTORY_SCHEMA, Trajectory, to_row, trajectory_from_row

_AGAIN = "Run the same command again: this shard alone is redone"


@dataclass(frozen=True, slots=True)
class Owed:
    """A (question, sample, attempt) without a final trajectory: why, and how often it was asked."""

    question: str
    sample: int
    attempt: int
    error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """The content of a committed shard: final trajectories by stop reason, and what is owed.

    `before` names the earlier teachers' files (SHA-256) by which it was decided what to ask.
    """

    id: str
    identity: str
    file: str
    sha256: str
    stop_reasons: dict[str, int]
    owed: tuple[Owed, ...]
    before: tuple[str, ...] = ()

    @property
    def trajectories(self) -> int:
        return sum(self.stop_reasons.values())


class DamagedShardError(DataError):
    """A committed shard whose file is missing or was changed since it was written."""


class ShardStore:
    """The committed shards below one folder, which every actor of a run must be able to write to."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    def shard_id(self, questions: str) -> str:
        """The id of the shard whose questions have this digest."""
        return digest([self.identity, questions])[:32]

    def manifest(self, shard: str) -> ShardManifest | None:
        """The manifest of a committed shard; None where there is none, or it was changed, or its file is missing."""
        (note,) = read_many([self._note(shard)])
        found = _parse(note, shard)
        return found if found is not None and (self.folder / found.file).is_file() else None

    def manifests(self, shards: Sequence[str]) -> list[ShardManifest | None]:
        """As `manifest`, of each of them; a store is asked once for all files that are there."""
        notes = read_many([self._note(shard) for shard in shards])
        found = [_parse(note, shard) for note, shard in zip(notes, shards, strict=True)]
        here = {path.name for path in self.folder.glob("shard-*.parquet")}
        return [one if one is not None and one.file in here else None for one in found]

    def commit(
        self,
        shard: str,
        trajectories: Sequence[Trajectory],
        owed: Sequence[Owed] = (),
        before: Sequence[str] = (),
    ) -> ShardManifest:
        """Writes the shard, in place of an earlier commit that owes something. A complete one stands: an actor of a
        killed driver may live on for a moment, beside that of the next run. Raises StorageError."""
        known = self.manifest(shard)
        if known is not None and not known.owed and known.before == tuple(before):
            return known
        table = pa.Table.from_pylist([to_row(t) for t in trajectories], schema=TRAJECTORY_SCHEMA)
        names = f"shard-{shard}.parquet", f"shard-{shard}.again.parquet"
        file = names[known is not None and known.file == names[0]]
        sha256 = write_table(self.folder / file, table)
        reasons = dict(sorted(Counter(t.stop_reason.value for t in trajectories).items()))
        manifest = ShardManifest(shard, self.identity, file, sha256, reasons, tuple(owed), tuple(before))
        fields: dict[str, Any] = json.loads(json.dumps(asdict(manifest)))
        write_text(self._note(shard), json.dumps({**fields, "check": digest(fields)}, indent=1) + "\n")
        if known is not None:
            (self.folder / known.file).unlink(missing_ok=True)
        return manifest

    def drop(self, shard: str) -> None:
        """Forgets a shard: it is made again."""
        self._note(shard).unlink(missing_ok=True)

    def adopt(self, other: Path) -> None:
        """Copies the committed shards of another folder, of any identity, that are not here yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        theirs = ShardStore(other, "")
        for note in sorted(other.glob("shard-*.json")):
            manifest = theirs.manifest(note.stem.removeprefix("shard-"))
            if manifest is not None and not (self.folder / note.name).exists():
                for name in (manifest.file, note.name):
                    copy_file(other / name, self.folder / name)

    def table(self, shard: str) -> pa.Table:
        """The rows of a committed shard, verified. Raises DamagedShardError."""
        manifest = self.manifest(shard)
        if manifest is None:
            raise DamagedShardError(
                f"{self._note(shard)}: missing or changed, or its Parquet file is gone. {_AGAIN}"
            )
        try:
            table = read_table(self.folder / manifest.file, manifest.sha256)
        except DataError as error:
            raise DamagedShardError(f"{error}. {_AGAIN}") from error
        if table.schema == TRAJECTORY_SCHEMA:
            return table
        return pa.Table.from_pylist(table.to_pylist(), TRAJECTORY_SCHEMA)  # of a version with fewer fields

    def read(self, shard: str) -> Iterator[Trajectory]:
        """The trajectories of a committed shard. Raises DamagedShardError."""
        for batch in self.table(shard).to_batches(max_chunksize=64):
            yield from map(trajectory_from_row, batch.to_pylist())

    def drop_damaged(self, shard: str) -> bool:
        """Drops a committed shard whose file is not the one that its manifest names; whether it did."""
        manifest = self.manifest(shard)
        if manifest is None or file_sha256(self.folder / manifest.file) == manifest.sha256:
            return False
        self.drop(shard)
        return True

    def _note(self, shard: str) -> Path:
        return self.folder / f"shard-{shard}.json"


def _parse(note: bytes | None, shard: str) -> ShardManifest | None:
    """The manifest in a note, if it is what was written for this shard."""
    try:
        fields = json.loads(note or b"")
        check = fields.pop("check")
        if check != digest(fields) or fields["id"] != shard:
            return None
        owed = tuple(Owed(**one) for one in fields["owed"])
        return ShardManifest(**{**fields, "owed": owed, "before": tuple(fields["before"])})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
