"""Applications on a real Ray Serve, for the tests of the endpoint and of its page."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import ray.cloudpickle
import scripted
from ray import serve

from steper_ray.config import Config, load_config
from steper_ray.schema import Passage
from steper_ray.serving.deployments import bind
from steper_ray.serving.engine import ReasonEngine
from steper_ray.serving.plan import make_plan

PASSAGES = [Passage("1", "Alba", "Alba was shot by Bo."), Passage("2", "Bo", "Bo was born in Cem.")]
FIRST = "The director of Alba is Bo."
TOKEN = "a-token-for-tests"

# Replicas are other processes, which do not see the folder of the tests.
ray.cloudpickle.register_pickle_by_value(scripted)


class HangingEngine(ReasonEngine):
    """Answers the first step of every question, and writes on at its second until it is aborted."""

    def __init__(self, plan):
        generator = scripted.ScriptedGenerator(_Endless(), hang_at=None)
        generator._hang_at = _SecondOfEach()
        retriever = scripted.KeywordRetriever(PASSAGES)
        config = plan.config
        super().__init__(retriever, generator, config.reasoning, config.sampling, config.serve, "hanging")


class _Endless(list):
    def __getitem__(self, number):
        return f"{FIRST} And" if number % 2 == 0 else "Bo was born in"


class _SecondOfEach:
    def __eq__(self, number):
        return number % 2 == 1


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


def deploy(config: Config, name: str = "steper", **kwargs):
    """The application at the root, or under its name; returns the handle of its engine."""
    serve.run(
        bind(make_plan(config), **kwargs), name=name, route_prefix="/" if name == "steper" else f"/{name}"
    )
    return serve.get_deployment_handle("Engine", app_name=name)


def deploy_hanging(config: Config, name: str = "hanging"):
    return deploy(config, name, engine=serve.deployment(name="Engine")(HangingEngine))


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
