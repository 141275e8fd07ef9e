"""The book of a service: what its callers have used up, and what was answered under their idempotency keys.

All replicas of the HTTP side keep one book (`ledger_deployment.py`); a single one, and a test, keep it in the process.
No HTTP, no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from steper_ray.config.serve import CallerLimits, IdempotencyConfig
from steper_ray.serving.idempotency import Claim, IdempotencyStore, Reply
from steper_ray.serving.limits import Admission, RateLimiter


class Ledger(Protocol):
    """`RateLimiter` and `IdempotencyStore`, perhaps elsewhere. It never raises: a request that it cannot be asked about
    is answered, unremembered."""

    async def admit(self, caller: str, limits: CallerLimits, place: str) -> Admission: ...

    async def release(self, caller: str, place: str) -> None: ...

    async def begin(self, caller: str, key: str, fingerprint: bytes, request: str) -> Claim: ...

    async def finish(self, caller: str, key: str, request: str, reply: Reply) -> None: ...

    async def free(self, caller: str, key: str, request: str) -> None: ...


class LocalLedger:
    """The book in this process. `longest_s`: longest time that a request may last; what its server left open, because
    it died, is closed after that."""

    def __init__(
        self,
        longest_s: float,
        idempotency: IdempotencyConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limiter = RateLimiter(longest_s, clock)
        self._store = IdempotencyStore(idempotency or IdempotencyConfig(), longest_s, clock)

    async def admit(self, caller: str, limits: CallerLimits, place: str) -> Admission:
        return self._limiter.admit(caller, limits, place)

    async def release(self, caller: str, place: str) -> None:
        self._limiter.release(caller, place)

    async def begin(self, caller: str, key: str, fingerprint: bytes, request: str) -> Claim:
        return self._store.begin(caller, key, fingerprint, request)

    async def finish(self, caller: str, key: str, request: str, reply: Reply) -> None:
        self._store.finish(caller, key, request, reply)

    async def free(self, caller: str, key: str, request: str) -> None:
        self._store.free(caller, key, request)
