"""Two ways of doing the same work, timed in turn in one process, so that a noisy machine disturbs both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def ratios(one: Callable[[], object], other: Callable[[], object], rounds: int) -> list[float]:
    """Time of `other` over time of `one`, in `rounds` rounds after a round that warms up; the order alternates."""
    found = []
    for number in range(rounds + 1):
        pair = (one, other) if number % 2 else (other, one)
        times = {}
        for run in pair:
            started = time.perf_counter()
            run()
            times[run] = time.perf_counter() - started
        if number:
            found.append(times[other] / times[one])
    return found


def tell(what: str, found: list[float]) -> None:
    """One line: the median of the ratios, and their range."""
    print(
        f"{what}: {statistics.median(found):.2f} times ({min(found):.2f} to {max(found):.2f}, "
        f"{len(found)} rounds)",
        flush=True,
    )
