"""Questions and passages -> step-wise examples, on Ray Data. The room's only module that knows Ray.

One row is one shard of questions. An actor holds an engine and a retriever, takes several shards at a time
and keeps `in_flight` trajectories going over all of them, so the engine never waits for the slowest question
of a shard. An actor commits its shards itself: run_dir must be a folder that all nodes see. A shard that is
committed is never made again, neither by a retry nor by a later run.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import pyarrow as pa
import ray

from steper_ray import errors
from steper_ray.config import Config, EngineConfig
from steper_ray.corpora import open_corpus
from steper_ray.distillation.annotation import AnnotationTeacher
from steper_ray.distillation.assemble import assemble
from steper_ray.distillation.engine_log import EngineLog
from steper_ray.distillation.identity import digest, run_identity
from steper_ray.distillation.model_verify import ModelVerifier, open_verifiers
from steper_ray.distillation.progress import Progress, Work
from steper_ray.distillation.report import BuildReport
from steper_ray.distillation.scores import ScoreStore, score_stores
from steper_ray.distillation.shards import Shard, ShardStore, cut
from steper_ray.errors import EngineDeadError, SteperError
from steper_ray.generation.base import Generator
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval.index import ensure_index, index_folder, open_index
from steper_ray.schema import QUESTION_SCHEMA, Question, StepScore, Trajectory, question_from_row, to_row

__all__ = ["BuildReport", "build_data"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Restarts an engine in one build: one death may be an accident, four are none. Ray alone would never stop.
MAX_RESTARTS = 3
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
class _Job:
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


def build_data(config: Config) -> BuildReport:
    """Builds, or goes on building, run_dir/data/: trajectories/, examples/, dropped.jsonl, manifest.json.

    Questions that fail are rows with their error; they are counted, and named in dropped.jsonl. Raises
    DataError (corpus, duplicate question ids), RetrievalError, ModelError, and EngineDeadError where engines
    died more than MAX_RESTARTS times each; what was committed stays, and the same call goes on from there.
    """
    corpus = open_corpus(config.corpus)
    questions = list(corpus.questions())
    fingerprint = corpus.fingerprint()
    identity = run_identity(config, fingerprint)
    run_dir = config.run_dir.resolve()
    job = _Job(
        _absolute(config),
        source=config.engine.model,
        index=index_folder(config.retrieval, run_dir, fingerprint),
        corpus=fingerprint,
        shards=run_dir / "data" / "trajectories",
        identity=digest(identity),
        log=EngineLog(run_dir / "data" / "engines", limit=config.build.engines * (1 + MAX_RESTARTS)),
        scores=score_stores(config, run_dir / "data" / "scores"),
    )
    shards = cut(questions, config.build.shard_size, job.identity)
    store = ShardStore(job.shards, job.identity)
    store.clean()
    new = {shard.id for shard in shards if store.manifest(shard.id) is None}
    missing = [s for s in shards if s.id in new or not all(store.has(s.id) for store in job.scores.values())]
    if missing:
        ensure_index(corpus.passages(), config.retrieval, job.index, fingerprint)
        job.log.clear()
        _run(job, missing, n_questions=len(questions))
        job.log.clear()
    return assemble(config, identity, shards, store, job.scores, run=len(new), skipped=len(corpus.skipped))


def _absolute(config: Config) -> Config:
    """The config with whole paths in what an actor opens by it: an actor runs in another folder."""
    reasoning, build = config.reasoning, config.build
    if build.verify.judge_engine is not None:
        judge = _absolute_engine(build.verify.judge_engine)
        build = build.model_copy(update={"verify": build.verify.model_copy(update={"judge_engine": judge})})
    if reasoning.demonstrations is not None:
        reasoning = reasoning.model_copy(update={"demonstrations": reasoning.demonstrations.resolve()})
    engine = _absolute_engine(config.engine)
    return config.model_copy(update={"engine": engine, "reasoning": reasoning, "build": build})


def _absolute_engine(engine: EngineConfig) -> EngineConfig:
    """An endpoint's model is a name that it serves, its tokenizer may be a folder all the same."""
    names = {"tokenizer": engine.tokenizer} | ({} if engine.kind == "openai" else {"model": engine.model})
    folders = {key: str(Path(name).resolve()) for key, name in names.items() if name and Path(name).is_dir()}
    return engine.model_copy(update=folders)


def _run(job: _Job, missing: Sequence[Shard], *, n_questions: int) -> None:
    """Makes and commits the missing shards. Ctrl-C leaves those that are committed."""
    left = sum(len(shard.questions) for shard in missing)
    with Progress(n_questions, n_questions - left) as progress:
        try:
            for done in _committed(job, missing):
                progress.advance(done)
        except KeyboardInterrupt:
            logger.warning("stopped; committed shards are kept in %s: build again to go on", job.shards)
            raise


def _committed(job: _Job, missing: Sequence[Shard]) -> Iterator[Work]:
    """What each shard came to, as it is committed."""
    build = job.config.build
    # Enough shards in an actor to fill its slots while one of them waits for its last questions.
    at_once = math.ceil(build.in_flight / build.shard_size) + 1
    dataset = ray.data.from_arrow([_row(shard) for shard in missing]).map_batches(
        _RolloutActor,
        fn_constructor_args=(job,),
        batch_size=None,  # one block, that is one shard, a call
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=min(build.engines, len(missing)),
            max_tasks_in_flight_per_actor=at_once,
            max_concurrent_calls_per_actor=at_once,
        ),
        num_cpus=build.num_cpus,
        num_gpus=build.num_gpus or None,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    batches: Iterable[Any] = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for batch in batches:
        for row in batch.to_pylist():
            if row["error"] is not None:
                raise getattr(errors, row["kind"], SteperError)(row["error"])
            yield Work(**row["work"])


def _row(shard: Shard) -> pa.Table:
    row = {"shard": shard.id, "questions": [to_row(question) for question in shard.questions]}
    return pa.Table.from_pylist([row], schema=_ROW_SCHEMA)


class _Teacher(Protocol):
    async def run(self, question: Question) -> Trajectory: ...


@dataclass(frozen=True, slots=True)
class _Room:
    """What an actor works with: a teacher a sample, and the verifiers that ask a model."""

    teachers: Sequence[_Teacher]
    verifiers: dict[str, ModelVerifier]


class _RolloutActor:
    """Lives in one Ray actor: the engine, the retriever, and the slots that all of its shards share."""

    def __init__(self, job: _Job) -> None:
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
