"""Paired comparisons: against scipy's exact tests, and by simulation."""

import numpy as np
import pytest
from scipy import stats

from steper_ray.evaluation.paired import compare


def by_id(values):
    return {f"q{number}": float(value) for number, value in enumerate(values)}


def of(ours, theirs):
    return compare("a", "b", "sentence", "em", [by_id(ours)], [by_id(theirs)])


def test_the_p_value_is_that_of_mcnemars_exact_test():
    ours, theirs = [1] * 9 + [0] * 2 + [1] * 20, [0] * 9 + [1] * 2 + [1] * 20
    found = of(ours, theirs)
    assert found.p == pytest.approx(stats.binomtest(9, 11).pvalue, abs=0.01)
    assert (found.difference, found.n) == (pytest.approx(7 / 31), 31)
    assert found.low < found.difference < found.high


def test_equal_models_differ_by_nothing():
    found = of([1, 0, 1], [1, 0, 1])
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_score_is_the_mean_over_seeds_and_a_question_without_one_counts_as_wrong():
    ours = [by_id([1, 1]), by_id([1, 0])]
    found = compare("a", "b", "sentence", "em", ours, [{"q0": 1.0}])
    assert (found.difference, found.n) == (0.25, 2)
    with pytest.raises(ValueError, match="a and b: no questions"):
        compare("a", "b", "sentence", "em", [{}], [{}])


def test_the_interval_covers_the_true_difference_nineteen_times_of_twenty():
    rng, held = np.random.default_rng(3), 0
    for _ in range(40):
        found = of(rng.random(120) < 0.6, rng.random(120) < 0.5)
        held += found.low <= 0.1 <= found.high
    assert held >= 34


def test_models_that_are_alike_are_rarely_told_apart():
    rng = np.random.default_rng(4)
    found = [of(rng.random(80) < 0.5, rng.random(80) < 0.5).p for _ in range(30)]
    assert sum(p < 0.05 for p in found) <= 5
