"""What one student's training is asked for and what it leaves: jobs, their fingerprint, and whether one is finished.

Shared by the loop, the export and the Ray adapter; knows config and models alone, neither torch nor Ray.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from steper_ray.config import TrainConfig
from steper_ray.errors import TrainingError
from steper_ray.models import resolve_model

PROVENANCE = "steper.json"
#: Settings that change how a student is trained but not which student comes out.
_HOW = {
    "workers",
    "num_cpus",
    "checkpoint_every",
    "keep_checkpoints",
    "max_failures",
    "offload",
    "liger",
    "check_memory",
    "preset",  # what it set is there by itself
}


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One student to train. `name` is unique among the jobs of a run and names the folder of its metrics.

    `examples` is a Parquet file of step-wise examples or a folder of them; `output` the folder to export to.
    """

    name: str
    config: TrainConfig
    examples: Path
    output: Path


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained student: its exported folder, its metrics (one JSON line a step) and its optimiser steps."""

    name: str
    model_dir: Path
    metrics_path: Path
    steps: int


@dataclass(frozen=True, slots=True)
class Task:
    """A job as the workers get it: `fingerprint` ties what it was made from together, `metrics` is its log."""

    job: TrainJob
    model: str
    fingerprint: str
    metrics: Path

    @property
    def name(self) -> str:
        return self.job.name


def make_task(job: TrainJob, run_dir: Path) -> Task:
    """Checks what can be checked before any worker starts. Raises TrainingError or ModelError."""
    model = resolve_model(job.config.student)
    if not job.examples.exists():
        raise TrainingError(f"{job.examples}: no examples for job '{job.name}': run the build stage first")
    if job.config.offload and not job.config.use_gpu:
        raise TrainingError("train.offload needs a GPU: set train.use_gpu=true or train.offload=false")
    if job.config.liger is True and not job.config.use_gpu:
        raise TrainingError("train.liger=true needs a GPU: set train.use_gpu=true, or train.liger=auto")
    bfloat16 = job.config.dtype == "bfloat16" or (job.config.dtype == "auto" and job.config.use_gpu)
    if job.config.zero_stage == 0 and bfloat16:
        raise TrainingError(
            "train.zero_stage=0 in bfloat16: no float32 sums of gradients there; set train.zero_stage=1 or more"
        )
    if job.output.exists() and provenance(job.output) is None and any(job.output.iterdir()):
        raise TrainingError(
            f"{job.output}: holds something that this stage did not write: choose another output folder"
        )
    return Task(job, model, _fingerprint(job, model), run_dir / "training" / job.name / "metrics.jsonl")


def provenance(folder: Path) -> dict[str, object] | None:
    """What an exported model folder says it was made from, or None if it is not one of ours."""
    try:
        record = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def finished(task: Task) -> TrainResult | None:
    """The result of a task that was exported before, from the same config, data and starting model."""
    record = provenance(task.job.output)
    if record is None or record.get("fingerprint") != task.fingerprint:
        return None
    return TrainResult(task.name, task.job.output, task.metrics, int(str(record["steps"])))


def data_fingerprint(examples: Path) -> str:
    """SHA-256 over the Parquet files' names and contents."""
    files = sorted(examples.rglob("*.parquet")) if examples.is_dir() else [examples]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _fingerprint(job: TrainJob, model: str) -> str:
    # Without adapters as if there were no such setting: students trained before there was one stay finished.
    unset = {"lora"} if job.config.lora is None else set()
    config = job.config.model_dump_json(exclude=_HOW | {"student"} | unset)
    parts = [job.name, config, model, _weights(Path(model)), data_fingerprint(job.examples)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _weights(folder: Path) -> str:
    """Names, sizes and times of a local model's weights: a student trained anew from other weights is another."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return " ".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)
