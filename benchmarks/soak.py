"""The endpoint under load for long, while parts of it are killed and held up: no answer may be wrong, none lost.

Users ask the questions of made-up worlds over and over, a quarter of them as a stream; one in fifty leaves before his
answer. Meanwhile, every few seconds, an engine's replica or a shard's is killed (SIGKILL), or a shard is stopped for
longer than a search may take (SIGSTOP), in turn. A question that fails is asked again until it is answered.

    right     an answer equal to that of the undisturbed loop, chain and passages too
    degraded  an answer that says that it is the best so far
    failed    a typed error, by its code
    wrong     an answer that differs and does not say so
    untyped   anything else

    python benchmarks/soak.py --requests 20000 --json PATH
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

_PAUSE_S = 4.0
_FAULTS = ("kill engine", "kill shard", "stop shard")
_NAMES = {"engine": "ServeReplica:steper:Engine", "shard": "ServeReplica:steper:Retriever"}


class Faults:
    """Disturbs the replicas of the application, one after the other, until it is cancelled."""

    def __init__(self, every_s: float, rng: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self._every_s, self._rng = every_s, rng

    async def run(self) -> None:
        for fault in itertools.cycle(_FAULTS):
            await asyncio.sleep(self._every_s * self._rng.uniform(0.5, 1.5))
            action, what = fault.split()
            found = processes(_NAMES[what])
            if len(found) < 2:
                continue  # the last one's replacement is not there yet: two at once are no single fault
            victim = self._rng.choice(found)
            self.done[fault] += 1
            if action == "kill":
                victim.send_signal(signal.SIGKILL)
                continue
            victim.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(_PAUSE_S)
            finally:
                with contextlib.suppress(Exception):  # Serve may have given it up meanwhile
                    victim.send_signal(signal.SIGCONT)


def processes(name: str) -> list[Any]:
    """The replicas' processes by Ray's title of them."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or ())
        if title.startswith(f"ray::{name}"):
            found.append(process)
    return found


def memory() -> dict[str, float]:
    """MB that each part's largest process has for itself."""
    parts = {**_NAMES, "ingress": "ServeReplica:steper:Ingress", "proxy": "ProxyActor"}
    sizes: dict[str, float] = {}
    for part, name in parts.items():
        with contextlib.suppress(Exception):
            sizes[part] = max((p.memory_full_info().uss / 1e6 for p in processes(name)), default=0.0)
    return sizes


class Users:
    """Asks until every request has its answer, and counts what came."""

    def __init__(self, client: Any, wanted: dict[str, Any], rng: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self.answered = 0
        self._client, self._wanted, self._rng = client, wanted, rng

    async def user(self, requests: Iterator[str]) -> None:
        for question in requests:
            while not await self._once(question):
                await asyncio.sleep(0.5)
            self.answered += 1

    async def _once(self, question: str) -> bool:
        """Whether it was answered whole."""
        from steper_ray.client import Answer, ReasonerError

        leaves, streams = self._rng.random() < 0.02, self._rng.random() < 0.25
        asking = asyncio.create_task(self._streamed(question) if streams else self._client.reason(question))
        try:
            if leaves:
                await asyncio.wait({asking}, timeout=self._rng.uniform(0, 1))
                asking.cancel()
            answer = await asking
        except asyncio.CancelledError:
            if not leaves:
                raise
            self.counts["left"] += 1
            return False
        except ReasonerError as error:
            self.counts[f"failed: {error.code or type(error).__name__}"] += 1
            return False
        except Exception as error:
            self.counts[f"untyped: {type(error).__name__}"] += 1
            return False
        assert isinstance(answer, Answer)
        if answer.degraded:
            self.counts[f"degraded: {answer.stop_reason}"] += 1
            return False
        right = told(answer) == self._wanted[question]
        self.counts["right" if right else "wrong"] += 1
        return right

    async def _streamed(self, question: str) -> Any:
        async with aclosing(self._client.stream(question)) as events:
            async for event in events:
                last = event
        return last


def told(answer: Any) -> Any:
    return answer.text, answer.chain, [[p.id for p in step.passages] for step in answer.steps]


async def soak(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import ray
    from ray import serve

    from steper_ray.client import Client
    from steper_ray.config import Config
    from steper_ray.corpora import open_corpus
    from steper_ray.generation import open_generator
    from steper_ray.reasoning import Reasoner
    from steper_ray.retrieval import open_index
    from steper_ray.serving.deployments import bind
    from steper_ray.serving.plan import make_plan

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = Config.model_validate(
        {
            "run_dir": folder,
            "corpus": {"miniature": {"worlds": 16, "seed": 80, "split": "test"}},
            "engine": {"model": "miniature:teacher"},
            "reasoning": {"max_steps": args.steps},
            "serve": {
                "replicas": 2,
                "num_cpus": 0.5,
                "retriever": {"shards": 2, "replicas": 2, "num_cpus": 0.1},
                "retrieval_timeout_s": 2,
                "request_timeout_s": 120,
            },
        }
    )
    plan = make_plan(config)
    questions = list(open_corpus(config.corpus).questions())
    generator = open_generator(config.engine)
    reasoner = Reasoner(
        open_index(plan.index, config.retrieval), generator, config.reasoning, config.sampling
    )
    trajectories = await asyncio.gather(*map(reasoner.run, questions))
    await generator.close()
    wanted = {
        t.question.text: (t.answer, t.chain, [[h.passage.id for h in step.hits] for step in t.steps])
        for t in trajectories
    }
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(bind(plan), name="steper")
    requests = args.requests
    rng = random.Random(args.seed)
    faults = Faults(args.every, rng)
    sizes: list[dict[str, float]] = []
    async with Client(f"http://127.0.0.1:{port}", timeout_s=180, retries=0) as client:
        crowd = Users(client, wanted, rng)
        rest = iter(itertools.islice(itertools.cycle(list(wanted)), requests))
        started = time.monotonic()
        disturbing = asyncio.create_task(faults.run())
        watching = asyncio.create_task(_watch(crowd, requests, sizes, started))
        async with asyncio.TaskGroup() as group:
            for _ in range(args.users):
                group.create_task(crowd.user(rest))
        for task in (disturbing, watching):
            task.cancel()
        seconds = time.monotonic() - started
        sizes.append(memory())
    running = await _running()
    serve.shutdown()
    ray.shutdown()
    return {
        "requests": requests,
        "answered": crowd.answered,
        "lost": requests - crowd.answered,
        "wrong": crowd.counts["wrong"],
        "untyped": sum(n for name, n in crowd.counts.items() if name.startswith("untyped")),
        "counts": dict(crowd.counts.most_common()),
        "faults": dict(faults.done),
        "generations_left_running": running,
        "seconds": seconds,
        "users": args.users,
        "max_steps": args.steps,
        "memory_mb": sizes,
    }


async def _running() -> int:
    """Generations that still run in any engine that a handle reaches, when all users are gone."""
    from ray import serve

    handle = serve.get_deployment_handle("Engine", app_name="steper")
    for _ in range(60):
        running = max([(await handle.stats.remote()).running for _ in range(8)])
        if not running:
            return 0
        await asyncio.sleep(0.5)
    return running


async def _watch(crowd: Users, requests: int, sizes: list[dict[str, float]], started: float) -> None:
    for number in itertools.count():
        await asyncio.sleep(15)
        speed = crowd.answered / (time.monotonic() - started)
        print(f"{crowd.answered} of {requests}, {speed:.1f}/s: {dict(crowd.counts)}", flush=True)
        if number % 4 == 1:
            sizes.append({"answered": crowd.answered} | await asyncio.to_thread(memory))


def _failures(figures: dict[str, Any]) -> Sequence[str]:
    return [name for name in ("lost", "wrong", "untyped", "generations_left_running") if figures[name]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument(
        "--steps", type=int, default=5, help="of a question at most (fewer: more requests a second)"
    )
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two faults, on average")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(soak(Path(folder), args))
    text = json.dumps(figures, indent=1) + "\n"
    if args.json is not None:
        args.json.write_text(text, encoding="utf-8")
    print(text)
    if failures := _failures(figures):
        raise SystemExit(f"not zero: {', '.join(failures)}")


if __name__ == "__main__":
    main()
