"""Scores that a model gave to the steps of a shard's trajectories: committed by rename, made once.

They lie beside the trajectories and not in them, so that another verifier never asks the teacher to reason again.
A folder is of one verifier with its settings, a file of one shard. Pure files: no engine, no Ray.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steper_ray.config import Config
from steper_ray.distillation.identity import digest, engine_identity
from steper_ray.distillation.model_verify import JUDGE_PROMPT, agreement_sampling
from steper_ray.errors import DataError
from steper_ray.schema import SCORE_SCHEMA, StepScore, to_row

#: Raised by hand when a change of the code makes the same model give the same step another score.
_VERSION = 1


def score_stores(config: Config, folder: Path) -> dict[str, ScoreStore]:
    """Where the scores of each model verifier that is set lie, below `folder`, by its name."""
    verify, stores = config.build.verify, dict[str, ScoreStore]()
    if verify.agreement is not None:
        identity = {
            "version": _VERSION,
            "engine": engine_identity(config.engine),
            "drafts": verify.agreement_drafts,
            "sampling": agreement_sampling(config.sampling, verify).model_dump(mode="json"),
        }
        stores["agreement"] = ScoreStore(folder, "agreement", identity)
    if verify.judge is not None:
        engine = verify.judge_engine or config.engine
        identity = {"version": _VERSION, "engine": engine_identity(engine), "prompt": JUDGE_PROMPT}
        stores["judge"] = ScoreStore(folder, "judge", identity)
    return stores


class ScoreStore:
    """The scores of one verifier; `identity` is all that decides them but the trajectories."""

    def __init__(self, folder: Path, verifier: str, identity: dict[str, Any]) -> None:
        self.folder = folder / f"{verifier}-{digest(identity)[:16]}"

    def has(self, shard_id: str) -> bool:
        return self._path(shard_id).is_file()

    def drop(self, shard_id: str) -> None:
        """Forgets the scores of a shard, whose trajectories are about to be made anew."""
        self._path(shard_id).unlink(missing_ok=True)

    def commit(self, shard_id: str, scores: Sequence[StepScore]) -> None:
        """Writes the scores of one shard; renamed once they are on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / f".writing-{uuid.uuid4().hex}"
        table = pa.Table.from_pylist([to_row(score) for score in scores], schema=SCORE_SCHEMA)
        with fresh.open("wb") as stream:
            pq.write_table(table, stream)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(self._path(shard_id))

    def read(self, shard_id: str) -> list[StepScore]:
        """The scores of one shard. Raises DataError if they cannot be read."""
        path = self._path(shard_id)
        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: cannot be read: {error}. Delete it and build again") from error
        return [StepScore(**row) for row in rows]

    def _path(self, shard_id: str) -> Path:
        return self.folder / f"shard-{shard_id}.parquet"
