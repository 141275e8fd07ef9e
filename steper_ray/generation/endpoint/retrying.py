"""Waits between attempts at an endpoint. Pure: sends nothing and knows no client."""

from __future__ import annotations

import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from random import Random

_FIRST_S, _LONGEST_S = 0.5, 30.0  # bounds of the first wait and of the longest


def backoff(attempt: int, rng: Random, least_s: float = 0.0) -> float:
    """Seconds before attempt number `attempt` + 1 (from 1): exponential with full jitter, after `least_s`.

    Jitter over the whole range keeps clients that were refused together from coming back together.
    """
    return least_s + rng.uniform(0, min(_LONGEST_S, _FIRST_S * 2.0 ** min(attempt - 1, 16)))


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Seconds that an endpoint asks to wait; 0 where it does not say, or nothing that makes sense.

    `headers` have lower-case names (or ignore case), `now` is Unix time: Retry-After may be a date.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now)
    except (ValueError, OverflowError, OSError):
        return 0.0
