"""How often and how many at once a caller may ask: a token bucket and a count of places for each.

Callers are those of the keyring, so what is kept here cannot grow with what strangers send. Pure: no HTTP, no Ray.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from steper_ray.config.serve import CallerLimits

Over = Literal["requests", "concurrent"] | None
#: When a place comes free is told by how long the last questions took; where none has ended, and where one is overdue,
#: a client looks again so soon.
PLACE_RETRY_S = 1.0
_LAST = 32  # questions whose time counts
_EPSILON = 1e-9  # of one request: what floating point may lose of a refill


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a request may go on, or of what there is no more (`over`), and after how many seconds (`retry_s`) one
    may be sent again.

    `limit`, `remaining` and `reset_s` (until all of the minute's requests are there again) are None without a rate.
    """

    over: Over = None
    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None
    retry_s: float = 0.0


@dataclass(slots=True)
class _Account:
    """`tokens` as they were at `at`; each place with the time after which it is free whatever became of it."""

    tokens: float
    at: float
    places: dict[str, float] = field(default_factory=dict)
    took: deque[float] = field(default_factory=lambda: deque(maxlen=_LAST))
    """Seconds of the last questions that gave their place back."""


class RateLimiter:
    """The accounts of all callers. `place_s`: longest time that a request may last."""

    def __init__(self, place_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._place_s, self._clock = place_s, clock
        self._accounts: dict[str, _Account] = {}
        self._took: deque[float] = deque(maxlen=_LAST)  # of all callers

    def admit(self, caller: str, limits: CallerLimits, place: str) -> Admission:
        """Takes a request's token and a place, or neither. `place` is a name for it, to give it back by."""
        now = self._clock()
        rate = limits.requests_per_minute
        account = self._accounts.setdefault(caller, _Account(float(rate or 0), now))
        if rate is not None:
            account.tokens = min(float(rate), account.tokens + max(0.0, now - account.at) * rate / 60)
        account.at = now
        account.places = {place: end for place, end in account.places.items() if end > now}
        if limits.concurrent is not None and len(account.places) >= limits.concurrent:
            return self._answer(account, rate, "concurrent", self._until_free(account, now))
        if rate is not None:
            if account.tokens < 1 - _EPSILON:
                return self._answer(account, rate, "requests", (1 - account.tokens) * 60 / rate)
            account.tokens = max(0.0, account.tokens - 1)
        if limits.concurrent is not None:
            account.places[place] = now + self._place_s
        return self._answer(account, rate, None, 0.0)

    def release(self, caller: str, place: str) -> None:
        """Gives a place back; one that is not held (any more) is passed over."""
        account = self._accounts.get(caller)
        if account is None or (end := account.places.pop(place, None)) is None:
            return
        took = self._clock() - (end - self._place_s)
        account.took.append(took)
        self._took.append(took)

    def _until_free(self, account: _Account, now: float) -> float:
        """How long until the next place is free, if its question takes as long as most did: the caller's own, or
        everybody's where he has none yet."""
        took = account.took or self._took
        if not took:
            return PLACE_RETRY_S
        began = min(account.places.values()) - self._place_s
        return max(PLACE_RETRY_S, began + median(took) - now)

    @staticmethod
    def _answer(account: _Account, rate: int | None, over: Over, retry_s: float) -> Admission:
        if rate is None:
            return Admission(over, retry_s=retry_s)
        reset = (rate - account.tokens) * 60 / rate
        return Admission(over, rate, math.floor(account.tokens + _EPSILON), reset, retry_s)
