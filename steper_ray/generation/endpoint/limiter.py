"""Limits concurrent requests to an endpoint and their rate, learned from its answers and bounded by settings.

Additive increase, multiplicative decrease, as TCP does it: a request that is served while others wait for a place
widens the limit, one that is refused halves it. Requests take their places in the order they came. Pure asyncio, for
one event loop: it knows no HTTP and no engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]

_START = 8  # requests at once before anything is known about the endpoint
_LOOK_S = 1.0  # a budget may come back before its time: that is looked for so often


class Pace:
    """At most `per_minute` units a minute, evenly: what was taken must be worked off before the next may take."""

    def __init__(self, per_minute: int) -> None:
        self._unit_s = 60 / per_minute
        self._free_at = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until the next may take."""
        return max(0.0, self._free_at - now)

    def take(self, units: int, now: float) -> None:
        """Takes any number of units: those beyond one minute's keep the next one waiting that much longer."""
        self._free_at = max(self._free_at, now) + units * self._unit_s

    def give_back(self, units: int) -> None:
        """Units that were not used after all; fewer than none, if more were used than taken."""
        self._free_at -= units * self._unit_s


class Slot:
    """One request's place, as a context manager that frees it. Tell it what became of the request before that."""

    def __init__(self, limiter: Limiter, tokens: int, era: int) -> None:
        self.tokens, self.era = tokens, era
        self.served: bool | None = None  # None: the request ended before that was known
        self._limiter, self._used = limiter, tokens

    def accepted(self) -> None:
        """The endpoint took the request and answers it."""
        self.served = True

    def overloaded(self, pause_s: float = 0.0) -> None:
        """The endpoint had no room for the request, and wants no other one for so long."""
        self.served = False
        self._limiter.pause(pause_s)

    def used(self, tokens: int) -> None:
        """Tokens the request has cost so far; where the endpoint does not report them, those it was given."""
        self._used = tokens

    @property
    def unused(self) -> int:
        """Tokens of its budget that it did not use; below 0 if it used more."""
        return self.tokens - self._used

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limiter.leave(self)


class Limiter:
    """Gives out slots: at most `ceiling` at once, and fewer where the endpoint has shown that it takes fewer.

    Hard limits on top: requests and tokens a minute, None for none.
    """

    def __init__(
        self,
        ceiling: int,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.in_use = 0
        self._ceiling = ceiling
        self._limit = float(min(_START, ceiling))
        self._era = 0  # a decrease begins the next one
        self._requests = Pace(requests_per_minute) if requests_per_minute else None
        self._tokens = Pace(tokens_per_minute) if tokens_per_minute else None
        self._paused_until = float("-inf")
        self._clock, self._sleep = clock, sleep
        self._turn = asyncio.Lock()  # its waiters are woken in the order they came
        self._changed = asyncio.Event()
        self._short = False  # somebody waits for a place: more of them would be used

    @property
    def limit(self) -> int:
        """Requests that may be under way at once, as things stand."""
        return int(self._limit)

    async def acquire(self, tokens: int = 0) -> Slot:
        """Waits for a place and for the budget of `tokens`. Use as: `with await limiter.acquire(n) as slot`."""
        async with self._turn:
            while True:
                if self.in_use >= self.limit:
                    await self._place()
                elif (wait := self._wait()) > 0:
                    await self._sleep(min(wait, _LOOK_S))
                else:
                    break
            # From here to the caller's `with` nothing is awaited: no cancellation can lose the place.
            now = self._clock()
            self.in_use += 1
            if self._requests is not None:
                self._requests.take(1, now)
            if self._tokens is not None:
                self._tokens.take(tokens, now)
            return Slot(self, tokens, self._era)

    def pause(self, seconds: float) -> None:
        """No new request for so long."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def leave(self, slot: Slot) -> None:
        """Frees a place: what its slot itself does at its end."""
        if self._tokens is not None:
            self._tokens.give_back(slot.unused)
        # Requests of an earlier era were sent under a limit that was halved since: a burst of refusals counts once.
        if slot.era == self._era and slot.served is False:
            self._limit = max(1.0, self._limit / 2)
            self._era += 1
        elif slot.era == self._era and slot.served and self._short:
            # By one a round trip; until the first refusal twofold, so that a strong endpoint is soon filled.
            step = 1 / self._limit if self._era else 1.0
            self._limit = min(float(self._ceiling), self._limit + step)
        self.in_use -= 1
        self._changed.set()

    async def _place(self) -> None:
        """Until a request has left. The one who waits here is the first in the line."""
        self._changed.clear()
        self._short = True
        try:
            await self._changed.wait()
        finally:
            self._short = False

    def _wait(self) -> float:
        now = self._clock()
        paces = [pace.wait(now) for pace in (self._requests, self._tokens) if pace is not None]
        return max([self._paused_until - now, *paces])
