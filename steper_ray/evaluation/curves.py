"""Curves of trainings as numbers: by model, as shares, smoothed, and where sigma is drawn to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import sqrt

from steper_ray.evaluation.results import Curves, Results
from steper_ray.schema import Ability

ABILITIES = tuple(ability.value for ability in Ability)


def by_model(curves: Iterable[Curves]) -> dict[str, list[Curves]]:
    """The curves of each model, in their order."""
    trainings: dict[str, list[Curves]] = {}
    for curve in curves:
        trainings.setdefault(curve.model, []).append(curve)
    return trainings


def shares_of(curve: Curves) -> Curves:
    """Each value as its share of the sum over all names at that step (the form of the paper's Fig. 7)."""
    totals = [sum(value or 0.0 for value in at) for at in zip(*curve.values.values(), strict=True)]
    shares = {
        name: [(y or 0.0) / total for y, total in zip(ys, totals, strict=True)]
        for name, ys in curve.values.items()
    }
    return replace(curve, values=shares)


def sigma_optimum(results: Results) -> dict[str, list[float | None]]:
    """For each ability the square root of its smoothed loss, at the steps of the curves of sigma (mean of the seeds).

    {} where seeds have different steps.
    """
    sigmas = results.sigma
    trained = {(curve.model, curve.seed) for curve in sigmas}
    losses = [curve for curve in results.loss if (curve.model, curve.seed) in trained]
    if any(list(curve.steps) != list(sigmas[0].steps) for curve in (*sigmas, *losses)):
        return {}
    optimum = {}
    for ability in ABILITIES:
        means = [mean_of(values) for values in zip(*(curve.values[ability] for curve in losses), strict=True)]
        optimum[ability] = [None if y is None else sqrt(y) for y in smoothed(means, part=10)]
    return optimum


def smoothed(values: Sequence[float | None], part: int = 20) -> list[float | None]:
    """The mean over a window centred on each value, a twentieth (or another part) of the curve wide."""
    half = len(values) // (2 * part)
    return [mean_of(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of those that are known; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
