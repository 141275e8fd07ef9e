"""The book as a Serve deployment of its own, of one replica, for an HTTP side of several.

While it is down, questions are answered all the same: each replica of the HTTP side then holds the limits by itself,
and nothing is remembered under idempotency keys.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from steper_ray.config.serve import CallerLimits, IdempotencyConfig
from steper_ray.serving.idempotency import Claim, Reply
from steper_ray.serving.ledger import LocalLedger
from steper_ray.serving.limits import Admission

logger = logging.getLogger(__name__)

#: Longest wait for the book: it answers in milliseconds, or is down.
ANSWER_SECONDS = 1.0
#: So long it is not asked again after it did not answer: questions must not wait for it one after another.
DOWN_SECONDS = 2.0
LEDGER_CPUS = 0.05

Ledger: serve.Deployment = serve.deployment(
    name="Ledger",
    num_replicas=1,
    max_ongoing_requests=1 << 16,  # none of its calls waits for anything
    health_check_period_s=2.0,
    graceful_shutdown_timeout_s=1.0,
    ray_actor_options={"num_cpus": LEDGER_CPUS},
)(LocalLedger)


class LedgerClient:
    """The book behind its handle."""

    def __init__(self, handle: DeploymentHandle, longest_s: float) -> None:
        self._handle = handle
        self._own = LocalLedger(longest_s, IdempotencyConfig())
        self._down_until = float("-inf")

    async def admit(self, caller: str, limits: CallerLimits, place: str) -> Admission:
        answer: Admission | None = await self._call("admit", caller, limits, place)
        return await self._own.admit(caller, limits, place) if answer is None else answer

    async def release(self, caller: str, place: str) -> None:
        await self._own.release(caller, place)  # whichever of the two it was taken from
        self._tell("release", caller, place)

    async def begin(self, caller: str, key: str, fingerprint: bytes, request: str) -> Claim:
        claim: Claim | None = await self._call("begin", caller, key, fingerprint, request)
        if claim is None:
            self._tell("free", caller, key, request)  # it may have come there after all
            return Claim("unkept")
        return claim

    async def finish(self, caller: str, key: str, request: str, reply: Reply) -> None:
        await self._call("finish", caller, key, request, reply)

    async def free(self, caller: str, key: str, request: str) -> None:
        self._tell("free", caller, key, request)

    async def _call(self, method: str, *args: Any) -> Any:
        """What it answers; None while it is down."""
        if time.monotonic() < self._down_until:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await getattr(self._handle, method).remote(*args)
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("the ledger does not answer (%s)", type(error).__name__)
            self._down_until = time.monotonic() + DOWN_SECONDS
            return None

    def _tell(self, method: str, *args: Any) -> None:
        """Without waiting: it is called in a request that is being cancelled too."""
        try:
            getattr(self._handle, method).remote(*args)
        except (RayError, RayServeException) as error:
            logger.warning("the ledger does not answer (%s)", type(error).__name__)
