"""Scores that models gave to the steps of a shard's trajectories: committed with a checksum, asked for once.

- They lie apart from the trajectories, so that another verifier asks no teacher again.
- A score belongs to one chain: where a trajectory's chain differs, it is asked for again.
- A shard's scores are complete once its manifest names the trajectories' file that they score, and owes none.

A folder is of one verifier with its settings, a file of one shard. Pure files: no engine, no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from steper_ray.config import EngineConfig, SamplingConfig, VerifyConfig
from steper_ray.core.errors import DataError
from steper_ray.core.files import read_table, write_table, write_text
from steper_ray.core.fingerprints import digest
from steper_ray.rollouts.spec import engine_identity
from steper_ray.rollouts.verifiers import JUDGE_PROMPT, agreement_sampling
from steper_ray.schema import SCORE_SCHEMA, StepScore, Trajectory, to_row

#: Raised by hand when a change of the code makes the same model give the same step another score.
_VERSION = 1

#: The scores of each trajectory, by its id.
Scores = Mapping[str, Sequence[StepScore]]


def score_folders(
    folder: Path, engine: EngineConfig, sampling: SamplingConfig, verify: VerifyConfig
) -> dict[str, Path]:
    """The folder of each model verifier that is set, below `folder`, by its name."""
    identities: dict[str, dict[str, Any]] = {}
    if verify.agreement is not None:
        identities["agreement"] = {
            "engine": engine_identity(engine),
            "drafts": verify.agreement_drafts,
            "sampling": agreement_sampling(sampling, verify).model_dump(mode="json"),
        }
    if verify.judge is not None:
        judge = engine_identity(verify.judge_engine or engine)
        identities["judge"] = {"engine": judge, "prompt": JUDGE_PROMPT}
    return {
        name: folder / f"{name}-{digest({'version': _VERSION, **identity})[:16]}"
        for name, identity in identities.items()
    }


class ScoreStore:
    """The scores of one verifier with its settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_complete(self, shard: str, trajectories: str) -> bool:
        """Whether every trajectory of the shard's file with this SHA-256 has its scores."""
        note = self._manifest(shard)
        return note.get("of") == trajectories and not note["owed"]

    def owed(self, shard: str) -> list[str]:
        """The questions whose trajectories have no scores yet."""
        return list(self._manifest(shard).get("owed", ()))

    def sha256(self, shard: str) -> str | None:
        """Of the committed scores; None where there are none."""
        found: str | None = self._manifest(shard).get("sha256")
        return found

    def commit(
        self, shard: str, scores: Scores, chains: Mapping[str, str], of: str, owed: Sequence[str] = ()
    ) -> None:
        """Writes a shard's scores.

        `of` is the SHA-256 of the trajectories' file, `owed` are the questions of those without scores yet.
        """
        rows = [to_row(score) for found in scores.values() for score in found]
        table = pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)
        self._path(shard, "json").unlink(missing_ok=True)
        note = {
            "sha256": write_table(self._path(shard, "parquet"), table),
            "chains": dict(chains),
            "of": of,
            "owed": list(owed),
        }
        write_text(self._path(shard, "json"), json.dumps({**note, "check": digest(note)}) + "\n")

    def read(self, shard: str, trajectories: Iterable[Trajectory]) -> dict[str, list[StepScore]]:
        """The scores of those trajectories that have any, by id. A damaged file has none: they are asked for again."""
        note = self._manifest(shard)
        chains = note.get("chains", {})
        known = {t.id for t in trajectories if chains.get(t.id) == chain_digest(t)}
        found: dict[str, list[StepScore]] = {key: [] for key in known}
        if not known:
            return found
        try:
            rows = read_table(self._path(shard, "parquet"), note["sha256"]).to_pylist()
        except DataError:
            return {}
        for row in rows:
            if row["question_id"] in known:
                found[row["question_id"]].append(StepScore(**row))
        return found

    def _manifest(self, shard: str) -> dict[str, Any]:
        try:
            note: dict[str, Any] = json.loads(self._path(shard, "json").read_text(encoding="utf-8"))
            return note if note.pop("check") == digest(note) else {}
        except (OSError, ValueError, KeyError, AttributeError):
            return {}

    def _path(self, shard: str, ending: str) -> Path:
        return self.folder / f"shard-{shard}.{ending}"


def chain_digest(trajectory: Trajectory) -> str:
    """A digest of the chain that scores were given to."""
    return digest(trajectory.chain)[:16]
