"""The Serve application: its typed builder, and a local server for the command line.

Run as: serve run steper_ray.serving.app:build config=jobs/configs/miniature.yaml model=runs/demo/models/steper
The same arguments go under `args:` in a Serve config file. Set the token's variable (serve.token_env) in the
environment of the Ray nodes; without it only clients of the server's own machine are served.
"""
# No `from __future__ import annotations`: Serve reads the annotation of `build` and takes text for no model.

import asyncio
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import ray
from ray import serve

from steper_ray.cluster import check_open_ray
from steper_ray.config import Config, EngineConfig
from steper_ray.config.base import FilePath
from steper_ray.core.errors import EngineSetupError, SteperError
from steper_ray.serving.access import is_loopback
from steper_ray.serving.args import ConfigArgs
from steper_ray.serving.deployments import bind
from steper_ray.serving.plan import Plan, make_plan

APP_NAME = "steper"


class ServeArgs(ConfigArgs):
    """Arguments of the builder."""

    run_dir: FilePath | None = None
    index: Path | None = None
    """retrieval.index_dir."""

    def named(self) -> dict[str, Any]:
        return super().named() | {"run_dir": self.run_dir, "retrieval.index_dir": self.index}


def build(args: ServeArgs) -> serve.Application:
    """The application; builds the corpus' index if it is not there. Raises SteperError."""
    return bind(make_plan(args.resolve()))


def run(config: Config) -> None:
    """Serves the config's engine on serve.host and serve.port until Ctrl-C or SIGTERM. Raises SteperError.

    Starts a local Ray, or joins the one that RAY_ADDRESS names.
    """
    plan = make_plan(config)
    settings = config.serve
    for line in warnings_of(plan):
        print(line, file=sys.stderr, flush=True)
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        check_open_ray()
        _check_port(settings.host, settings.port)
    ray.init(address=address, include_dashboard=False if address == "local" else None, log_to_driver=False)
    # As a container is stopped: the same orderly end as Ctrl-C, in place of Ray's stack trace.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        try:
            # A Serve that is there already may listen elsewhere.
            local = address == "local" and is_loopback(settings.host)
            serve.run(bind(plan, local=local), name=APP_NAME)
        except RuntimeError as error:
            raise SteperError(f"the service did not start: {error}") from error
        print(_greeting(config), flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("stopping: requests under way are finished first", flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


def warnings_of(plan: Plan) -> list[str]:
    """One line for each endpoint that answers no request until a setting changes. No error: it may come up later."""
    remote = {
        (one.engine.url, one.engine.model): one.engine for one in plan.engines if one.engine.kind == "openai"
    }
    found = [asyncio.run(_setup_error(engine)) for engine in remote.values()]
    return [f"warning: questions are answered with 503 for now: {error}" for error in found if error]


async def _setup_error(engine: EngineConfig) -> EngineSetupError | None:
    from steper_ray.generation import open_generator

    generator = open_generator(engine.model_copy(update={"tokenizer": None}))  # the replicas load it
    try:
        await generator.check()
    except EngineSetupError as error:
        return error
    finally:
        await generator.close()
    return None


def _greeting(config: Config) -> str:
    settings = config.serve
    shown = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    lines = [f"steper_ray serves {config.engine.model} at http://{shown}:{settings.port}  (Ctrl-C ends it)"]
    if not os.environ.get(settings.token_env):
        lines.append(f"only to clients of this machine: {settings.token_env} is not set")
    return "\n".join(lines)


def _check_port(host: str, port: int) -> None:
    """Serve says of a port that is taken only that its proxy died."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SteperError(
                f"serve.host and serve.port: cannot listen on {host}:{port}: {error}"
            ) from error
