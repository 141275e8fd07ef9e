"""Committed shards -> filter -> step-wise examples, and the manifest that says what they were made from.

Reads the shards in input order, one at a time, and writes no times, so the same shards give the same bytes.
The examples are swapped in as a whole folder: a reader never sees half of them. No engine, no Ray.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steper_ray.config import Config
from steper_ray.distillation.examples import make_examples
from steper_ray.distillation.filtering import drop_reason
from steper_ray.distillation.identity import code_digest
from steper_ray.distillation.report import BuildReport, Tally
from steper_ray.distillation.shards import Shard, ShardStore
from steper_ray.schema import EXAMPLE_SCHEMA, SCHEMA_VERSION, StepExample, to_row

EXAMPLES_A_PART = 4096  # bounds the memory of one part; a part is one file


class ExampleWriter:
    """Writes examples into numbered parts of a fresh folder; `close` puts it in place of `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fresh = folder.with_name(f"{folder.name}.writing")
        self._old = folder.with_name(f"{folder.name}.old")
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
        shutil.rmtree(self._old, ignore_errors=True)
        if self._folder.exists():
            self._folder.rename(self._old)
        self._fresh.rename(self._folder)
        shutil.rmtree(self._old, ignore_errors=True)
        return self._digest.hexdigest()

    def _write(self, examples: Sequence[StepExample]) -> None:
        path = self._fresh / f"part-{self._parts:05}.parquet"
        table = pa.Table.from_pylist([to_row(example) for example in examples], schema=EXAMPLE_SCHEMA)
        pq.write_table(table, path, compression="zstd")
        self._digest.update(path.read_bytes())
        self._parts += 1


def assemble(
    config: Config,
    identity: dict[str, Any],
    shards: Sequence[Shard],
    store: ShardStore,
    *,
    run: int,
    skipped: int,
) -> BuildReport:
    """Filters and writes run_dir/data/: examples/, dropped.jsonl and manifest.json.

    Every shard must be committed. `run` of them were made just now; `skipped` records of the corpus were
    left out.
    """
    folder = config.run_dir / "data"
    folder.mkdir(parents=True, exist_ok=True)
    tally = Tally(config.reasoning.max_steps)
    writer = ExampleWriter(folder / "examples")
    dropped: list[dict[str, str | None]] = []
    for shard in shards:
        for trajectory in store.read(shard.id):
            reason = drop_reason(trajectory, config.build.match)
            examples = make_examples(trajectory) if reason is None else ()
            tally.add(trajectory, reason, examples)
            writer.add(examples)
            if reason is not None:
                dropped.append({"id": trajectory.question.id, "reason": reason, "error": trajectory.error})
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in dropped)
    _write_text(folder / "dropped.jsonl", "".join(lines))
    examples_digest = writer.close()
    report = BuildReport(
        questions=tally.questions,
        kept=tally.kept,
        **tally.counts(),
        recall=tally.recall,
        recall_questions=tally.recall_questions,
        mean_steps=tally.mean_steps,
        k=config.reasoning.k,
        skipped=skipped,
        shards=len(shards),
        shards_run=run,
        folder=folder,
    )
    manifest = _manifest(config, identity, shards, report, examples_digest)
    _write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return report


def _manifest(
    config: Config, identity: dict[str, Any], shards: Sequence[Shard], report: BuildReport, examples: str
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "code": code_digest(),
        "identity": identity,
        "examples_sha256": examples,
        "counts": {
            "questions": report.questions,
            "skipped_records": report.skipped,
            "kept": report.kept,
            "dropped": report.dropped,
            "examples": report.examples,
            "stop_reasons": report.stop_reasons,
        },
        f"recall@{report.k}": {"questions": report.recall_questions, "after_step": report.recall},
        "mean_steps": report.mean_steps,
        "config": json.loads(config.model_dump_json()),
        "shards": [shard.id for shard in shards],
    }


def _write_text(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.writing")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
