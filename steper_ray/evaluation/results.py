"""One document of a whole comparison (results.json): scores over seeds, training curves, samples and provenance.

The report and the terminal's table read this document and nothing else. Pure, except `read_metrics`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from steper_ray.core.errors import DataError
from steper_ray.core.files import write_text
from steper_ray.core.fingerprints import digest
from steper_ray.core.jsonl import read_records
from steper_ray.evaluation.paired import Comparison
from steper_ray.evaluation.scores import EvalScores, judge
from steper_ray.evaluation.spread import aggregate, aggregate_groups
from steper_ray.schema import Trajectory, to_row
from steper_ray.schema.records import ComparisonRecord, Curves, ModelRecord, Results, SampleRecord

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


def save_results(run_dir: Path, results: Results) -> None:
    """Writes run_dir/results.json with a check of itself. Raises StorageError."""
    plain = json.loads(json.dumps(results))
    write_text(run_dir / RESULTS, json.dumps({**plain, "check": digest(plain)}, indent=1) + "\n")


def load_results(run_dir: Path) -> Results | None:
    """What `save_results` wrote; None where there is none.

    Raises DataError for a file that was changed since, or that another version wrote.
    """
    path = run_dir / RESULTS
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if results.pop("check") == digest(results) and results.keys() == Results.__annotations__.keys():
            return cast(Results, results)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    raise DataError(
        f"{path}: not what was written. Run the command that wrote it again: what is done is kept"
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
    samples: Sequence[SampleRecord] = (),
    comparisons: Sequence[Comparison] = (),
    data: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Results:
    """The document, in plain JSON values.

    `groups` maps each model of the table to its evaluations, one a seed ({"steper": ["steper-0", ...]}), in the
    order of the table. `data` says what the students were trained on (the build manifest), `config` the resolved
    config, `provenance` versions, times and counts; all three are shown as they are.
    """
    return {
        "models": {model: _model(evaluations, names) for model, names in groups.items()},
        "loss": _curves(trainings, _steps, lambda record: record["losses"]),
        "sigma": _curves(trainings, _steps, lambda record: record.get("sigma")),
        "validation": _curves(trainings, _steps, lambda record: record.get("validation", {}).get("losses")),
        "questions": _curves(
            trainings, _answers, lambda record: _some(record, "em", "f1", "mean_steps", "n")
        ),
        "optimiser": _curves(trainings, _steps, lambda record: _some(record, "lr", "grad_norm")),
        "samples": list(samples),
        "comparisons": [cast(ComparisonRecord, asdict(one)) for one in comparisons],
        "data": dict(data or {}),
        "config": dict(config or {}),
        "provenance": dict(provenance or {}),
    }


def sample(model: str, unit: str, trajectory: Trajectory) -> SampleRecord:
    """A trajectory with its scores, as the report unfolds it."""
    return {
        "model": model,
        "unit": unit,
        "scores": asdict(judge(trajectory)),
        "trajectory": to_row(trajectory),
    }


def _model(evaluations: Evaluations, names: Sequence[str]) -> dict[str, ModelRecord]:
    units = list(dict.fromkeys(unit for name in names for unit in evaluations[name]))
    return {
        unit: _unit({name: evaluations[name][unit] for name in names if unit in evaluations[name]})
        for unit in units
    }


def _unit(seeds: Mapping[str, EvalScores]) -> ModelRecord:
    scores = list(seeds.values())
    spreads = aggregate(scores)
    first = scores[0]
    means = {
        metric: spreads[metric].mean if metric in spreads else None for metric in ("recall", "duplicates")
    }
    steps = max(len(one.recall_by_step) for one in scores)
    record = {
        **{metric: spread.mean for metric, spread in spreads.items()},
        **means,
        "n": first.n,
        "errors": sum(one.errors for one in scores),
        "owed": sum(one.owed for one in scores),
        "recall_by_step": [_mean_at(scores, step) for step in range(steps)],
        "stop_reasons": _summed([one.stop_reasons for one in scores]),
        "by_hops": {k: asdict(v) for k, v in aggregate_groups([one.by_hops for one in scores]).items()},
        "by_steps": {k: asdict(v) for k, v in aggregate_groups([one.by_steps for one in scores]).items()},
        "spread": {metric: asdict(spread) for metric, spread in spreads.items()},
        "seeds": [{"name": name, **one.to_json()} for name, one in seeds.items()],
    }
    return cast(ModelRecord, record)


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
    curves: list[Curves] = []
    for log in trainings:
        found = thin([(line["step"], of_step) for line in lines(log) if (of_step := values(line))])
        if found:
            steps = [step for step, _ in found]
            by_name = {name: [of_step.get(name) for _, of_step in found] for name in found[0][1]}
            curves.append({"model": log.model, "seed": log.seed, "steps": steps, "values": by_name})
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
