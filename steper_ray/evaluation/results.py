"""One document of a whole comparison (results.json): scores over seeds, training curves, samples and provenance.

The report and the terminal's table read this document and nothing else. Pure, except `read_metrics`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steper_ray.core.errors import DataError
from steper_ray.core.files import write_text
from steper_ray.core.fingerprints import digest
from steper_ray.evaluation.paired import Comparison
from steper_ray.evaluation.scores import EvalScores, judge
from steper_ray.evaluation.spread import aggregate, aggregate_groups
from steper_ray.schema import Ability, Trajectory, to_row

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


def save_results(run_dir: Path, results: Mapping[str, Any]) -> None:
    """Writes run_dir/results.json with a check of itself. Raises StorageError."""
    plain = json.loads(json.dumps(results))
    write_text(run_dir / RESULTS, json.dumps({**plain, "check": digest(plain)}, indent=1) + "\n")


def load_results(run_dir: Path) -> dict[str, Any] | None:
    """What `save_results` wrote; None where there is none. Raises DataError for a file that was changed since."""
    path = run_dir / RESULTS
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if results.pop("check") == digest(results):
            return results
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
    return TrainingLog(model, seed, _records(path), _records(answers) if answers.exists() else ())


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as stream:
            lines = list(stream)  # `str.splitlines` would also cut at U+2028, which JSON text may hold
    except OSError as error:
        raise DataError(f"{path}: training metrics cannot be read: {error}") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON: {error}") from error
    return records


def assemble_results(
    evaluations: Evaluations,
    groups: Mapping[str, Sequence[str]],
    *,
    trainings: Sequence[TrainingLog] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    comparisons: Sequence[Comparison] = (),
    data: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document, in plain JSON values.

    `groups` maps each model of the table to its evaluations, one a seed ({"steper": ["steper-0", ...]}), in the
    order of the table. `data` says what the students were trained on (the build manifest), `config` the resolved
    config, `provenance` versions, times and counts; all three are shown as they are.
    """
    return {
        "models": {model: _model(evaluations, names) for model, names in groups.items()},
        "sigma": [curve for log in trainings if (curve := _sigma(log)) is not None],
        "loss": [_losses(log) for log in trainings if log.records],
        "validation": [curve for log in trainings if (curve := _validation(log)) is not None],
        "questions": [curve for log in trainings if (curve := _answers(log)) is not None],
        "course": [curve for log in trainings if (curve := _course(log)) is not None],
        "samples": list(samples),
        "comparisons": [asdict(one) for one in comparisons],
        "data": dict(data or {}),
        "config": dict(config or {}),
        "provenance": dict(provenance or {}),
    }


def sample(model: str, unit: str, trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory with its scores, as the report unfolds it."""
    return {
        "model": model,
        "unit": unit,
        "scores": asdict(judge(trajectory)),
        "trajectory": to_row(trajectory),
    }


def _model(evaluations: Evaluations, names: Sequence[str]) -> dict[str, Any]:
    units = list(dict.fromkeys(unit for name in names for unit in evaluations[name]))
    return {
        unit: _unit({name: evaluations[name][unit] for name in names if unit in evaluations[name]})
        for unit in units
    }


def _unit(seeds: Mapping[str, EvalScores]) -> dict[str, Any]:
    scores = list(seeds.values())
    spreads = aggregate(scores)
    first = scores[0]
    means = {
        metric: spreads[metric].mean if metric in spreads else None for metric in ("recall", "duplicates")
    }
    steps = max(len(one.recall_by_step) for one in scores)
    return {
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


def _mean_at(scores: Sequence[EvalScores], step: int) -> float:
    """Recall after a step, over seeds; a seed whose questions all ended earlier keeps its last."""
    values = [
        one.recall_by_step[min(step, len(one.recall_by_step) - 1)] for one in scores if one.recall_by_step
    ]
    return sum(values) / len(values)


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = sorted({name for one in counts for name in one})
    return {name: sum(one.get(name, 0) for one in counts) for name in names}


def _sigma(log: TrainingLog) -> dict[str, Any] | None:
    """Sigma of each task and its share of the three (Fig. 7 shows the share), or None where none is learned."""
    records = thin([record for record in log.records if record.get("sigma")])
    if not records:
        return None
    raw = {task.value: [float(record["sigma"][task.value]) for record in records] for task in Ability}
    totals = [sum(values) for values in zip(*raw.values(), strict=True)]
    normalised = {
        task: [value / total for value, total in zip(values, totals, strict=True)]
        for task, values in raw.items()
    }
    steps = [record["step"] for record in records]
    return {"model": log.model, "seed": log.seed, "steps": steps, "raw": raw, "normalised": normalised}


def _losses(log: TrainingLog) -> dict[str, Any]:
    """The loss of each task; None where a step had no example of it."""
    records = thin(log.records)
    return {
        "model": log.model,
        "seed": log.seed,
        "steps": [record["step"] for record in records],
        "losses": {task.value: [record["losses"].get(task.value) for record in records] for task in Ability},
    }


def _validation(log: TrainingLog) -> dict[str, Any] | None:
    """The loss of each task on held-out examples, at the steps that looked at them."""
    records = thin([record for record in log.records if record.get("validation")])
    if not records:
        return None
    looks = [record["validation"]["losses"] for record in records]
    return {
        "model": log.model,
        "seed": log.seed,
        "steps": [record["step"] for record in records],
        "losses": {task.value: [look.get(task.value) for look in looks] for task in Ability},
    }


def _answers(log: TrainingLog) -> dict[str, Any] | None:
    """Scores of the rounds of questions that went well, in the order of their steps."""
    records = thin(sorted((one for one in log.answers if "em" in one), key=lambda one: one["step"]))
    if not records:
        return None
    curves = {key: [record[key] for record in records] for key in ("em", "f1", "mean_steps")}
    steps = [record["step"] for record in records]
    return {"model": log.model, "seed": log.seed, "n": records[-1]["n"], "steps": steps, **curves}


def _course(log: TrainingLog) -> dict[str, Any] | None:
    """Learning rate and gradient norm (None where the optimiser does not report it)."""
    records = thin([record for record in log.records if "lr" in record])
    if not records:
        return None
    curves = {key: [record.get(key) for record in records] for key in ("lr", "grad_norm")}
    return {"model": log.model, "seed": log.seed, "steps": [record["step"] for record in records], **curves}


def thin(records: Sequence[Any], most: int = MAX_POINTS) -> list[Any]:
    """At most `most` of the records at even distances, the first and the last among them."""
    if len(records) <= most:
        return list(records)
    last = len(records) - 1
    return [records[round(at * last / (most - 1))] for at in range(most)]
