"""What a question costs besides its engine, through Serve's own proxy and through HAProxy (Ray's switch for it).

The endpoint answers from a stub that has the answer ready, one question after another: what is left is the way there
and back. `handle` is the stub by its Serve handle; `least` the smallest Serve application that asks it, whose answer is
short; `endpoint` ours, with checks, grounding and the whole answer. Medians in milliseconds, each proxy in processes of
its own, in turn.

    python benchmarks/proxies.py --json PATH      # five minutes
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import ray
from fastapi import FastAPI
from planted import right_ones
from ray import serve

from steper_ray.config import Config
from steper_ray.schema import Trajectory
from steper_ray.serving.deployments import bind
from steper_ray.serving.plan import make_plan

PORT = 18_123
URL = f"http://127.0.0.1:{PORT}"
_WARM = 20

_app = FastAPI()


def stub(ready: Trajectory) -> serve.Deployment:
    """What stands in the engine's place."""

    class Stub:
        def __init__(self, plan: Any, engine: Any, shards: Any = ()) -> None:
            pass

        async def answer(self, ask: Any) -> Trajectory:
            return ready

        async def nothing(self) -> int:
            return 0

    return serve.deployment(name="Engine")(Stub)


@serve.deployment(ray_actor_options={"num_cpus": 0.25})
@serve.ingress(_app)
class Least:
    def __init__(self) -> None:
        self._engine = serve.get_deployment_handle("Engine", app_name="steper")

    @_app.post("/")
    async def ask(self) -> int:
        return int(await self._engine.nothing.remote())


async def measure(questions: int) -> dict[str, float]:
    handle = serve.get_deployment_handle("Engine", app_name="steper")
    async with httpx.AsyncClient(timeout=60) as http:

        async def post(path: str, body: Any = None) -> None:
            (await http.post(URL + path, json=body)).raise_for_status()

        async def call() -> None:
            await handle.answer.remote(None)

        ways: dict[str, Callable[[], Awaitable[None]]] = {
            "handle": call,
            "least": lambda: post("/least/"),
            "endpoint": lambda: post("/v1/reason", {"question": "Who is it?"}),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(_WARM + questions):
            for name, way in ways.items():
                started = time.perf_counter()
                await way()
                if number >= _WARM:
                    times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(of) for name, of in times.items()}


def child(questions: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {"run_dir": folder, "corpus": {"miniature": {"worlds": 2, "seed": 79, "split": "test"}}}
        )
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        longest = max(right_ones(config), key=lambda t: len(t.steps))
        serve.run(bind(make_plan(config), engine=stub(longest), local=True), name="steper")
        serve.run(Least.bind(), name="least", route_prefix="/least")
        print(json.dumps(asyncio.run(measure(questions))), flush=True)
        serve.shutdown()
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--questions", type=int, default=150, help="of each way and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.questions)
        return
    rounds: dict[str, list[dict[str, float]]] = {"serve": [], "haproxy": []}
    for _ in range(args.rounds):
        for proxy, found in rounds.items():
            environ = {
                "RAY_SERVE_ENABLE_HA_PROXY": "1" if proxy == "haproxy" else "0",
                # Else a replica waits half a minute before it ends.
                "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
            }
            told = subprocess.run(
                [sys.executable, __file__, "--child", "--questions", str(args.questions)],
                env=os.environ | environ,
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            ).stdout
            # Serve and Ray may print lines of their own.
            found.append(json.loads(next(line for line in told.splitlines() if line.startswith("{"))))
            print(proxy, ", ".join(f"{way} {ms:.1f} ms" for way, ms in found[-1].items()), flush=True)
    pairs = zip(rounds["serve"], rounds["haproxy"], strict=True)
    ratio = statistics.median(own["endpoint"] / haproxy["endpoint"] for own, haproxy in pairs)
    print(f"endpoint: {ratio:.2f} times as long through Serve's own proxy as through HAProxy")
    if args.json is not None:
        args.json.write_text(json.dumps({"serve_over_haproxy": ratio, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
