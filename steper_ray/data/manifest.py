"""What manifest.json says of a build: what was asked, what was kept, and from what it was made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from steper_ray.config import Config
from steper_ray.core.fingerprints import code_digest
from steper_ray.data.report import BuildReport
from steper_ray.rollouts.set import RolloutSet
from steper_ray.schema import SCHEMA_VERSION


def manifest_of(
    config: Config, sets: Sequence[RolloutSet], report: BuildReport, files: dict[str, str]
) -> dict[str, Any]:
    """The content of manifest.json; `files` are the kept parts with their SHA-256."""
    annotation = report.facts.to_json()
    return {
        "schema_version": SCHEMA_VERSION,
        "code": code_digest(),
        "kept_sha256": files,
        "counts": {
            "questions": report.questions,
            "questions_kept": report.questions_kept,
            "owed": report.owed,
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
        **({} if annotation is None else {"annotation": annotation}),
        "config": json.loads(config.model_dump_json()),
        "teachers": [{"identity": found.spec.identity, "shards": found.shards} for found in sets],
    }
