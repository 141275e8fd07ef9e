"""How long an endpoint is left alone: jitter within its bounds, and every way of asking for a pause."""

from random import Random

import pytest

from steper_ray.generation.endpoint.retrying import backoff, retry_after

NOW = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(("attempt", "bound"), [(1, 0.5), (2, 1), (3, 2), (6, 16), (7, 30), (100, 30)])
def test_waits_are_jittered_over_the_whole_of_an_exponential_range(attempt, bound):
    rng = Random(0)
    waits = [backoff(attempt, rng) for _ in range(2000)]
    assert 0 <= min(waits) < 0.01 * bound
    assert 0.99 * bound < max(waits) <= bound
    assert sum(waits) / len(waits) == pytest.approx(bound / 2, rel=0.05)


def test_jitter_comes_on_top_of_what_the_endpoint_asks_for():
    waits = [backoff(2, Random(seed), 7.0) for seed in range(50)]
    assert min(waits) >= 7
    assert max(waits) <= 8
    assert len(set(waits)) == 50


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:20 GMT"}, 20),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT"}, 0),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "inf"}, 0),
        ({"retry-after": "soon"}, 0),
    ],
)
def test_an_endpoint_may_ask_for_a_pause_in_seconds_or_by_a_date(headers, seconds):
    assert retry_after(headers, NOW) == pytest.approx(seconds)
