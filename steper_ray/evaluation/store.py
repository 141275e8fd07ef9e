"""Results of an evaluation on disk: <name>-<unit>.json (scores) and .parquet (trajectories) of each job.

The JSON file is written last and by rename, so it is whole and its trajectories are there, or the job is not done.
It holds a fingerprint of everything the scores depend on: a rerun skips what is done and redoes what has changed.
Knows neither engines nor Ray.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steper_ray.config import Config
from steper_ray.errors import DataError
from steper_ray.evaluation.results import sample
from steper_ray.evaluation.schedule import EvalJob
from steper_ray.evaluation.scores import EvalScores
from steper_ray.models import resolve_model
from steper_ray.reasoning.frameworks import layout_for
from steper_ray.schema import TRAJECTORY_SCHEMA, Question, Trajectory, to_row, trajectory_from_row

FORMAT = 2  # raised by hand when a change of the code makes the same inputs give other scores
_MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt")


@dataclass(frozen=True, slots=True)
class JobFiles:
    """Where one job's results lie."""

    scores: Path
    trajectories: Path


def job_files(run_dir: Path, job: EvalJob) -> JobFiles:
    stem = re.sub(r"[^\w.-]+", "_", f"{job.name}-{job.unit}")
    folder = run_dir / "eval"
    return JobFiles(folder / f"{stem}.json", folder / f"{stem}.parquet")


def load_scores(files: JobFiles, fingerprint: str) -> EvalScores | None:
    """The scores of a job that is done with this fingerprint, or None."""
    if not files.scores.is_file() or not files.trajectories.is_file():
        return None
    try:
        data = json.loads(files.scores.read_text(encoding="utf-8"))
        return EvalScores.from_json(data["scores"]) if data["fingerprint"] == fingerprint else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{files.scores}: not a result of an evaluation ({error}): delete it") from error


def commit(
    files: JobFiles,
    job: EvalJob,
    fingerprint: str,
    scores: EvalScores,
    trajectories: Sequence[Trajectory],
) -> None:
    """Writes the trajectories, then the scores, each by rename."""
    files.scores.parent.mkdir(parents=True, exist_ok=True)
    partial = files.trajectories.with_suffix(".parquet.partial")
    rows = [to_row(trajectory) for trajectory in trajectories]
    pq.write_table(pa.Table.from_pylist(rows, schema=TRAJECTORY_SCHEMA), partial)
    about = {"name": job.name, "unit": job.unit, "model": job.model, "fingerprint": fingerprint}
    text = json.dumps({**about, "scores": scores.to_json()}, indent=2)
    files.scores.unlink(missing_ok=True)  # never old scores beside new trajectories
    partial.replace(files.trajectories)
    partial = files.scores.with_suffix(".json.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(files.scores)


def read_trajectories(path: Path) -> list[Trajectory]:
    """The trajectories of one job, in the order of the questions. Raises DataError."""
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: no trajectories can be read here: {error}") from error
    return [trajectory_from_row(row) for row in rows]


def pick_samples(run_dir: Path, names: Mapping[str, str], units: Sequence[str]) -> list[dict[str, Any]]:
    """Trajectories to unfold in the report: of each number of hops the first question, in every model and unit.

    `names` maps a model of the table to the evaluation that stands for it ({"steper": "steper-seed0"}).
    """
    found: list[tuple[int, dict[str, Any]]] = []
    for model, name in names.items():
        for unit in units:
            trajectories = read_trajectories(job_files(run_dir, EvalJob(name, "", unit)).trajectories)
            first = {t.question.hops or 0: t for t in reversed(trajectories)}
            found.extend((hops, sample(model, unit, trajectory)) for hops, trajectory in first.items())
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def questions_fingerprint(corpus: str, questions: Sequence[Question]) -> str:
    """Of the passages (the corpus's own fingerprint) and of every question."""
    return digest([corpus, *(to_row(question) for question in questions)])


def model_fingerprint(config: Config, model: str) -> str:
    """Of a model folder's bytes, wherever it lies; of the name, for a hub name or an endpoint's model."""
    if config.engine.kind == "openai":
        return f"{config.engine.url} {model}"
    folder = Path(resolve_model(model))
    if not folder.is_dir():
        return model
    whole = hashlib.sha256()
    for file in sorted(path for pattern in _MODEL_FILES for path in folder.glob(pattern)):
        whole.update(file.name.encode())
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def job_fingerprint(config: Config, unit: str, *, model: str, questions: str) -> str:
    """Of all that one job's scores depend on; `model` and `questions` are fingerprints themselves."""
    engine = config.engine
    return digest(
        {
            "format": FORMAT,
            "model": model,
            "questions": questions,
            "unit": unit,
            "engine": {"kind": engine.kind, "dtype": engine.dtype, "max_model_len": engine.max_model_len},
            "tokenizer": engine.tokenizer,
            "sampling": config.sampling.model_dump(mode="json"),
            "reasoning": config.reasoning.model_dump(mode="json", exclude={"unit", "demonstrations"}),
            "demonstrations": layout_for(config.reasoning).preamble,
            "retrieval": config.retrieval.model_dump(mode="json", exclude={"index_dir"}),
        }
    )


def digest(value: Mapping[str, Any] | Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
