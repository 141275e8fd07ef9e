"""One engine's share of a run: shard numbers in, committed shards out. Lives in a Ray actor and knows no Ray.

- It holds one retriever and one model at a time, and keeps `in_flight` questions going over all of its shards.
- It commits its shards itself; what is committed and final is never asked again.
- One question's failure, of any kind, costs no other question: it is owed, with the error.
- An error that a person must correct (a setting, a full disk) comes back as a row and ends the run.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import NoReturn, TypeVar

import pyarrow as pa

from steper_ray.config import EngineConfig, RetrievalConfig
from steper_ray.core.awaiting import together
from steper_ray.core.copies import local
from steper_ray.core.errors import EngineDeadError, SteperError, in_one_line
from steper_ray.generation.base import Generator
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval import CachedSearches, open_cached
from steper_ray.retrieval.store import PASSAGES, PassageStore
from steper_ray.rollouts.annotation import AnnotationTeacher
from steper_ray.rollouts.asker import Asker, Notes
from steper_ray.rollouts.questions import QuestionFile
from steper_ray.rollouts.rewriting import Rewriter
from steper_ray.rollouts.scores import ScoreStore, chain_digest
from steper_ray.rollouts.shards import ShardManifest
from steper_ray.rollouts.spec import Pool, RolloutSpec
from steper_ray.rollouts.teachers import Earlier, Teacher, groups
from steper_ray.rollouts.verifiers import ModelVerifier, open_verifiers
from steper_ray.rollouts.work import Work
from steper_ray.schema import Question, StepScore

logger = logging.getLogger(__name__)
T = TypeVar("T")

_CLOSE_SECONDS = 30.0
RESULT_SCHEMA = pa.schema(
    [
        ("spec", pa.int64()),
        ("shard", pa.int64()),
        ("work", pa.struct([(count.name, pa.int64()) for count in fields(Work)])),
        ("kind", pa.string()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Job:
    """The work of a run, as every actor gets it."""

    specs: tuple[RolloutSpec, ...]
    questions: QuestionFile
    pool: Pool


@dataclass(frozen=True, slots=True)
class _Room:
    """The teachers and verifiers of one spec, and what both search."""

    groups: Sequence[Sequence[Teacher]]
    verifiers: dict[str, ModelVerifier]
    searches: CachedSearches


class RolloutActor:
    """The engine, the retriever, and the slots that all of the actor's shards share."""

    def __init__(self, job: Job, notes: Notes) -> None:
        self._job, self._notes = job, notes
        self._asker: Asker | None = None
        self._state = asyncio.Condition()
        self._turns = asyncio.Semaphore(job.pool.shards_at_once(job.questions.shard_size))
        self._in_use = 0
        self._engine: EngineConfig | None = None
        self._engines: list[Generator] = []
        self._loaded: dict[str, Generator] = {}
        self._retrievers: dict[tuple[Path, RetrievalConfig, str], CachedSearches] = {}
        self._rooms: dict[int, _Room] = {}
        self._failed: SteperError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Makes and commits shards, each a row {spec, shard} of numbers. An error is the only row of its batch."""
        rows = batch.to_pylist()
        try:
            works = await together(self._in_turn(row["spec"], row["shard"]) for row in rows)
        except Exception as failed:
            said = str(failed)
            if not isinstance(failed, SteperError):
                logger.exception("a rollout actor failed")
                said = (
                    f"a rollout actor failed ({type(failed).__name__}: {in_one_line(failed)}; the trace is in Ray's "
                    "log). Committed shards are kept: the same command goes on from there"
                )
            about = {"work": asdict(Work()), "kind": type(failed).__name__, "error": said}
            return pa.Table.from_pylist([rows[0] | about], schema=RESULT_SCHEMA)
        done = [row | {"work": asdict(work)} for row, work in zip(rows, works, strict=True)]
        return pa.Table.from_pylist(done, schema=RESULT_SCHEMA)

    async def _in_turn(self, number: int, shard: int) -> Work:
        async with self._turns:
            return await self._make(number, shard)

    async def _make(self, number: int, shard: int) -> Work:
        spec, digest = self._job.specs[number], self._job.questions.digests[shard]
        questions = await asyncio.to_thread(self._job.questions.read, shard)
        async with self._room(number) as (room, asker):
            manifest, work = await self._trajectories(spec, digest, questions, room, asker, (number, shard))
            if spec.teacher == "annotation":  # its questions are not noted one by one
                await self._notes.done("", (number, shard), Work())
            for name, folder in spec.scores.items():
                await self._score(spec, digest, manifest, ScoreStore(folder), room.verifiers[name], asker)
            # Of all shards under way: what was searched since the last one was made.
            work.searches, work.cached_searches = room.searches.take_counts()
        return work

    async def _trajectories(
        self,
        spec: RolloutSpec,
        digest: str,
        questions: Sequence[Question],
        room: _Room,
        asker: Asker,
        tag: tuple[int, int],
    ) -> tuple[ShardManifest, Work]:
        """Asks what has no final trajectory yet, and commits the shard."""
        earlier = await asyncio.to_thread(Earlier.read, spec, digest)
        if earlier.manifest is not None and earlier.is_complete:
            return earlier.manifest, Work.of(len(questions), earlier.finals, spec.asking)
        asked = await together(
            asker.ask(spec, question, group, earlier, tag)
            for question in questions
            if question.id not in earlier.unwanted and spec.asking.wants(question)
            for group in room.groups
        )
        made = list(chain.from_iterable(one.finals for one in asked))
        owed = [one.owed for one in asked if one.owed is not None]
        manifest = await asyncio.to_thread(
            spec.store.commit, spec.store.shard_id(digest), made, owed, earlier.before
        )
        left = len({one.question for one in owed})
        return manifest, Work.of(len(questions), made, spec.asking, owed=left)

    async def _score(
        self,
        spec: RolloutSpec,
        digest: str,
        manifest: ShardManifest,
        store: ScoreStore,
        verifier: ModelVerifier,
        asker: Asker,
    ) -> None:
        """Asks a verifier for the scores that are missing of a shard, and commits them."""
        shard = spec.store.shard_id(digest)
        if await asyncio.to_thread(store.is_complete, shard, manifest.sha256):
            return
        trajectories = await asyncio.to_thread(lambda: list(spec.store.read(shard)))
        scores: dict[str, Sequence[StepScore]] = dict(
            await asyncio.to_thread(store.read, shard, trajectories)
        )
        missing = [t for t in trajectories if t.id not in scores]
        found = await together(asker.scores(trajectory, verifier) for trajectory in missing)
        scores |= {t.id: one for t, one in zip(missing, found, strict=True) if one is not None}
        chains = {t.id: chain_digest(t) for t in trajectories if t.id in scores}
        ordered = {t.id: scores[t.id] for t in trajectories if t.id in scores}
        owed = sorted({t.question.id for t in trajectories if t.id not in scores})
        await asyncio.to_thread(store.commit, shard, ordered, chains, manifest.sha256, owed)

    @asynccontextmanager
    async def _room(self, number: int) -> AsyncIterator[tuple[_Room, Asker]]:
        """The spec's room while its shard is made. Another model is loaded once the one before is not in use.

        What cannot be opened is not tried again for the next shard.
        """
        spec = self._job.specs[number]
        async with self._state:
            await self._state.wait_for(lambda: not self._in_use or self._engine == spec.engine)
            if self._failed is not None:
                raise self._failed
            try:
                if self._asker is None:
                    self._loop = asyncio.get_running_loop()
                    self._asker = Asker(
                        self._notes, await self._notes.start(), self._job.pool.in_flight, self._die
                    )
                if number not in self._rooms:
                    self._rooms[number] = await self._open(spec)
            except SteperError as error:
                self._failed = error
                raise
            self._in_use += 1
        try:
            yield self._rooms[number], self._asker
        finally:
            async with self._state:
                self._in_use -= 1
                self._state.notify_all()

    async def _open(self, spec: RolloutSpec) -> _Room:
        """Loads the spec's model, unless it is the one that is loaded."""
        retriever = self._retriever(spec)
        if spec.engine != self._engine:
            await self._close()
            self._engine = spec.engine
            if spec.teacher == "engine":
                await self._load(spec.engine, spec.logits)
        generator = self._engines[0] if spec.teacher == "engine" else None
        judge = larger = None
        if "judge" in spec.scores and spec.verify.judge_engine is not None:
            judge = await self._load(spec.verify.judge_engine)
        if spec.reasoning.escalate is not None:
            larger = await self._load(spec.reasoning.escalate.engine)
        how = (spec.sampling, spec.verify, spec.reasoning, retriever, generator, judge)
        verifiers = open_verifiers(spec.scores, *how)
        if generator is None:
            rewrite, find = spec.annotation.rewrite, PassageStore(local(spec.index) / PASSAGES).by_id
            rewriter = None if rewrite is None else Rewriter(await self._load(rewrite))
            teacher = AnnotationTeacher(retriever, spec.reasoning, find, spec.annotation.missing, rewriter)
            return _Room([[teacher]], verifiers, retriever)
        first, samples = spec.asking.first_sample, spec.asking.samples
        teachers = [
            Reasoner(retriever, generator, spec.reasoning, spec.sampling, spec.source, sample, larger)
            for sample in range(first, first + samples)
        ]
        return _Room(groups(teachers, spec.asking), verifiers, retriever)

    def _retriever(self, spec: RolloutSpec) -> CachedSearches:
        key = spec.index, spec.retrieval, spec.corpus
        if key not in self._retrievers:
            self._retrievers = {key: open_cached(*key)}
        return self._retrievers[key]

    async def _load(self, config: EngineConfig, logits: int = 0) -> Generator:
        """An engine beside those that are there, or the one of these settings."""
        from steper_ray.generation import open_generator  # brings torch, which annotations do not need

        key = config.model_dump_json()
        if key not in self._loaded:
            engine = open_generator(config, logits)
            self._engines.append(engine)
            await engine.check()
            self._loaded[key] = engine
        return self._loaded[key]

    async def _close(self) -> None:
        engines, self._engines = self._engines, []
        self._loaded.clear()
        self._rooms.clear()
        self._engine = None
        for engine in engines:
            await engine.close()
        del engines
        gc.collect()  # the next model needs the memory of this one

    async def _die(self, error: EngineDeadError) -> NoReturn:
        """Ends the actor's process: Ray restarts it with a new engine and gives it its shards again.

        An exception would leave the dead engine in its actor, and a regular exit is not retried.
        """
        await self._notes.dying(str(error))
        os._exit(1)

    def __del__(self) -> None:
        """Ray Data drops its callable when an actor ends; an engine left open would complain or linger."""
        for engine in self._engines:
            if self._loop is not None:
                asyncio.run_coroutine_threadsafe(engine.close(), self._loop).result(_CLOSE_SECONDS)
