"""The two Serve deployments: Ingress (HTTP) and Engine (retriever, generator, reasoner), each scaled on its own.

The queue of bounded length stands before Engine, so that Ingress can say 429 in the form of all other errors.
A client that leaves cancels Ingress' call, which cancels the engine's, which aborts the generator's request.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from steper_ray.errors import EngineDeadError, SteperError
from steper_ray.reasoning import Event
from steper_ray.retrieval import open_index
from steper_ray.schema import Trajectory
from steper_ray.serving.asking import GRACE_SECONDS, EngineUnavailableError, OverloadedError, longest_s
from steper_ray.serving.engine import Ask, ReasonEngine
from steper_ray.serving.keys import KeyEntry, load_keys
from steper_ray.serving.ledger_deployment import Ledger, LedgerClient
from steper_ray.serving.plan import Plan
from steper_ray.serving.web import WebSettings, make_app

#: How long an engine that has answered counts as ready: a full queue must not look like a dead engine.
SIGN_SECONDS = 10.0
PROBE_SECONDS = 2.0
HEALTH_SECONDS = 2.0
INGRESS_CPUS = 0.25


class EngineReplica(ReasonEngine):
    """One engine, opened from its plan."""

    def __init__(self, plan: Plan) -> None:
        from steper_ray.generation import open_generator  # brings torch, which the ingress does not need

        config = plan.config
        retriever = open_index(plan.index, config.retrieval, plan.corpus)
        super().__init__(
            retriever,
            open_generator(config.engine),
            config.reasoning,
            config.sampling,
            config.serve,
            source=plan.about.model,
        )

    async def __del__(self) -> None:  # Serve awaits it before the replica ends
        await self.close()


class EngineClient:
    """The engine behind its handle, as the web side knows it."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._last_sign = float("-inf")

    async def answer(self, ask: Ask) -> Trajectory:
        with self._call_errors():
            call = self._handle.answer.remote(ask)
            try:
                trajectory: Trajectory = await call
            except asyncio.CancelledError:
                call.cancel()
                raise
        self._last_sign = time.monotonic()
        return trajectory

    async def events(self, ask: Ask) -> AsyncGenerator[Event, None]:
        with self._call_errors():
            call = self._handle.options(stream=True).events.remote(ask)
            assert isinstance(call, DeploymentResponseGenerator)
            done = False
            try:
                async for event in call:
                    self._last_sign = time.monotonic()
                    yield event
                done = True
            finally:
                if not done:
                    call.cancel()

    async def ready(self) -> bool:
        """Whether the engine answered a moment ago, or answers now."""
        if time.monotonic() - self._last_sign < SIGN_SECONDS:
            return True
        try:
            with self._call_errors():
                async with asyncio.timeout(PROBE_SECONDS):
                    await self._handle.ready.remote()
        except OverloadedError:
            return True
        except (EngineUnavailableError, EngineDeadError, TimeoutError):
            return False
        self._last_sign = time.monotonic()
        return True

    @contextmanager
    def _call_errors(self) -> Iterator[None]:
        """Serve's errors as the web side's."""
        try:
            yield
        except BackPressureError as error:
            raise OverloadedError from error
        except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
            self._last_sign = float("-inf")
            raise EngineUnavailableError from error
        except EngineDeadError:
            self._last_sign = float("-inf")
            raise


class IngressReplica:
    """The HTTP app over the engine's handle. `guarded`: a token was set where the application was built."""

    def __init__(
        self,
        engine: DeploymentHandle,
        plan: Plan,
        guarded: bool,
        keys: tuple[KeyEntry, ...] = (),
        ledger: DeploymentHandle | None = None,
    ) -> None:
        serve_config = plan.config.serve
        token = os.environ.get(serve_config.token_env) or None
        if guarded and token is None:
            raise SteperError(
                f"{serve_config.token_env} is set where the service is started, but not on this node: set it in the "
                "environment of the Ray nodes, before `ray start`"
            )
        self._engine = EngineClient(engine)
        self._settings = WebSettings(
            plan.limits,
            plan.about,
            plan.examples,
            serve_config.request_timeout_s,
            token,
            plan.config.sampling,
            keys,
            serve_config.limits,
            serve_config.idempotency,
        )
        self._ledger = LedgerClient(ledger, longest_s(serve_config.request_timeout_s)) if ledger else None

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._engine, self._settings, self._ledger)


Engine: serve.Deployment = serve.deployment(name="Engine")(EngineReplica)
Ingress: serve.Deployment = serve.deployment(name="Ingress")(serve.ingress()(IngressReplica))


def bind(plan: Plan, engine: serve.Deployment = Engine) -> serve.Application:
    """The application of a plan, with its limits set. Raises KeysError."""
    settings = plan.config.serve
    keys = load_keys(settings.keys_file)
    # A single replica of the ingress keeps the book itself.
    several = settings.ingress_replicas > 1 or settings.ingress_autoscale is not None
    ledger = Ledger.bind(longest_s(settings.request_timeout_s), settings.idempotency) if several else None
    waiting = settings.replicas * settings.max_ongoing_requests + settings.max_queued_requests
    drain = settings.request_timeout_s + 2 * GRACE_SECONDS
    backpressure = BackpressureConfig(status_code=429, retry_after_s=2)
    bound = engine.options(
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=backpressure,
        graceful_shutdown_timeout_s=drain,
        health_check_period_s=HEALTH_SECONDS,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    ).bind(plan)
    return Ingress.options(
        num_replicas=settings.ingress_replicas,
        # All that the engine takes and lets wait is here too, and the page and the probes besides.
        max_ongoing_requests=waiting + 64,
        max_queued_requests=waiting + 64,
        backpressure_config=backpressure,
        graceful_shutdown_timeout_s=drain,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
    ).bind(bound, plan, bool(os.environ.get(settings.token_env)), keys, ledger)
