"""The Serve deployments, each scaled on its own: Ingress (HTTP), an Engine for each model (reasoner and generator), and
where the config asks for it a Retriever for each shard of the index.

The queue of bounded length stands before an Engine, so that Ingress can say 429 in the form of all other errors.
A client that leaves cancels Ingress' call, which cancels the engine's, which aborts the generator's request.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.handle import DeploymentHandle

from steper_ray.config import AutoscaleConfig
from steper_ray.core.errors import EngineDeadError, SteperError
from steper_ray.retrieval import open_cached
from steper_ray.schema import Hit
from steper_ray.serving.asking import GRACE_SECONDS
from steper_ray.serving.engine import ReasonEngine
from steper_ray.serving.handles import EngineClient, ShardedRetriever, Students
from steper_ray.serving.metrics import EngineMetrics, RequestMetrics, SearchMetrics
from steper_ray.serving.plan import EnginePlan, Plan
from steper_ray.serving.traces import Traces
from steper_ray.serving.web import WebSettings, make_app

logger = logging.getLogger(__name__)

HEALTH_SECONDS = 2.0
INGRESS_CPUS = 0.25
#: No limit: questions wait before the engines, unfinished bodies are bounded by `Bodies`, and health checks always
#: have room.
_INGRESS_REQUESTS = 1 << 16
#: In an update a new ingress is there before an old one goes: its place is small.
INGRESS_SURGE_PERCENT = 100
#: Ray's own switch: with it HAProxy stands before the ingress in place of Serve's proxy.
HAPROXY_ENV = "RAY_SERVE_ENABLE_HA_PROXY"


class CountedSearches:
    """The index, or one shard of it, in this process (`AsyncRetriever`)."""

    def __init__(self, plan: Plan, shard: int = 0, shards: int = 1) -> None:
        self._cached = open_cached(plan.index, plan.config.retrieval, plan.corpus, (shard, shards))
        self._observe = SearchMetrics()

    async def find(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        found = await asyncio.to_thread(self._cached.search, queries, k)
        self._observe(*self._cached.take_counts())
        return found


class RetrieverReplica:
    """One shard of the index."""

    def __init__(self, plan: Plan, shard: int, shards: int) -> None:
        self._searches = CountedSearches(plan, shard, shards)

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return await self._searches.find(queries, k)


class EngineReplica(ReasonEngine):
    """One engine, opened from its plan. `shards`: the deployed retriever, or none to search in this process."""

    def __init__(self, plan: Plan, engine: EnginePlan, shards: Sequence[DeploymentHandle[Any]] = ()) -> None:
        from steper_ray.generation import (  # torch, which the ingress does not need
            open_generator,
            open_students,
        )

        config = plan.config
        retriever = ShardedRetriever(shards) if shards else CountedSearches(plan)
        students = open_students(engine.engine, engine.students)
        escalate = config.reasoning.escalate
        larger = None if escalate is None else open_generator(escalate.engine)
        super().__init__(
            retriever,
            students,
            config.reasoning,
            config.sampling,
            config.serve,
            EngineMetrics(),
            larger,
            end_replica,
        )

    async def __del__(self) -> None:  # Serve awaits it before the replica ends
        await self.close()


def end_replica(error: EngineDeadError) -> None:
    """Ends this replica, whose generator died, with the generator's processes: others are asked its questions at once.

    Health checks would find out only after seconds, in which its empty queue draws most questions.
    """
    logger.critical("this replica ends: %s", error)
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(1)


class IngressReplica:
    """The HTTP app over the handles of the engines, by their names. `guarded`: a token was set where the application
    was built. `local`: its address is known to be one of the loopback, which only this machine reaches."""

    def __init__(
        self,
        engines: Mapping[str, DeploymentHandle[Any]],
        plan: Plan,
        guarded: bool,
        local: bool = False,
    ) -> None:
        serve_config = plan.config.serve
        token = os.environ.get(serve_config.token_env) or None
        if guarded and token is None:
            raise SteperError(
                f"{serve_config.token_env} is set where the service is started, but not on this node: set it in the "
                "environment of the Ray nodes, before `ray start`"
            )
        if os.environ.get(HAPROXY_ENV) == "1" and not (local or token):
            # To the app all clients would be HAProxy, on this machine.
            raise SteperError(
                f"{HAPROXY_ENV} is set, and no token: HAProxy hides who asks, so set {serve_config.token_env} "
                "in the environment of the Ray nodes"
            )
        clients = {name: EngineClient(handle) for name, handle in engines.items()}
        self._engine = Students(
            {student: clients[engine.name] for engine in plan.engines for student in engine.students}
        )
        self._settings = WebSettings(
            plan.limits,
            plan.about,
            plan.examples,
            serve_config.request_timeout_s,
            token,
            plan.config.sampling,
            observers=[RequestMetrics(), *([Traces(url)] if (url := serve_config.traces_url) else [])],
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._engine, self._settings)


Engine: serve.Deployment = serve.deployment(name="Engine")(EngineReplica)
Shard: serve.Deployment = serve.deployment(name="Retriever")(RetrieverReplica)
Ingress: serve.Deployment = serve.deployment(name="Ingress")(serve.ingress()(IngressReplica))


def bind(plan: Plan, engine: serve.Deployment = Engine, local: bool = False) -> serve.Application:
    """The application of a plan, with its limits set; `engine` may take the place of its engines.

    `local`: see IngressReplica.
    """
    settings = plan.config.serve
    shards = _bind_shards(plan)
    engines = {one.name: _bind_engine(plan, one, engine, shards) for one in plan.engines}
    return Ingress.options(
        max_ongoing_requests=_INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=_drain(plan),
        max_surge_percent=INGRESS_SURGE_PERCENT,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        **_replicas(settings.ingress_replicas, settings.ingress_autoscale),
    ).bind(engines, plan, bool(os.environ.get(settings.token_env)), local)


_BACKPRESSURE = BackpressureConfig(status_code=429, retry_after_s=2)


def _bind_engine(
    plan: Plan, one: EnginePlan, engine: serve.Deployment, shards: Sequence[serve.Application]
) -> serve.Application:
    settings = plan.config.serve
    return engine.options(
        name=one.name,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=_BACKPRESSURE,
        graceful_shutdown_timeout_s=_drain(plan),
        health_check_period_s=HEALTH_SECONDS,
        max_surge_percent=settings.max_surge_percent,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        **_replicas(one.replicas, settings.autoscale),
    ).bind(plan, one, shards)


def _bind_shards(plan: Plan) -> list[serve.Application]:
    settings = plan.config.serve.retriever
    if settings is None:
        return []
    return [
        Shard.options(
            name=f"Retriever-{shard + 1}" if settings.shards > 1 else "Retriever",
            max_ongoing_requests=settings.max_ongoing_requests,
            graceful_shutdown_timeout_s=_drain(plan),
            health_check_period_s=HEALTH_SECONDS,
            max_surge_percent=settings.max_surge_percent,
            ray_actor_options={"num_cpus": settings.num_cpus},
            **_replicas(settings.replicas, settings.autoscale),
        ).bind(plan, shard, settings.shards)
        for shard in range(settings.shards)
    ]


def _replicas(fewest: int, autoscale: AutoscaleConfig | None) -> dict[str, Any]:
    """Options of a deployment that has `fewest` replicas, or grows from there."""
    if autoscale is None:
        return {"num_replicas": fewest}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=fewest,
            max_replicas=_most(fewest, autoscale),
            target_ongoing_requests=autoscale.target_ongoing_requests,
            upscale_delay_s=autoscale.upscale_delay_s,
            downscale_delay_s=autoscale.downscale_delay_s,
        )
    }


def _most(fewest: int, autoscale: AutoscaleConfig | None) -> int:
    return fewest if autoscale is None else max(fewest, autoscale.max_replicas)


def _drain(plan: Plan) -> float:
    """Longer than the longest request: a replica that is replaced ends what it has begun."""
    return plan.config.serve.request_timeout_s + 2 * GRACE_SECONDS
