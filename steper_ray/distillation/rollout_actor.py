"""One engine's share of the build: shards in, committed shards out. Lives in a Ray actor and knows no Ray.

An actor commits its shards itself: run_dir must be a folder that all nodes see. A shard that is committed is
never made again, neither by a retry nor by a later run.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

import pyarrow as pa

from steper_ray.config import Config, EngineConfig
from steper_ray.distillation.annotation import AnnotationTeacher
from steper_ray.distillation.engine_log import EngineLog
from steper_ray.distillation.model_verify import ModelVerifier, open_verifiers
from steper_ray.distillation.progress import Work
from steper_ray.distillation.scores import ScoreStore
from steper_ray.distillation.shards import Shard, ShardStore
from steper_ray.errors import EngineDeadError, SteperError
from steper_ray.generation.base import Generator
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval.index import open_index
from steper_ray.schema import QUESTION_SCHEMA, Question, StepScore, Trajectory, question_from_row, to_row

T = TypeVar("T")

_CLOSE_SECONDS = 30.0
_ROW_SCHEMA = pa.schema([("shard", pa.string()), ("questions", pa.list_(pa.struct(list(QUESTION_SCHEMA))))])
_RESULT_SCHEMA = pa.schema(
    [
        ("work", pa.struct([(count.name, pa.int64()) for count in fields(Work)])),
        ("kind", pa.string()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Job:
    """What every actor needs to know. Paths are absolute: actors work in folders of their own."""

    config: Config
    source: str
    index: Path
    corpus: str
    shards: Path
    identity: str
    log: EngineLog
    # Made once, by the driver: an actor's config has other paths, and so would name other folders.
    scores: dict[str, ScoreStore] = field(default_factory=dict)


def shard_row(shard: Shard) -> pa.Table:
    """What an actor is given: one shard, as one row."""
    row = {"shard": shard.id, "questions": [to_row(question) for question in shard.questions]}
    return pa.Table.from_pylist([row], schema=_ROW_SCHEMA)


class _Teacher(Protocol):
    async def run(self, question: Question) -> Trajectory: ...


@dataclass(frozen=True, slots=True)
class _Room:
    """What an actor works with: a teacher a sample, and the verifiers that ask a model."""

    teachers: Sequence[_Teacher]
    verifiers: dict[str, ModelVerifier]


class RolloutActor:
    """Lives in one Ray actor: the engine, the retriever, and the slots that all of its shards share."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._store = ShardStore(job.shards, job.identity)
        self._scores = job.scores
        self._slots = asyncio.Semaphore(job.config.build.in_flight)
        self._opening = asyncio.Lock()
        self._room: _Room | None = None
        self._unopened: SteperError | None = None
        self._engines: list[Generator] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Makes and commits one shard. An error that a person must mend comes back as a row."""
        (row,) = batch.to_pylist()
        shard = Shard(row["shard"], tuple(question_from_row(q) for q in row["questions"]))
        kind = error = None
        work = Work(len(shard.questions))
        try:
            work = await self._make(shard)
        except SteperError as failed:
            kind, error = type(failed).__name__, str(failed)
        return pa.Table.from_pylist(
            [{"work": asdict(work), "kind": kind, "error": error}], schema=_RESULT_SCHEMA
        )

    async def _make(self, shard: Shard) -> Work:
        """What is missing of the shard: an earlier run, or this actor before it died, may have committed some."""
        work = Work(len(shard.questions))
        if self._store.manifest(shard.id) is None:
            teachers = (await self._opened()).teachers
            trajectories = await self._all(
                [partial(t.run, question) for question in shard.questions for t in teachers]
            )
            await asyncio.to_thread(self._store.commit, shard, trajectories)
            work = Work.of(len(shard.questions), trajectories)
        for name, store in self._scores.items():
            if not store.has(shard.id):
                verifier = (await self._opened()).verifiers[name]
                trajectories = await asyncio.to_thread(self._store.read, shard.id)
                found = await self._all([partial(verifier.scores, t) for t in trajectories])
                scores = [
                    StepScore(trajectory.id, step.index, name, score)
                    for trajectory, of_steps in zip(trajectories, found, strict=True)
                    for step, score in zip(trajectory.steps, of_steps, strict=True)
                ]
                await asyncio.to_thread(store.commit, shard.id, scores)
        return work

    async def _opened(self) -> _Room:
        """Opened here and not in __init__: an error is then typed, not the text of an actor that never was.

        What cannot be opened is not tried again for the next shard: that would count as engines that died.
        """
        async with self._opening:
            if self._unopened is not None:
                raise self._unopened
            if self._room is None:
                try:
                    self._room = self._open()
                except SteperError as error:
                    self._unopened = error
                    raise
            return self._room

    async def _all(self, calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """The results of the calls, each of which takes a slot."""

        async def one(call: Callable[[], Awaitable[T]]) -> T:
            async with self._slots:
                try:
                    return await call()
                except EngineDeadError as error:
                    self._die(error)

        return await asyncio.gather(*(one(call) for call in calls))

    def _open(self) -> _Room:
        config, self._loop = self._job.config, asyncio.get_running_loop()
        self._job.log.started()
        retriever = open_index(self._job.index, config.retrieval, self._job.corpus)
        generator = judge = None
        if config.build.teacher == "engine":
            generator = self._engine(config.engine)
        if "judge" in self._scores and config.build.verify.judge_engine is not None:
            judge = self._engine(config.build.verify.judge_engine)
        verifiers = open_verifiers(self._scores, config, retriever, generator, judge)
        if generator is None:
            return _Room([AnnotationTeacher(retriever, config.reasoning)], verifiers)
        samples = range(config.build.samples)
        how = (retriever, generator, config.reasoning, config.sampling, self._job.source)
        return _Room([Reasoner(*how, sample) for sample in samples], verifiers)

    def _engine(self, config: EngineConfig) -> Generator:
        from steper_ray.generation import open_generator  # brings torch, which annotations do not need

        self._engines.append(open_generator(config))
        return self._engines[-1]

    def _die(self, error: EngineDeadError) -> NoReturn:
        """Ends the actor's process: Ray restarts it with a new engine and gives it its shards again.

        An exception would leave the dead engine in its actor, and a regular exit is not retried.
        """
        self._job.log.died(str(error))
        os._exit(1)

    def __del__(self) -> None:
        """Ray Data drops its callable when an actor ends; an engine left open would complain or linger."""
        for engine in self._engines:
            if self._loop is not None:
                asyncio.run_coroutine_threadsafe(engine.close(), self._loop).result(_CLOSE_SECONDS)
