"""One document of a whole comparison (results.json): scores over seeds, training curves, samples and provenance.

The report and the terminal's table read this document and nothing else. Pure, except `read_metrics`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from steper_ray.core.answers import Score
from steper_ray.core.errors import DataError
from steper_ray.core.files import write_text
from steper_ray.core.fingerprints import digest
from steper_ray.core.jsonl import read_records
from steper_ray.evaluation.scores import METRICS, EvalScores
from steper_ray.evaluation.spread import Spread, aggregate, aggregate_groups
from steper_ray.evaluation.statistics import Comparison
from steper_ray.schema import Trajectory

RESULTS = "results.json"
MAX_POINTS = 400  # of one curve: more than a plot can show
Evaluations = Mapping[str, Mapping[str, EvalScores]]


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The logs of one training, as records. `model` is the group it belongs to, such as 'steper'.

    `records` are the steps (metrics.jsonl), `answers` the rounds of questions it was asked (validation.jsonl).
    """

    model: str
    seed: int
    records: Sequence[Mapping[str, Any]]
    answers: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class SeedScores(EvalScores):
    """The scores of one evaluated model, under its name."""

    name: str


@dataclass(frozen=True, slots=True)
class ModelScores(EvalScores):
    """Means over the seeds of a model (of errors and owed questions the sums), their spread, and the seeds."""

    spread: Mapping[str, Spread]
    seeds: tuple[SeedScores, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves of one training over its optimiser steps, by name; None is a step without a value."""

    model: str
    seed: int
    steps: Sequence[int]
    values: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A trajectory with its scores, as the report unfolds it."""

    model: str
    unit: str
    scores: Score
    trajectory: Trajectory


@dataclass(frozen=True, slots=True)
class Results:
    """Model -> step unit -> scores, the curves of each training, and where all of it came from.

    `data` says what the students were trained on (the build's manifest), `config` the resolved config, `provenance`
    versions, times and counts; all three are shown as they are.
    """

    models: Mapping[str, Mapping[str, ModelScores]]
    loss: Sequence[Curves]
    sigma: Sequence[Curves]
    validation: Sequence[Curves]
    questions: Sequence[Curves]
    optimiser: Sequence[Curves]
    samples: Sequence[Sample]
    comparisons: Sequence[Comparison]
    data: Mapping[str, Any]
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]


@cache
def _adapter() -> TypeAdapter[Results]:
    return TypeAdapter(Results)


def save_results(run_dir: Path, results: Results) -> None:
    """Writes run_dir/results.json with a check of itself. Raises StorageError."""
    plain = _adapter().dump_python(results, mode="json")
    write_text(run_dir / RESULTS, json.dumps({**plain, "check": digest(plain)}, indent=1) + "\n")


def load_results(run_dir: Path) -> Results | None:
    """What `save_results` wrote; None where there is none.

    Raises DataError for a file that was changed since, or that another version wrote.
    """
    path = run_dir / RESULTS
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain.pop("check") == digest(plain):
            return _adapter().validate_python(plain)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    raise DataError(
        f"{path}: changed since it was written, or by an older version. Run the command that wrote it again: what is "
        "done is kept"
    )


def read_metrics(path: Path, model: str, seed: int) -> TrainingLog:
    """Reads a metrics.jsonl and the validation.jsonl beside it, if any. Raises DataError with file and line."""
    answers = path.with_name("validation.jsonl")
    return TrainingLog(model, seed, read_records(path), read_records(answers))


def assemble_results(
    evaluations: Evaluations,
    groups: Mapping[str, Sequence[str]],
    *,
    trainings: Sequence[TrainingLog] = (),
    samples: Sequence[Sample] = (),
    comparisons: Sequence[Comparison] = (),
    data: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Results:
    """Puts scores, logs, samples and comparisons together.

    `groups` maps each model of the table, in its order, to its evaluations, one a seed: {"steper": ["steper-0"]}.
    """
    return Results(
        models={model: _model(evaluations, names) for model, names in groups.items()},
        loss=_curves(trainings, _steps, lambda line: line["losses"]),
        sigma=_curves(trainings, _steps, lambda line: line.get("sigma")),
        validation=_curves(trainings, _steps, lambda line: line.get("validation", {}).get("losses")),
        questions=_curves(trainings, _answers, lambda line: _some(line, "em", "f1", "mean_steps", "n")),
        optimiser=_curves(trainings, _steps, lambda line: _some(line, "lr", "grad_norm")),
        samples=list(samples),
        comparisons=list(comparisons),
        data=data or {},
        config=config or {},
        provenance=provenance or {},
    )


def _model(evaluations: Evaluations, names: Sequence[str]) -> dict[str, ModelScores]:
    units = list(dict.fromkeys(unit for name in names for unit in evaluations[name]))
    return {
        unit: _unit({name: evaluations[name][unit] for name in names if unit in evaluations[name]})
        for unit in units
    }


def _unit(seeds: Mapping[str, EvalScores]) -> ModelScores:
    scores = list(seeds.values())
    spreads = aggregate(scores)
    means = {metric: spreads[metric].mean if metric in spreads else None for metric in METRICS}
    steps = max(len(one.recall_by_step) for one in scores)
    together = replace(
        scores[0],
        **means,  # type: ignore[arg-type]  # metrics are numbers, which mypy does not see
        errors=sum(one.errors for one in scores),
        owed=sum(one.owed for one in scores),
        recall_by_step=tuple(_mean_at(scores, step) for step in range(steps)),
        stop_reasons=_summed([one.stop_reasons for one in scores]),
        by_hops=aggregate_groups([one.by_hops for one in scores]),
        by_steps=aggregate_groups([one.by_steps for one in scores]),
    )
    named = tuple(SeedScores(**_fields(one), name=name) for name, one in seeds.items())
    return ModelScores(**_fields(together), spread=spreads, seeds=named)


def _fields(scores: EvalScores) -> dict[str, Any]:
    return {field.name: getattr(scores, field.name) for field in fields(EvalScores)}


def _mean_at(scores: Sequence[EvalScores], step: int) -> float:
    """Recall after a step, over seeds; a seed whose questions all ended earlier keeps its last."""
    values = [
        one.recall_by_step[min(step, len(one.recall_by_step) - 1)] for one in scores if one.recall_by_step
    ]
    return sum(values) / len(values)


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = sorted({name for one in counts for name in one})
    return {name: sum(one.get(name, 0) for one in counts) for name in names}


def _curves(
    trainings: Iterable[TrainingLog],
    lines: Callable[[TrainingLog], Iterable[Mapping[str, Any]]],
    values: Callable[[Mapping[str, Any]], Mapping[str, float | None] | None],
) -> list[Curves]:
    """The `values` of the lines of each training's log that have any; trainings without such a line are omitted."""
    curves = []
    for log in trainings:
        found = thin([(line["step"], of_step) for line in lines(log) if (of_step := values(line))])
        if found:
            by_name = {name: [of_step.get(name) for _, of_step in found] for name in found[0][1]}
            curves.append(Curves(log.model, log.seed, [step for step, _ in found], by_name))
    return curves


def _steps(log: TrainingLog) -> Sequence[Mapping[str, Any]]:
    return log.records


def _answers(log: TrainingLog) -> Sequence[Mapping[str, Any]]:
    """The rounds of questions in the order of their steps."""
    return sorted(log.answers, key=lambda line: line["step"])


def _some(line: Mapping[str, Any], *names: str) -> dict[str, float | None] | None:
    """The named values of a line that has the first of them."""
    return {name: line.get(name) for name in names} if names[0] in line else None


def thin(records: Sequence[Any], most: int = MAX_POINTS) -> list[Any]:
    """At most `most` of the records at even distances, the first and the last among them."""
    if len(records) <= most:
        return list(records)
    last = len(records) - 1
    return [records[round(at * last / (most - 1))] for at in range(most)]
