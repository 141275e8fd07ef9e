"""Scores of several seeds as one: mean, range and standard deviation. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from steper_ray.evaluation.scores import METRICS, EvalScores, GroupScores


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric over several seeds. `std` is the sample standard deviation, 0 for a single seed."""

    mean: float
    min: float
    max: float
    std: float
    n: int


def aggregate(scores: Sequence[EvalScores]) -> dict[str, Spread]:
    """Mean and spread over seeds of each metric that all of them have; at least one seed."""
    values = {metric: [getattr(one, metric) for one in scores] for metric in METRICS}
    return {metric: spread(seeds) for metric, seeds in values.items() if None not in seeds}


def aggregate_groups(seeds: Sequence[Mapping[str, GroupScores]]) -> dict[str, GroupScores]:
    """The groups of several seeds as one: each score is the mean weighted by the group's questions, n their sum."""
    names = sorted({name for groups in seeds for name in groups}, key=int)
    return {name: _merge([groups[name] for groups in seeds if name in groups]) for name in names}


def spread(values: Sequence[float]) -> Spread:
    """Mean, range and sample standard deviation of at least one value."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return Spread(mean, min(values), max(values), math.sqrt(variance), len(values))


def _merge(groups: Sequence[GroupScores]) -> GroupScores:
    total = sum(group.n for group in groups)

    def mean(values: Iterable[float]) -> float:
        return sum(value * group.n for value, group in zip(values, groups, strict=True)) / total

    recalls = [group.recall for group in groups]
    known = [recall for recall in recalls if recall is not None]
    return GroupScores(
        n=total,
        em=mean(group.em for group in groups),
        f1=mean(group.f1 for group in groups),
        acc=mean(group.acc for group in groups),
        recall=mean(known) if len(known) == len(groups) else None,
        mean_steps=mean(group.mean_steps for group in groups),
    )
