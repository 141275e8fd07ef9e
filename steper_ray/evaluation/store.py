"""Results of an evaluation on disk: <name>-<unit>.json (scores) beside the folder of its shards.

- Scores carry a check of themselves and the fingerprint of the shards that they were counted from: a changed score, or
  one of other shards, is counted again.
- Trajectories are read from their verified shards alone.

Knows neither engines nor Ray.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from steper_ray.core.answers import Score
from steper_ray.core.errors import DataError
from steper_ray.core.files import write_text
from steper_ray.core.fingerprints import digest, folder_fingerprint
from steper_ray.evaluation.results import Sample
from steper_ray.evaluation.scores import EvalScores, judge
from steper_ray.evaluation.statistics import clusters_of
from steper_ray.rollouts.set import RolloutSet
from steper_ray.rollouts.shards import ShardStore
from steper_ray.schema import Trajectory

FORMAT = 4


@dataclass(frozen=True, slots=True)
class EvalJob:
    """One model judged with one step unit. `name` and `unit` together name the result and are unique in a call.

    `model` is a Hugging Face folder or hub name, `miniature:...`, or what an endpoint serves.
    """

    name: str
    model: str
    unit: str
    reasoning: tuple[tuple[str, object], ...] = ()
    """Settings of `reasoning` that hold for this job, such as (("few_shot", True),)."""


@dataclass(frozen=True, slots=True)
class JobFiles:
    """The places of one job's results."""

    scores: Path
    shards: Path

    def owed(self) -> int:
        """Questions without an end when the scores were counted. Raises DataError."""
        return int(_read(self)["scores"]["owed"])


def job_files(run_dir: Path, job: EvalJob) -> JobFiles:
    stem = re.sub(r"[^\w.-]+", "_", f"{job.name}-{job.unit}")
    folder = run_dir / "eval"
    return JobFiles(folder / f"{stem}.json", folder / stem)


def refuse_other(run_dir: Path, jobs: Sequence[EvalJob]) -> None:
    """Raises DataError where the scores of another model are stored under a job's name."""
    for job in jobs:
        path = job_files(run_dir, job).scores
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            model, content = stored["model"], stored.get("content")
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if _place(model) != _place(job.model) and (content is None or content != _content(job.model)):
            raise DataError(
                f"{path}: scores of '{model}': name '{job.model}' otherwise (--model NAME={job.model}), or delete "
                "the file"
            )


def _place(model: str) -> str:
    """The whole path of a local folder, another name as it is."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


def _content(model: str) -> str | None:
    """The fingerprint of a folder's files; None for a name. A folder that moved is still the same model."""
    folder = Path(model).expanduser()
    return folder_fingerprint(folder) if folder.is_dir() else None


def set_fingerprint(found: RolloutSet) -> str:
    """Of everything the scores of a set depend on: its identity, questions and committed files."""
    manifests = found.spec.store.manifests(found.shards)
    files = [
        None if one is None else [one.sha256, sorted(owed.question for owed in one.owed)] for one in manifests
    ]
    return digest([FORMAT, found.spec.identity, found.questions.key, files])


@cache
def _scores() -> TypeAdapter[EvalScores]:
    return TypeAdapter(EvalScores)


def load_scores(files: JobFiles, fingerprint: str) -> EvalScores | None:
    """The scores that were counted from the shards with this fingerprint, or None."""
    try:
        data = json.loads(files.scores.read_text(encoding="utf-8"))
        if data.pop("check") != digest(data) or data["fingerprint"] != fingerprint:
            return None
        return _scores().validate_python(data["scores"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save_scores(
    files: JobFiles, job: EvalJob, fingerprint: str, shards: Sequence[str], scores: EvalScores
) -> None:
    """Raises StorageError."""
    about = {"name": job.name, "unit": job.unit, "model": job.model, "content": _content(job.model)}
    about |= {"fingerprint": fingerprint}
    data = {**about, "shards": list(shards), "scores": _scores().dump_python(scores, mode="json")}
    write_text(files.scores, json.dumps({**data, "check": digest(data)}, indent=2) + "\n")


def read_trajectories(files: JobFiles) -> Iterator[Trajectory]:
    """The trajectories of one job, in the order of the questions. Raises DataError."""
    store = ShardStore(files.shards, "")
    for shard in _read(files)["shards"]:
        yield from store.read(shard)


def _read(files: JobFiles) -> dict[str, Any]:
    """The scores' file. Raises DataError."""
    try:
        data: dict[str, Any] = json.loads(files.scores.read_text(encoding="utf-8"))
        if data.pop("check") == digest(data):
            return data
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{files.scores}: no result of an evaluation here: {error}") from error
    raise DataError(
        f"{files.scores}: changed since it was written: evaluate again, which asks nothing and counts the scores again"
    )


def evaluated(run_dir: Path) -> dict[str, list[str]]:
    """The names of the evaluations below run_dir, each with its step units. Raises DataError."""
    units: dict[str, list[str]] = {}
    for path in sorted((run_dir / "eval").glob("*.json")):
        about = _read(JobFiles(path, path.with_suffix("")))
        units.setdefault(about["name"], []).append(about["unit"])
    return units


@dataclass(frozen=True, slots=True)
class Answers:
    """The scores of each question in one evaluation, by its id, and the ids of its gold passages."""

    scores: Mapping[str, Score]
    gold: Mapping[str, tuple[str, ...]]

    def metric(self, name: str) -> dict[str, float]:
        """One score of each question: em, f1 or acc."""
        return {id: getattr(score, name) for id, score in self.scores.items()}


def read_answers(run_dir: Path, name: str, unit: str) -> Answers:
    """The answers of one evaluation; questions that are owed are missing. Raises DataError."""
    scores, gold = dict[str, Score](), dict[str, tuple[str, ...]]()
    for trajectory in read_trajectories(job_files(run_dir, EvalJob(name, "", unit))):
        scores[trajectory.question.id] = judge(trajectory)
        gold[trajectory.question.id] = tuple(trajectory.question.gold_ids)
    return Answers(scores, gold)


def clusters_among(evaluations: Iterable[Answers]) -> dict[str, int]:
    """The clusters of the questions of evaluations of one test set."""
    return clusters_of({id: gold for one in evaluations for id, gold in one.gold.items()})


def pick_samples(run_dir: Path, names: Mapping[str, str], units: Sequence[str]) -> list[Sample]:
    """Trajectories to unfold in the report: of each number of hops the first question, in every model and unit.

    `names` maps a model of the table to the evaluation that stands for it ({"steper": "steper-seed0"}).
    """
    found: list[tuple[int, Sample]] = []
    for model, name in names.items():
        for unit in units:
            first: dict[int, Trajectory] = {}
            for trajectory in read_trajectories(job_files(run_dir, EvalJob(name, "", unit))):
                first.setdefault(trajectory.question.hops or 0, trajectory)
            found.extend(
                (hops, Sample(model, unit, judge(trajectory), trajectory))
                for hops, trajectory in first.items()
            )
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]
