"""One engine's share of the build: shards in, committed shards out. Lives in a Ray actor and knows no Ray.

An actor commits its shards itself: run_dir must be a folder that all nodes see. A shard that is committed is
never made again, neither by a retry nor by a later run.

A question may kill the engine, and with it the actor's process, which Ray then starts again and gives its shards
once more. What was in flight at two deaths is then asked alone, and a question that goes on killing ends as an error
of its own row: see suspects.py for what is given up and turns.py for who is asked when.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

import pyarrow as pa

from steper_ray.config import Config, EngineConfig
from steper_ray.distillation.annotation import AnnotationTeacher
from steper_ray.distillation.engine_log import EngineLog, EngineNotes
from steper_ray.distillation.model_verify import ModelVerifier, open_verifiers
from steper_ray.distillation.progress import Work
from steper_ray.distillation.scores import ScoreStore
from steper_ray.distillation.shards import Shard, ShardStore
from steper_ray.distillation.suspects import GIVE_UP, History
from steper_ray.distillation.teachers import Teacher, ask, turns
from steper_ray.distillation.turns import Turns
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
        ("shard", pa.string()),
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
    first_sample: int = 0


def shard_row(shard: Shard) -> pa.Table:
    """What an actor is given: one shard, as one row."""
    row = {"shard": shard.id, "questions": [to_row(question) for question in shard.questions]}
    return pa.Table.from_pylist([row], schema=_ROW_SCHEMA)


@dataclass(frozen=True, slots=True)
class _Ask(Generic[T]):
    """Something to ask the engine. `key` names it in the engines' log: what is of one question is given up together."""

    key: str
    run: Callable[[], Awaitable[T]]
    give_up: Callable[[str], T]
    """What stands for the result if engines die of it, told why."""
    count: Callable[[T], Sequence[int]] = lambda result: ()
    """What the result came to, for whoever watches."""


@dataclass(frozen=True, slots=True)
class _Room:
    """What an actor works with: the teacher's samples (see `turns`), and the verifiers that ask a model."""

    groups: Sequence[Sequence[Teacher]]
    verifiers: dict[str, ModelVerifier]


class RolloutActor:
    """Lives in one Ray actor: the engine, the retriever, and the slots that all of its shards share."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._store = ShardStore(job.shards, job.identity)
        self._scores = job.scores
        self._opening = asyncio.Lock()
        self._room: _Room | None = None
        self._unopened: SteperError | None = None
        self._engines: list[Generator] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._notes: EngineNotes
        self._history: History
        self._turns: Turns

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
            [{"shard": shard.id, "work": asdict(work), "kind": kind, "error": error}], schema=_RESULT_SCHEMA
        )

    async def _make(self, shard: Shard) -> Work:
        """What is missing of the shard: an earlier run, or this actor before it died, may have committed some."""
        work = Work(len(shard.questions))
        if await asyncio.to_thread(self._store.manifest, shard.id) is None:
            trajectories = await self._trajectories(shard)
            await asyncio.to_thread(self._commit, shard, trajectories)
            work = Work.of(len(shard.questions), trajectories, self._job.config.build.match)
        for name, store in self._scores.items():
            if not store.has(shard.id):
                scores = await self._score(shard, name)
                await asyncio.to_thread(store.commit, shard.id, scores)
        return work

    async def _trajectories(self, shard: Shard) -> list[Trajectory]:
        groups, build = (await self._opened()).groups, self._job.config.build

        def count(trajectories: Sequence[Trajectory]) -> tuple[int, ...]:
            return astuple(Work.of(1, trajectories, build.match))[1:]

        asks = [
            _Ask(
                question.id, partial(ask, question, group, build), partial(_given_up, question, group), count
            )
            for question in shard.questions
            for group in groups
        ]
        found = await self._all(shard, asks)
        return list(chain.from_iterable(found))

    async def _score(self, shard: Shard, name: str) -> list[StepScore]:
        verifier = (await self._opened()).verifiers[name]
        trajectories = await asyncio.to_thread(self._store.read, shard.id)
        asks = [
            _Ask(f"{name} {t.question.id}", partial(verifier.scores, t), partial(_no_scores, t))
            for t in trajectories
        ]
        return [
            StepScore(trajectory.id, step.index, name, score)
            for trajectory, of_steps in zip(trajectories, await self._all(shard, asks), strict=True)
            for step, score in zip(trajectory.steps, of_steps, strict=True)
        ]

    def _commit(self, shard: Shard, trajectories: Sequence[Trajectory]) -> None:
        """Scores that are left of other trajectories go first: a kill between the two leaves none that lie."""
        for store in self._scores.values():
            store.drop(shard.id)
        self._store.commit(shard, trajectories)

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

    async def _all(self, shard: Shard, asks: Sequence[_Ask[T]]) -> list[T]:
        """The results, each asked for in a turn of its own, and noted while it is in flight."""

        async def one(asked: _Ask[T]) -> T:
            deaths = self._history.given_up(asked.key)
            if deaths is not None:
                return asked.give_up(
                    f"engines died {deaths} times while this was asked, {GIVE_UP} of them with nothing else in "
                    f"flight; to ask it again, delete shard-{shard.id}.parquet and build again"
                )
            async with self._turns.turn(self._history.killed_alone(asked.key)) as alone:
                self._notes.asked(asked.key, alone)
                try:
                    result = await asked.run()
                except EngineDeadError as error:
                    self._die(error)
                self._notes.done(asked.key, asked.count(result))
                return result

        return await asyncio.gather(*(one(ask) for ask in asks))

    def _open(self) -> _Room:
        config, self._loop = self._job.config, asyncio.get_running_loop()
        self._notes, self._history = self._job.log.started()
        self._turns = Turns(config.build.in_flight, self._history.witnesses)
        retriever = open_index(self._job.index, config.retrieval, self._job.corpus)
        generator = judge = None
        if config.build.teacher == "engine":
            generator = self._engine(config.engine)
        if "judge" in self._scores and config.build.verify.judge_engine is not None:
            judge = self._engine(config.build.verify.judge_engine)
        verifiers = open_verifiers(self._scores, config, retriever, generator, judge)
        if generator is None:
            return _Room([[AnnotationTeacher(retriever, config.reasoning)]], verifiers)
        first = self._job.first_sample
        how = (retriever, generator, config.reasoning, config.sampling, self._job.source)
        samples = [Reasoner(*how, sample) for sample in range(first, first + config.build.samples)]
        return _Room(turns(samples, config.build), verifiers)

    def _engine(self, config: EngineConfig) -> Generator:
        from steper_ray.generation import open_generator  # brings torch, which annotations do not need

        self._engines.append(open_generator(config))
        return self._engines[-1]

    def _die(self, error: EngineDeadError) -> NoReturn:
        """Ends the actor's process: Ray restarts it with a new engine and gives it its shards again.

        An exception would leave the dead engine in its actor, and a regular exit is not retried.
        """
        self._notes.died(str(error))
        os._exit(1)

    def __del__(self) -> None:
        """Ray Data drops its callable when an actor ends; an engine left open would complain or linger."""
        for engine in self._engines:
            if self._loop is not None:
                asyncio.run_coroutine_threadsafe(engine.close(), self._loop).result(_CLOSE_SECONDS)


def _given_up(question: Question, group: Sequence[Teacher], why: str) -> list[Trajectory]:
    return [group[0].give_up(question, why)]


def _no_scores(trajectory: Trajectory, why: str) -> list[float | None]:
    """A step that the model fails on has no score."""
    return [None] * len(trajectory.steps)
