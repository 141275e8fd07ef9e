"""Clients of the deployments: engines for the HTTP side, shards of the index for an engine.

Serve's errors become ours here, and what is called again when a replica dies under it. A call whose caller is
cancelled is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.serve.schema import DeploymentStatus, ReplicaState  # type: ignore[attr-defined]

from steper_ray.core.awaiting import together
from steper_ray.core.errors import EngineDeadError
from steper_ray.reasoning import Event, SentEvents
from steper_ray.retrieval import merge
from steper_ray.schema import Hit, Trajectory
from steper_ray.serving.asking import EngineUnavailableError, OverloadedError
from steper_ray.serving.engine import Ask

logger = logging.getLogger(__name__)

#: How long an engine that has answered counts as ready, without asking Serve's controller.
SIGN_SECONDS = 10.0
#: How long what the controller said of an engine is taken for true.
STATE_SECONDS = 1.0
#: How long the controller is waited for: engines answer without it.
STATE_WAIT_SECONDS = 2.0

_GONE = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class _State:
    """`running`: a replica passed its last health check. `coming`: one may be there all the same, or soon: the
    deployment is being updated, or the controller does not say."""

    running: bool
    coming: bool


class EngineClient:
    """One engine deployment behind its handle, as the web side knows it (`asking.Engine`).

    A question whose replica dies is asked once more, of another one: reasoning changes nothing, and the deadline
    stays. A stream continues there after the last step that was sent. Once more only at the same step: it may be what
    the replica died of.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._last_sign = self._last_state = float("-inf")
        self._state = _State(running=False, coming=False)
        self._asking: asyncio.Task[None] | None = None

    async def answer(self, ask: Ask) -> Trajectory:
        await self._check_coming()
        with self._call_errors():
            try:
                trajectory: Trajectory = await _call(self._handle.answer, ask)
            except _GONE:
                trajectory = await _call(self._handle.answer, ask)
        self._last_sign = time.monotonic()
        return trajectory

    async def events(self, ask: Ask) -> AsyncGenerator[Event, None]:
        await self._check_coming()
        with self._call_errors():
            sent, lost_at = SentEvents(), -1
            while True:
                try:
                    async with aclosing(self._events(replace(ask, begun=sent.begun()))) as events:
                        async for event in events:
                            if (new := sent.unsent(event)) is not None:
                                yield new
                    return
                except _GONE:
                    if sent.steps == lost_at:
                        raise
                    lost_at = sent.steps

    async def _events(self, ask: Ask) -> AsyncGenerator[Event, None]:
        call = self._handle.options(stream=True).parts.remote(ask)
        assert isinstance(call, DeploymentResponseGenerator)
        done = False
        try:
            async for part in call:
                self._last_sign = time.monotonic()
                for event in part:
                    yield event
            done = True
        finally:
            if not done:
                call.cancel()

    async def ready(self) -> bool:
        """Whether the engine answered a moment ago, or Serve has a healthy replica of it: a full queue is no death.

        While Serve's controller does not answer, its last word holds. Never raises.
        """
        now = time.monotonic()
        if now - self._last_sign < SIGN_SECONDS:
            return True
        if now - self._last_state >= STATE_SECONDS:
            if self._asking is None:  # one question to the controller for all who ask meanwhile
                self._asking = asyncio.create_task(self._ask_state())
            # It continues if this one is cancelled: it is the others' question too.
            if not (await asyncio.wait({self._asking}, timeout=STATE_WAIT_SECONDS))[0]:
                self._no_state("no answer")
        return self._state.running

    async def _ask_state(self) -> None:
        try:
            self._state = await asyncio.to_thread(_state, self._handle)
            self._last_state = time.monotonic()
        except Exception as error:  # Ray's, Serve's or a lost connection's
            self._no_state(type(error).__name__)
        finally:
            self._asking = None

    def _no_state(self, why: str) -> None:
        logger.warning("Serve's controller does not say how the engine is: %s", why)
        self._state = _State(self._state.running, coming=True)
        self._last_state = time.monotonic()

    async def _check_coming(self) -> None:
        """Raises EngineUnavailableError at once where a question would wait for a replica until its deadline.

        While Serve updates the engine it waits for the new replica.
        """
        if not await self.ready() and not self._state.coming:
            raise EngineUnavailableError

    @contextmanager
    def _call_errors(self) -> Iterator[None]:
        """Serve's errors as the web side's."""
        try:
            yield
        except BackPressureError as error:
            raise OverloadedError from error
        except EngineDeadError:
            self._last_sign = float("-inf")
            raise
        except _GONE as error:
            self._gone()
            raise EngineUnavailableError from error
        except RayTaskError:
            raise  # the engine's own error
        except (RayError, RayServeException) as error:  # a lost node or object, a deployment that is gone
            self._gone()
            raise EngineUnavailableError from error

    def _gone(self) -> None:
        self._last_sign = float("-inf")
        self._state = _State(running=False, coming=True)


class Students:
    """All students, each behind its engine: what answers the web side's questions. `engines` is by student."""

    def __init__(self, engines: Mapping[str, EngineClient]) -> None:
        self._engines = engines

    async def answer(self, ask: Ask) -> Trajectory:
        return await self._engines[ask.model].answer(ask)

    def events(self, ask: Ask) -> AsyncGenerator[Event, None]:
        return self._engines[ask.model].events(ask)

    async def ready(self) -> bool:
        """Whether any engine is: the others' questions are refused one by one."""
        return any([await engine.ready() for engine in set(self._engines.values())])


@dataclass(frozen=True, slots=True)
class ShardedRetriever:
    """The index's shards, each behind its handle, in the corpus' order (`retrieval.AsyncRetriever`).

    All of them must answer: a search without one of them would be of another corpus. A shard that dies is asked again
    until the search's time is over.
    """

    shards: Sequence[DeploymentHandle[Any]]

    async def find(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.search`. Raises RetrievalError."""
        searches = (_until_answered(shard.search, list(queries), k) for shard in self.shards)
        return merge(await together(searches), k)


async def _until_answered(method: Any, *args: Any) -> Any:
    wait = _FIRST_WAIT
    while True:
        try:
            return await _call(method, *args)
        except RayTaskError:
            raise  # the method's own error
        except (RayError, RayServeException):
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)


async def _call(method: Any, *args: Any) -> Any:
    call = method.remote(*args)
    try:
        return await call
    except asyncio.CancelledError:
        call.cancel()
        raise


def _state(handle: DeploymentHandle[Any]) -> _State:
    """The deployment's status in Serve's controller."""
    app = serve.status().applications.get(handle.app_name)
    deployment = None if app is None else app.deployments.get(handle.deployment_name)
    if deployment is None:
        return _State(running=False, coming=False)
    return _State(
        running=deployment.replica_states.get(ReplicaState.RUNNING, 0) > 0,
        coming=deployment.status == DeploymentStatus.UPDATING,
    )
