"""Two models over the same questions: the difference of a score, its 95 % interval and a p value. Pure numbers.

- A model's score of a question is its mean over the training seeds; questions are what is drawn again, not seeds.
- The interval is the percentile bootstrap's; p is that of a two-sided permutation test that swaps the two models within
  questions. Both are scipy's, with a fixed seed: the same scores give the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

_DRAWS = 9999
#: One score of each question, by its id.
ByQuestion = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`model` less `other` over `n` questions; `difference`, `low` and `high` lie between -1 and 1."""

    model: str
    other: str
    unit: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    n: int


def compare(
    model: str,
    other: str,
    unit: str,
    metric: str,
    ours: Sequence[ByQuestion],
    theirs: Sequence[ByQuestion],
) -> Comparison:
    """Compares the seeds of two models. A question that a seed has no score of counts as 0 there (it is owed).

    Raises ValueError where there is no question.
    """
    ids = sorted({id for seed in (*ours, *theirs) for id in seed})
    if not ids:
        raise ValueError(f"{model} and {other}: no questions to compare")
    differences = _means(ours, ids) - _means(theirs, ids)
    low, high, p = _interval_and_p(differences)
    return Comparison(model, other, unit, metric, float(differences.mean()), low, high, p, len(ids))


def _means(seeds: Sequence[ByQuestion], ids: Sequence[str]) -> npt.NDArray[np.float64]:
    values = np.array([[seed.get(id, 0.0) for id in ids] for seed in seeds], np.float64)
    means: npt.NDArray[np.float64] = values.mean(axis=0)
    return means


def _interval_and_p(differences: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    if len(differences) < 2 or not differences.any():
        mean = float(differences.mean())
        return mean, mean, 1.0
    drawn = stats.bootstrap(
        (differences,), np.mean, n_resamples=_DRAWS, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    test = stats.permutation_test(
        (differences,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_DRAWS,
        rng=np.random.default_rng(0),
    )
    return float(drawn.low), float(drawn.high), float(test.pvalue)
