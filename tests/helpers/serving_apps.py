"""Applications on a real Ray Serve, for the tests of the endpoint and of its page."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import ray
import ray.cloudpickle
import scripted
from ray import serve

from steper_ray.config import Config
from steper_ray.config.file import load_config
from steper_ray.core.errors import EngineDeadError
from steper_ray.generation.base import Chunk
from steper_ray.schema import Passage
from steper_ray.serving.deployments import RetrieverReplica, bind, end_replica
from steper_ray.serving.engine import ReasonEngine
from steper_ray.serving.handles import ShardedRetriever
from steper_ray.serving.plan import make_plan

PASSAGES = [Passage("1", "Alba", "Alba was shot by Bo."), Passage("2", "Bo", "Bo was born in Cem.")]
FIRST = "The director of Alba is Bo."
REST = "Bo was born in"

# Replicas are other processes, which do not see the folder of the tests.
ray.cloudpickle.register_pickle_by_value(scripted)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Endless:
    """A generator that ends its first sentence, and writes on at every later one until it is aborted."""

    tokenizer = None

    async def stream(self, prompt, sampling, stop=()):
        begun = FIRST in prompt.reply
        yield Chunk(REST if begun else f"{FIRST} And")
        if begun:
            await asyncio.Event().wait()
        yield Chunk("", finish_reason="stop")

    async def check(self):
        pass

    async def close(self):
        pass


class HangingEngine(ReasonEngine):
    """Answers the first step of every question, and hangs at its second."""

    def __init__(self, plan, engine, shards):
        retriever = scripted.KeywordRetriever(PASSAGES)
        config = plan.config
        students = dict.fromkeys(engine.students, Endless())
        super().__init__(retriever, students, config.reasoning, config.sampling, config.serve)


class DyingOnce(Endless):
    """Ends its second step too; the first time of all it dies in the midst of it, and `died` is made."""

    def __init__(self, died):
        self._died = died

    async def stream(self, prompt, sampling, stop=()):
        begun = FIRST in prompt.reply
        yield Chunk(REST if begun else FIRST)
        if begun:
            await asyncio.sleep(0.5)  # a real one's text is sent on while it writes
            if not self._died.exists():
                self._died.touch()
                raise EngineDeadError("out of memory")
            yield Chunk(" Cem. So the answer is: Cem.")
        yield Chunk("", finish_reason="stop")


class DyingEngine(ReasonEngine):
    """Its generator dies once, and the replica with it, as a real one's."""

    def __init__(self, plan, engine, shards):
        retriever = scripted.KeywordRetriever(PASSAGES)
        students = dict.fromkeys(engine.students, DyingOnce(plan.config.run_dir / "died"))
        config = plan.config
        super().__init__(
            retriever, students, config.reasoning, config.sampling, config.serve, died=end_replica
        )


class DyingShard(RetrieverReplica):
    """A shard whose replica dies under the first search of all; `died` is made then."""

    def __init__(self, plan, shard, shards, died):
        super().__init__(plan, shard, shards)
        self._died = died

    async def search(self, queries, k):
        if not self._died.exists():
            self._died.touch()
            os._exit(1)
        return await super().search(queries, k)


class Searcher:
    """What an engine has of its shards."""

    def __init__(self, *shards):
        self._retriever = ShardedRetriever(shards)

    async def find(self, queries, k):
        return await self._retriever.find(queries, k)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def small_config(run_dir: Path, *overrides: str) -> Config:
    """The miniature teacher over two made-up worlds."""
    world = [
        "corpus.miniature.split=test",
        "corpus.miniature.worlds=2",
        "corpus.miniature.questions_per_world=3",
    ]
    return load_config(None, [f"run_dir={run_dir}", "sampling.max_tokens=32", *world, *overrides])


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Serve's HTTP proxy on a free port; the base URL."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


def deploy(app: serve.Application, name: str = "steper"):
    """The application at the root, or under its name; returns the handle of its engine."""
    serve.run(app, name=name, route_prefix="/" if name == "steper" else f"/{name}")
    return serve.get_deployment_handle("Engine", app_name=name)


def kill_replica(app: str, deployment: str) -> None:
    """Kills one replica of a deployment, as a node that fails does."""
    prefix = f"SERVE_REPLICA::{app}#{deployment}#"
    actors = ray.util.list_named_actors(all_namespaces=True)
    name = next(actor["name"] for actor in actors if actor["name"].startswith(prefix))
    ray.kill(ray.get_actor(name, namespace="serve"))


def searching(plan, died: Path) -> serve.Application:
    """Two shards of the index, the second one dying once, behind what searches both."""
    shard, dying = (
        serve.deployment(name="Shard")(RetrieverReplica),
        serve.deployment(name="Dying")(DyingShard),
    )
    few = {"num_cpus": 0.1}
    return serve.deployment(name="Searcher", ray_actor_options=few)(Searcher).bind(
        shard.options(ray_actor_options=few).bind(plan, 0, 2),
        dying.options(ray_actor_options=few, health_check_period_s=1.0).bind(plan, 1, 2, died),
    )


def hanging(config: Config) -> serve.Application:
    return bind(make_plan(config), engine=serve.deployment(name="Engine")(HangingEngine))


def dying(config: Config) -> serve.Application:
    return bind(make_plan(config), engine=serve.deployment(name="Engine")(DyingEngine))
