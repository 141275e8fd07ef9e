"""Committed shards -> filter -> kept trajectories, and the manifest that says what they were made from.

Reads the shards in input order, one at a time, and writes no times, so the same shards give the same bytes.
The kept ones are swapped in as a whole folder: a reader never sees half of them. No engine, no Ray.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from steper_ray.config import BuildConfig, Config
from steper_ray.core.files import write_table
from steper_ray.distillation.dropped import Dropped
from steper_ray.distillation.examples import make_examples, settled
from steper_ray.distillation.files import replace_folder, write_text
from steper_ray.distillation.filtering import choose, drop_reason
from steper_ray.distillation.identity import code_digest
from steper_ray.distillation.report import BuildReport, Tally, VerifierCount
from steper_ray.distillation.rows import RowFile
from steper_ray.distillation.scores import ScoreStore
from steper_ray.distillation.shards import Shard, ShardStore, by_question
from steper_ray.distillation.verify import UNVERIFIED, explain, first_failure, score_steps, thresholds
from steper_ray.schema import (
    SCHEMA_VERSION,
    SCORE_SCHEMA,
    TRAJECTORY_SCHEMA,
    StepScore,
    Trajectory,
    to_row,
)

KEPT_A_PART = 1024  # trajectories of one file: what is in memory, and what training tokenises as one task
SCORES_A_GROUP = 1 << 16  # rows of scores.parquet that are in memory


class KeptWriter:
    """Writes kept trajectories into numbered parts of a fresh folder; `close` puts it in place of `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fresh = folder.with_name(f"{folder.name}.writing")
        self._waiting: list[Trajectory] = []
        self._sha256: dict[str, str] = {}
        shutil.rmtree(self._fresh, ignore_errors=True)
        self._fresh.mkdir(parents=True)

    def add(self, trajectory: Trajectory) -> None:
        """Raises DataError as `settled`."""
        self._waiting.append(settled(trajectory))
        if len(self._waiting) == KEPT_A_PART:
            self._write()

    def close(self) -> dict[str, str]:
        """Writes the rest (one empty part if there was nothing); returns the SHA-256 of each part by its name."""
        if self._waiting or not self._sha256:
            self._write()
        replace_folder(self._fresh, self._folder)
        return self._sha256

    def _write(self) -> None:
        name = f"part-{len(self._sha256):05}.parquet"
        table = pa.Table.from_pylist([to_row(kept) for kept in self._waiting], schema=TRAJECTORY_SCHEMA)
        self._sha256[name] = write_table(self._fresh / name, table)
        self._waiting.clear()


@dataclass(frozen=True, slots=True)
class Part:
    """What one teacher made: its committed shards, and the scores that models gave to them."""

    identity: dict[str, Any]
    shards: Sequence[Shard]
    store: ShardStore
    scores: Mapping[str, ScoreStore]

    def __iter__(self) -> Iterator[tuple[Trajectory, list[StepScore]]]:
        """The trajectories in the order of the questions, each with its scores; one shard is in memory at a time."""
        for shard in self.shards:
            asked = dict[str, list[StepScore]]()
            for score in (score for store in self.scores.values() for score in store.read(shard.id)):
                asked.setdefault(score.question_id, []).append(score)
            for trajectory in self.store.read(shard.id):
                yield trajectory, asked.get(trajectory.id, [])


def assemble(config: Config, parts: Sequence[Part], *, run: int, skipped: int) -> BuildReport:
    """Filters, verifies and writes run_dir/data/: kept/, dropped.jsonl and .md, scores.parquet, manifest.json.

    Every shard and its scores must be committed; the first part has all questions. `run` shards were made just now;
    `skipped` records of the corpus were left out.
    """
    folder = config.run_dir / "data"
    folder.mkdir(parents=True, exist_ok=True)
    least = thresholds(config.build.verify)
    tally = Tally(config.reasoning.max_steps)
    tally.verifiers |= {name: VerifierCount(value) for name, value in least.items()}
    writer, dropped = KeptWriter(folder / "kept"), Dropped()
    scores = RowFile(folder / "scores.parquet", SCORE_SCHEMA, SCORES_A_GROUP) if least else None
    build = config.build
    for group in by_question(parts, lambda pair: pair[0].question.id):
        samples = [trajectory for trajectory, _ in group]
        judged = [_judge(trajectory, build, least, asked, tally) for trajectory, asked in group]
        reasons = choose(samples, [reason for reason, _, _ in judged], build.keep, build.match)
        for trajectory, reason, (_, error, scored) in zip(samples, reasons, judged, strict=True):
            examples = make_examples(trajectory) if reason is None else ()
            if scores is not None:
                scores.add(map(to_row, scored))
            tally.add(trajectory, reason, examples)
            if reason is None:
                writer.add(trajectory)
            else:
                dropped.add(trajectory, reason, error, scored)
        tally.add_question(kept=None in reasons)
    dropped.write(folder)
    if scores is not None:
        scores.close()
    else:
        (folder / "scores.parquet").unlink(missing_ok=True)
    kept_sha256 = writer.close()
    report = BuildReport(
        questions=tally.questions,
        questions_kept=tally.questions_kept,
        trajectories=tally.trajectories,
        kept=tally.kept,
        **tally.counts(),
        recall=tally.recall,
        recall_trajectories=tally.recall_trajectories,
        mean_steps=tally.mean_steps,
        k=config.reasoning.k,
        skipped=skipped,
        shards=sum(len(part.shards) for part in parts),
        shards_run=run,
        folder=folder,
        verifiers=tally.verifiers,
        sources=tally.sources,
    )
    manifest = _manifest(config, parts, report, kept_sha256)
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return report


def _judge(
    trajectory: Trajectory,
    build: BuildConfig,
    least: dict[str, float],
    asked: Sequence[StepScore],
    tally: Tally,
) -> tuple[str | None, str | None, list[StepScore]]:
    """One trajectory by itself: why not to learn from it (None for nothing), what to tell of that, its scores.

    `asked` are the scores that models gave to its steps.
    """
    scored = [*score_steps(trajectory, list(least)), *asked]
    reason, error = drop_reason(trajectory, build.match), trajectory.error
    if reason is None:
        tally.add_scores(scored)
        failed = first_failure(scored, least)
        if failed is not None:
            reason, error = UNVERIFIED + failed.verifier, explain(failed, least, trajectory)
    return reason, error, scored


def _manifest(
    config: Config, parts: Sequence[Part], report: BuildReport, kept_sha256: dict[str, str]
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "code": code_digest(),
        "kept_sha256": kept_sha256,
        "counts": {
            "questions": report.questions,
            "questions_kept": report.questions_kept,
            "trajectories": report.trajectories,
            "skipped_records": report.skipped,
            "kept": report.kept,
            "dropped": report.dropped,
            "examples": report.examples,
            "stop_reasons": report.stop_reasons,
            "sources": {name: asdict(count) for name, count in report.sources.items()},
        },
        "verifiers": {
            name: {
                "least": count.least,
                "trajectories": count.trajectories,
                "below": count.below,
                "steps": count.steps,
                "mean": count.mean,
            }
            for name, count in report.verifiers.items()
        },
        f"recall@{report.k}": {"trajectories": report.recall_trajectories, "after_step": report.recall},
        "mean_steps": report.mean_steps,
        "config": json.loads(config.model_dump_json()),
        "teachers": [
            {"identity": part.identity, "shards": [shard.id for shard in part.shards]} for part in parts
        ],
    }
