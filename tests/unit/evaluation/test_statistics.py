"""Statistics of scores: against scipy's exact tests, and by simulation."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from steper_ray.evaluation.statistics import clusters_of, compare, detectable, holm, interval


def by_id(values):
    return {f"q{number}": float(value) for number, value in enumerate(values)}


def of(ours, theirs, clusters=None):
    return compare("a", "b", "sentence", "em", [by_id(ours)], [by_id(theirs)], clusters or {})


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
    found = compare("a", "b", "sentence", "em", ours, [{"q0": 1.0}], {})
    assert (found.difference, found.n) == (0.25, 2)
    with pytest.raises(ValueError, match="a and b: no questions"):
        compare("a", "b", "sentence", "em", [{}], [{}], {})


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


def in_clusters(rng, count, size):
    """Differences of questions whose clusters share most of what they differ by, around 0.1, and their clusters."""
    shared = np.repeat(rng.normal(0.1, 0.3, count), size)
    return shared + rng.normal(0, 0.1, count * size), {f"q{n}": n // size for n in range(count * size)}


def test_clustered_intervals_cover_the_true_difference_and_those_of_single_questions_do_not():
    rng, held, alone = np.random.default_rng(5), 0, 0
    for _ in range(40):
        ours, clusters = in_clusters(rng, 30, 8)
        zeros = np.zeros(len(ours))
        found, naive = of(ours, zeros, clusters), of(ours, zeros)
        held += found.low <= 0.1 <= found.high
        alone += naive.low <= 0.1 <= naive.high
        assert (found.clusters, found.n) == (30, 240)
    assert held >= 34
    assert alone <= 28


def test_clustered_tests_rarely_tell_models_apart_that_are_alike():
    rng = np.random.default_rng(6)
    found = []
    for _ in range(30):
        ours, clusters = in_clusters(rng, 20, 8)
        found.append(of(ours - 0.1, np.zeros(160), clusters).p)
    assert sum(p < 0.05 for p in found) <= 5


def test_questions_that_share_gold_passages_directly_or_by_others_are_one_cluster():
    gold = {"a": ["1", "2"], "b": ["2", "3"], "c": ["3"], "d": ["4"], "e": [], "f": []}
    found = clusters_of(gold)
    assert found["a"] == found["b"] == found["c"]
    assert len({found[id] for id in "adef"}) == 4
    assert clusters_of({}) == {}


def test_the_interval_of_a_score_is_the_clusters_bootstrap():
    whole = interval([by_id([1, 1, 0, 0])], {f"q{n}": n // 2 for n in range(4)})
    assert (whole.mean, whole.low, whole.high, whole.n, whole.clusters) == (0.5, 0, 1, 4, 2)
    assert interval([by_id([1, 1])], {}).low == 1
    with pytest.raises(ValueError, match="no questions"):
        interval([], {})


def test_holms_correction_steps_down_and_never_falls():
    rows = [replace(of([1], [0]), p=p) for p in (0.01, 0.04, 0.03, 0.5)]
    assert [row.p_holm for row in holm(rows)] == pytest.approx([0.04, 0.09, 0.09, 0.5])


def test_the_detectable_difference_is_found_with_its_power():
    rng, found = np.random.default_rng(7), 0
    size = detectable(200, discordant=0.3)
    shares = [(0.3 + size) / 2, (0.3 - size) / 2, 0.7]
    for _ in range(200):
        ours = rng.choice([1.0, -1.0, 0.0], 200, p=shares)
        found += stats.ttest_1samp(ours, 0).pvalue < 0.05
    assert 140 <= found <= 180
