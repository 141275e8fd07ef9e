"""Committed shards -> filter -> step-wise examples, and the manifest that says what they were made from.

Reads the shards in input order, one at a time, and writes no times, so the same shards give the same bytes.
The examples are swapped in as a whole folder: a reader never sees half of them. No engine, no Ray.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steper_ray.config import BuildConfig, Config
from steper_ray.distillation.dropped import Dropped
from steper_ray.distillation.examples import make_examples
from steper_ray.distillation.files import replace_folder, write_text
from steper_ray.distillation.filtering import choose, drop_reason
from steper_ray.distillation.identity import code_digest
from steper_ray.distillation.report import BuildReport, Tally, VerifierCount
from steper_ray.distillation.rows import RowFile
from steper_ray.distillation.scores import ScoreStore
from steper_ray.distillation.shards import Shard, ShardStore, by_question
from steper_ray.distillation.verify import UNVERIFIED, explain, first_failure, score_steps, thresholds
from steper_ray.schema import (
    EXAMPLE_SCHEMA,
    SCHEMA_VERSION,
    SCORE_SCHEMA,
    StepExample,
    StepScore,
    Trajectory,
    to_row,
)

EXAMPLES_A_PART = 4096  # bounds the memory of one part; a part is one file
SCORES_A_GROUP = 1 << 16  # rows of scores.parquet that are in memory


class ExampleWriter:
    """Writes examples into numbered parts of a fresh folder; `close` puts it in place of `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fresh = folder.with_name(f"{folder.name}.writing")
        self._waiting: list[StepExample] = []
        self._parts = 0
        self._digest = hashlib.sha256()
        shutil.rmtree(self._fresh, ignore_errors=True)
        self._fresh.mkdir(parents=True)

    def add(self, examples: Sequence[StepExample]) -> None:
        self._waiting.extend(examples)
        while len(self._waiting) >= EXAMPLES_A_PART:
            self._write(self._waiting[:EXAMPLES_A_PART])
            del self._waiting[:EXAMPLES_A_PART]

    def close(self) -> str:
        """Writes the rest (one empty part if there was nothing) and returns the SHA-256 of all parts."""
        if self._waiting or not self._parts:
            self._write(self._waiting)
        replace_folder(self._fresh, self._folder)
        return self._digest.hexdigest()

    def _write(self, examples: Sequence[StepExample]) -> None:
        path = self._fresh / f"part-{self._parts:05}.parquet"
        table = pa.Table.from_pylist([to_row(example) for example in examples], schema=EXAMPLE_SCHEMA)
        pq.write_table(table, path, compression="zstd")
        self._digest.update(path.read_bytes())
        self._parts += 1


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


def assemble(
    config: Config, parts: Sequence[Part], *, run: int, skipped: int, passages: str = ""
) -> BuildReport:
    """Filters, verifies and writes run_dir/data/: examples/, dropped.jsonl and .md, scores.parquet, manifest.json.

    Every shard and its scores must be committed; the first part has all questions. `run` shards were made just now;
    `skipped` records of the corpus were left out, `passages` is a line on its long ones.
    """
    folder = config.run_dir / "data"
    folder.mkdir(parents=True, exist_ok=True)
    least = thresholds(config.build.verify)
    tally = Tally(config.reasoning.max_steps)
    tally.verifiers |= {name: VerifierCount(value) for name, value in least.items()}
    writer, dropped = ExampleWriter(folder / "examples"), Dropped()
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
            writer.add(examples)
            if reason is not None:
                dropped.add(trajectory, reason, error, scored)
        tally.add_question(kept=None in reasons)
    dropped.write(folder)
    if scores is not None:
        scores.close()
    else:
        (folder / "scores.parquet").unlink(missing_ok=True)
    examples_digest = writer.close()
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
        passages=passages,
        shards=sum(len(part.shards) for part in parts),
        shards_run=run,
        folder=folder,
        verifiers=tally.verifiers,
        sources=tally.sources,
    )
    manifest = _manifest(config, parts, report, examples_digest)
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


def _manifest(config: Config, parts: Sequence[Part], report: BuildReport, examples: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "code": code_digest(),
        "examples_sha256": examples,
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
