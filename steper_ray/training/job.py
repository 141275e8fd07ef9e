"""Training jobs: their settings, their fingerprint, their files, and whether one is finished.

Shared by the loop, the export and the Ray adapter; knows config and models alone, neither torch nor Ray.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from steper_ray.config import PromptConfig, TrainConfig, ValidationConfig
from steper_ray.core.errors import TrainingError
from steper_ray.core.files import write_text
from steper_ray.core.fingerprints import folder_fingerprint
from steper_ray.core.jsonl import read_records
from steper_ray.core.storage import has_scheme
from steper_ray.core.sums import PROVENANCE, SUMS, listed, sums_damage
from steper_ray.models import resolve_model
from steper_ray.training.sources import data_fingerprint
from steper_ray.training.tokens import Tokens

if TYPE_CHECKING:
    from steper_ray.training.own_chains import Sampler

logger = logging.getLogger(__name__)

_SOURCES = "made_from.json"
#: Folder of the best student so far, beside the metrics; removed when it is exported.
BEST = "best"
#: Settings that change how a student is trained but not which student comes out.
_HOW = {
    "name",  # a source in its place
    "workers",
    "num_cpus",
    "checkpoint_every",
    "keep_checkpoints",
    "max_failures",
    "offload",
    "liger",
    "check_memory",
    "trust_remote_code",
    "preset",  # what it set is there by itself
    "tracking",
    "tracking_project",
    "validation",  # but see _choice
    "form",  # the trajectories' content is what counts
}
#: Settings that came later, and what a training was before: students that were trained then stay finished.
_SINCE = {"steps": "all", "lora": None, "soft_targets": None}


class Rollouts(Protocol):
    """The multi-step loop around a student in its training; every worker opens its own copy."""

    @property
    def identity(self) -> str:
        """What decides the chains, besides the weights."""
        ...

    def open(self, model: str) -> Sampler:
        """A student like `model`, whose weights are still to come. Raises SteperError."""
        ...


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One student to train. `name` is unique among the jobs of a run and names the folder of its metrics.

    `trajectories` is a Parquet file of kept trajectories or a folder of them; `output` the folder to export to;
    `prompt` how the student is asked, while it learns and ever after; `rollouts` how it writes chains of its own, which
    method `on_policy` needs.
    """

    name: str
    config: TrainConfig
    trajectories: Path
    output: Path
    prompt: PromptConfig = field(default_factory=PromptConfig)
    rollouts: Rollouts | None = None


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
    if has_scheme(job.config.student):
        model = job.config.student  # each node has its own copy
    if not job.trajectories.exists():
        raise TrainingError(
            f"{job.trajectories}: no trajectories for job '{job.name}': run the build stage first"
        )
    other = job.config.validation.trajectories
    if other is not None and not other.exists():
        raise TrainingError(f"train.validation.trajectories: {other}: no such file or folder")
    if job.config.method == "on_policy" and job.rollouts is None:
        raise TrainingError(
            f"job '{job.name}': train.method=on_policy, and this call of train() was given no rollouts"
        )
    if job.config.offload and not job.config.use_gpu:
        raise TrainingError("train.offload needs a GPU: set train.use_gpu=true or train.offload=false")
    if job.config.liger is True and not job.config.use_gpu:
        raise TrainingError("train.liger=true needs a GPU: set train.use_gpu=true, or train.liger=auto")
    bfloat16 = job.config.dtype == "bfloat16" or (job.config.dtype == "auto" and job.config.use_gpu)
    if job.config.zero_stage == 0 and bfloat16:
        raise TrainingError(
            "train.zero_stage=0 in bfloat16: no float32 sums of gradients there; set train.zero_stage=1 or more"
        )
    if not _is_export(job.output) and (job.output.is_file() or any(job.output.glob("*"))):
        raise TrainingError(
            f"{job.output}: holds something that this stage did not write: choose another output folder"
        )
    metrics = run_dir / "training" / job.name / "metrics.jsonl"
    return Task(job, model, _wherever(_sources(job, model), _noted_beside(metrics)), metrics)


def provenance(folder: Path) -> dict[str, object] | None:
    """The provenance of an exported model folder, or None if it is not one of ours."""
    try:
        record = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _is_export(folder: Path) -> bool:
    """Whether `export` wrote the folder, be it damaged since."""
    return provenance(folder) is not None or PROVENANCE in (listed(folder) or {})


def finished(task: Task) -> TrainResult | None:
    """The result of a task that was exported before, from the same config, data and starting model, and is whole."""
    record = provenance(task.job.output)
    if record is None or record.get("fingerprint") != task.fingerprint or sums_damage(task.job.output):
        return None
    return TrainResult(task.name, task.job.output, task.metrics, int(str(record["steps"])))


def refuse_other(task: Task) -> None:
    """Raises TrainingError where the output folder holds a whole student of other settings, data or weights."""
    record = provenance(task.job.output)
    if record is None or record.get("fingerprint") == task.fingerprint or sums_damage(task.job.output):
        return
    changes = ", ".join(_changes(_noted(task) or {}, task.sources)) or "its settings or data changed"
    raise TrainingError(
        f"{task.job.output} holds a student of another training ({changes}): set train.name to keep both, or delete "
        "the folder"
    )


def lost(task: Task) -> str | None:
    """The fault of a finished task's export; None where there is none or none was made."""
    output = task.job.output
    record = provenance(output) or {}
    if (output / SUMS).exists() or record.get("fingerprint") == task.fingerprint:
        wrong = sums_damage(output)
        return wrong and f"{output}: {wrong}"
    steps = read_records(task.metrics) if _noted(task) == task.sources else []
    ended = bool(steps) and steps[-1]["step"] == steps[-1]["steps"]
    return f"{output} is gone" if ended and not record else None


def _sources(job: TrainJob, model: str) -> dict[str, str]:
    on_policy = job.config.method == "on_policy"
    unset = {name for name, value in _SINCE.items() if getattr(job.config, name) == value}
    if not on_policy:
        unset.add("on_policy")
    exclude: dict[str, Any] = dict.fromkeys(_HOW | {"student"} | unset, True)
    teacher = _teacher(job.config)
    if any(teacher.values()):  # a folder is known by its content, wherever it lies
        exclude["soft_targets"] = {"teacher"}
    config = job.config.model_dump_json(exclude=exclude)
    return {
        "name": job.name,
        "settings": config,
        "student": model,
        "weights": _weights(resolve_model(model)),
        "trajectories": data_fingerprint(job.trajectories),
        **_choice(job.config.validation),
        **teacher,
        **({"rollouts": job.rollouts.identity} if on_policy and job.rollouts is not None else {}),
        **({} if job.prompt == PromptConfig() else {"prompt": job.prompt.model_dump_json()}),
    }


def _wherever(sources: dict[str, str], noted: dict[str, Any] | None) -> dict[str, str]:
    """The sources, with the student's place as it was noted where its files are the same: a folder that moved, or the
    package installed elsewhere, is no other student."""
    if noted is None or not sources["weights"] or noted.get("weights") != sources["weights"]:
        return sources
    return {**sources, "student": str(noted.get("student", sources["student"]))}


def _teacher(config: TrainConfig) -> dict[str, str]:
    return {} if config.teacher is None else {"teacher's weights": _weights(resolve_model(config.teacher))}


def _choice(validation: ValidationConfig) -> dict[str, str]:
    """What of it decides which student comes out: nothing where it only looks, as in trainings before there was any."""
    parts = {name: f"{name} {value}" for name in ("share", "number") if (value := getattr(validation, name))}
    if validation.keep == "best":
        parts["best"] = f"of every {validation.every} by {validation.by}"
        if validation.trajectories is not None:
            parts["held out"] = data_fingerprint(validation.trajectories)
    return parts


def _weights(model: str) -> str:
    """The contents of a model folder's files: a student that starts from other weights is another."""
    return folder_fingerprint(Path(model)) if Path(model).is_dir() else ""


def note_sources(task: Task) -> None:
    """Notes what a job is made from, and warns of changes that make it start from the beginning."""
    path, earlier = task.metrics.with_name(_SOURCES), _noted(task)
    if earlier is not None and earlier != task.sources:
        logger.warning(
            "job '%s' starts from the beginning: since its last start, %s. Its earlier checkpoints "
            "stay below %s; delete them if you need the room",
            task.name,
            ", ".join(_changes(earlier, task.sources)) or "its record changed",
            path.parents[1] / "ray",
        )
    write_text(path, json.dumps(task.sources, indent=2) + "\n")


def _noted(task: Task) -> dict[str, Any] | None:
    """The settings the job was last started with."""
    return _noted_beside(task.metrics)


def _noted_beside(metrics: Path) -> dict[str, Any] | None:
    try:
        sources = json.loads(metrics.with_name(_SOURCES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return sources if isinstance(sources, dict) else None


def _changes(earlier: dict[str, Any], now: dict[str, str]) -> Iterator[str]:
    for source, said in (
        ("trajectories", "the trajectories changed"),
        ("student", f"the student is {now['student']}"),
        ("weights", "the student's files changed"),
        ("teacher's weights", "the teacher's files changed"),
        ("rollouts", "how the student is asked changed (reasoning, retrieval or engine)"),
        ("prompt", "the style of prompts changed (reasoning.format, instruction or template_arguments)"),
    ):
        if earlier.get(source) != now.get(source):
            yield said
    try:
        before = json.loads(earlier["settings"])
    except (KeyError, TypeError, ValueError):
        return
    for name, value in json.loads(now["settings"]).items():
        if name not in before:
            yield f"train.{name} is new"
        elif before[name] != value:
            yield f"train.{name} was {before[name]} and is {value}"
