"""What one student's training is asked for and what it leaves: jobs, their fingerprint, and whether one is finished.

Shared by the loop, the export and the Ray adapter; knows config and models alone, neither torch nor Ray.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steper_ray.config import TrainConfig, ValidationConfig
from steper_ray.errors import TrainingError
from steper_ray.models import resolve_model
from steper_ray.training.sources import data_fingerprint
from steper_ray.training.tokens import Tokens

logger = logging.getLogger(__name__)

PROVENANCE = "steper.json"
_LOCK = "lock"
_SOURCES = "made_from.json"
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
    "tracking",
    "tracking_project",
    "validation",  # but see _choice
}
#: Settings that came later, and what a training was before: students that were trained then stay finished.
_SINCE = {"steps": "all", "lora": None}


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One student to train. `name` is unique among the jobs of a run and names the folder of its metrics.

    `trajectories` is a Parquet file of kept trajectories or a folder of them; `output` the folder to export to.
    """

    name: str
    config: TrainConfig
    trajectories: Path
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
    """A job as the workers get it: `sources` is what it is made from, `fingerprint` ties them, `metrics` is its log.

    `tokens` are its data as the workers read them, `held_out` those of `train.validation.trajectories`.
    """

    job: TrainJob
    model: str
    sources: dict[str, str]
    metrics: Path
    tokens: Tokens | None = None
    held_out: Tokens | None = None

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self.sources.values()).encode()).hexdigest()


def make_task(job: TrainJob, run_dir: Path) -> Task:
    """Checks what can be checked before any worker starts. Raises TrainingError or ModelError."""
    model = resolve_model(job.config.student)
    if not job.trajectories.exists():
        raise TrainingError(
            f"{job.trajectories}: no trajectories for job '{job.name}': run the build stage first"
        )
    other = job.config.validation.trajectories
    if other is not None and not other.exists():
        raise TrainingError(f"train.validation.trajectories: {other}: no such file or folder")
    if job.config.offload and not job.config.use_gpu:
        raise TrainingError("train.offload needs a GPU: set train.use_gpu=true or train.offload=false")
    if job.config.liger is True and not job.config.use_gpu:
        raise TrainingError("train.liger=true needs a GPU: set train.use_gpu=true, or train.liger=auto")
    bfloat16 = job.config.dtype == "bfloat16" or (job.config.dtype == "auto" and job.config.use_gpu)
    if job.config.zero_stage == 0 and bfloat16:
        raise TrainingError(
            "train.zero_stage=0 in bfloat16: no float32 sums of gradients there; set train.zero_stage=1 or more"
        )
    if provenance(job.output) is None and (job.output.is_file() or any(job.output.glob("*"))):
        raise TrainingError(
            f"{job.output}: holds something that this stage did not write: choose another output folder"
        )
    return Task(job, model, _sources(job, model), run_dir / "training" / job.name / "metrics.jsonl")


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


def _sources(job: TrainJob, model: str) -> dict[str, str]:
    unset = {name for name, value in _SINCE.items() if getattr(job.config, name) == value}
    config = job.config.model_dump_json(exclude=_HOW | {"student"} | unset)
    return {
        "name": job.name,
        "settings": config,
        "student": model,
        "weights": _weights(Path(model)),
        "trajectories": data_fingerprint(job.trajectories),
        **_choice(job.config.validation),
    }


def _choice(validation: ValidationConfig) -> dict[str, str]:
    """What of it decides which student comes out: nothing where it only looks, as in trainings before there was any."""
    parts = {name: f"{name} {value}" for name in ("share", "number") if (value := getattr(validation, name))}
    if validation.keep == "best":
        parts["best"] = f"of every {validation.every} by {validation.by}"
        if validation.trajectories is not None:
            parts["held out"] = data_fingerprint(validation.trajectories)
    return parts


def _weights(folder: Path) -> str:
    """Names, sizes and times of a local model's weights: a student trained anew from other weights is another."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return " ".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)


@contextmanager
def at_work(tasks: Sequence[Task]) -> Iterator[None]:
    """Holds the jobs for this process. Raises TrainingError if another training of the same run has one of them.

    The lock goes with the process, however it ends.
    """
    with ExitStack() as held:
        for task in tasks:
            folder = task.metrics.parent
            folder.mkdir(parents=True, exist_ok=True)
            stream = held.enter_context((folder / _LOCK).open("a+", encoding="utf-8"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                raise TrainingError(
                    f"job '{task.name}': another training is at work on it in {folder} ({stream.read().strip()}): wait "
                    "for it, stop it, or take another run_dir"
                ) from None
            except OSError as error:  # a file system without locks
                logger.warning("%s cannot be locked (%s): start no second training on it", folder, error)
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            stream.flush()
        yield


def note_sources(task: Task) -> None:
    """Notes what a job is made from, and says what has changed since it was started last and must start anew."""
    path = task.metrics.with_name(_SOURCES)
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    if isinstance(earlier, dict) and earlier != task.sources:
        logger.warning(
            "job '%s' starts anew and does not go on from where it was: since it was started last, %s. Its checkpoints "
            "of before stay below %s; delete them if you need the room",
            task.name,
            ", ".join(_changes(earlier, task.sources)) or "its record changed",
            path.parents[1] / "ray",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(task.sources, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _changes(earlier: dict[str, Any], now: dict[str, str]) -> Iterator[str]:
    for source, said in (
        ("trajectories", "the trajectories changed"),
        ("student", f"the student is {now['student']}"),
        ("weights", "the student's weights changed"),
    ):
        if earlier.get(source) != now[source]:
            yield said
    try:
        before = json.loads(earlier["settings"])
    except (KeyError, TypeError, ValueError):
        return
    for field, value in json.loads(now["settings"]).items():
        if field not in before:
            yield f"train.{field} is new"
        elif before[field] != value:
            yield f"train.{field} was {before[field]} and is {value}"
