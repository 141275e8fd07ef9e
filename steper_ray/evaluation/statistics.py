"""The statistics of scores: intervals, paired comparisons, and what a test set can show. Pure numbers.

- A model's score of a question is its mean over the training seeds; what is drawn again is questions, not seeds.
- Questions that share gold passages are no independent draws: they are one cluster, and clusters are drawn whole.
- Intervals are percentile bootstraps; p is that of a two-sided permutation test that swaps the two models within
  clusters. Both are scipy's, with a fixed seed: the same scores give the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

_DRAWS = 9999
_AT_ONCE = 4_000_000  # numbers that are drawn together: what bounds the memory over many questions
#: One score of each question, by its id.
ByQuestion = Mapping[str, float]
#: The cluster of each question, by its id; a question that is not there is one by itself.
Clusters = Mapping[str, int]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`model` less `other` over `n` questions in `clusters`; `difference`, `low` and `high` lie between -1 and 1."""

    model: str
    other: str
    unit: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    n: int
    clusters: int
    p_holm: float | None = None
    """p, corrected by Holm's method for the comparisons of its table."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval over `n` questions in `clusters`."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int


def clusters_of(gold: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The cluster of each question from the ids of its gold passages: questions that share one, directly or by others
    between them, are in one cluster."""
    ids = {passage: number for number, passage in enumerate({p for found in gold.values() for p in found})}
    pairs = [(row, len(gold) + ids[p]) for row, found in enumerate(gold.values()) for p in found]
    rows, columns = (list(side) for side in zip(*pairs, strict=True)) if pairs else ([], [])
    size = len(gold) + len(ids)
    graph = coo_matrix((np.ones(len(pairs)), (rows, columns)), shape=(size, size))
    labels = connected_components(graph, directed=False)[1]
    return {question: int(label) for question, label in zip(gold, labels, strict=False)}


def interval(seeds: Sequence[ByQuestion], clusters: Clusters) -> Interval:
    """The mean of a score over questions and seeds. Raises ValueError where there is no question."""
    ids = sorted({id for seed in seeds for id in seed})
    if not ids:
        raise ValueError("no questions to average")
    values = _means(seeds, ids)
    sums, sizes = _by_cluster(values, ids, clusters)
    low, high = _bootstrap(sums, sizes)
    return Interval(float(values.mean()), low, high, len(ids), len(sums))


def compare(
    model: str,
    other: str,
    unit: str,
    metric: str,
    ours: Sequence[ByQuestion],
    theirs: Sequence[ByQuestion],
    clusters: Clusters,
) -> Comparison:
    """Compares the seeds of two models. A question that a seed has no score of counts as 0 there (it is owed).

    Raises ValueError where there is no question.
    """
    ids = sorted({id for seed in (*ours, *theirs) for id in seed})
    if not ids:
        raise ValueError(f"{model} and {other}: no questions to compare")
    differences = _means(ours, ids) - _means(theirs, ids)
    sums, sizes = _by_cluster(differences, ids, clusters)
    low, high = _bootstrap(sums, sizes)
    mean = float(differences.mean())
    return Comparison(model, other, unit, metric, mean, low, high, _permuted(sums), len(ids), len(sums))


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one table, each with its p corrected by Holm's step-down method (1979)."""
    order = sorted(range(len(comparisons)), key=lambda at: comparisons[at].p)
    corrected, largest = list(comparisons), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * comparisons[at].p))
        corrected[at] = replace(comparisons[at], p_holm=largest)
    return corrected


def detectable(clusters: int, discordant: float = 0.25, power: float = 0.8) -> float:
    """The least difference of two accuracies, from 0 to 1, that a paired test at 5 % finds with this power.

    `discordant` is the share of questions that one model alone gets right, one an independent cluster: the variance of
    a question's difference. An approximation by the normal distribution.
    """
    reach = stats.norm.ppf(0.975) + stats.norm.ppf(power)
    return float(reach * sqrt(discordant / clusters))


def _means(seeds: Sequence[ByQuestion], ids: Sequence[str]) -> Floats:
    values = np.array([[seed.get(id, 0.0) for id in ids] for seed in seeds], np.float64)
    means: Floats = values.mean(axis=0)
    return means


def _by_cluster(values: Floats, ids: Sequence[str], clusters: Clusters) -> tuple[Floats, Floats]:
    """The sum of the values of each cluster, and its number of questions."""
    keys: list[int | str] = [clusters.get(id, id) for id in ids]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    places = np.array([numbers[key] for key in keys])
    sums: Floats = np.bincount(places, values).astype(np.float64)
    sizes: Floats = np.bincount(places).astype(np.float64)
    return sums, sizes


def _bootstrap(sums: Floats, sizes: Floats) -> tuple[float, float]:
    mean = float(sums.sum() / sizes.sum())
    if len(sums) < 2 or np.all(sums == mean * sizes):
        return mean, mean
    found = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=_DRAWS,
        batch=max(1, _AT_ONCE // len(sums)),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _permuted(sums: Floats) -> float:
    if len(sums) < 2 or not sums.any():
        return 1.0
    return float(
        stats.permutation_test(
            (sums,),
            lambda values, axis: np.mean(values, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=_DRAWS,
            batch=max(1, _AT_ONCE // len(sums)),
            rng=np.random.default_rng(0),
        ).pvalue
    )
