"""Models over a test set, on Ray actors. The room's only module that knows Ray.

An actor holds one retriever and one engine, and takes chunks of questions from one queue, those of the model it has
loaded first: a process starts once for all jobs, a model loads once where it can. A job's results are committed by
rename when its last chunk is done (see `store`); a rerun skips what is done with the same fingerprint.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from steper_ray.config import Config, CorpusConfig
from steper_ray.corpora import open_corpus
from steper_ray.errors import DataError, EngineDeadError, SteperError
from steper_ray.evaluation.progress import Progress
from steper_ray.evaluation.schedule import Answered, Chunk, EvalJob, Schedule
from steper_ray.evaluation.scores import EvalScores, score_trajectories
from steper_ray.evaluation.store import (
    JobFiles,
    commit,
    job_files,
    job_fingerprint,
    load_scores,
    model_fingerprint,
    questions_fingerprint,
)
from steper_ray.generation import open_generator
from steper_ray.generation.base import Generator
from steper_ray.reasoning import Event, PassagesFound, Reasoner
from steper_ray.retrieval import Retriever, ensure_index, index_folder, open_index
from steper_ray.schema import Question

__all__ = ["EvalJob", "evaluate"]

_CLOSE_SECONDS = 60.0  # an engine that does not close in this time is killed


@dataclass(frozen=True, slots=True)
class _TestSet:
    """The questions, and the finished index that the actors open."""

    questions: Sequence[Question]
    index: Path
    corpus: str

    @property
    def fingerprint(self) -> str:
        return questions_fingerprint(self.corpus, self.questions)


@dataclass(frozen=True, slots=True)
class _Task:
    """A job, where its results go, and what they depend on."""

    job: EvalJob
    files: JobFiles
    fingerprint: str


def evaluate(
    config: Config,
    jobs: Sequence[EvalJob],
    *,
    questions: Sequence[Question] | None = None,
    progress: bool = True,
) -> dict[str, dict[str, EvalScores]]:
    """The scores of every job, by its name and unit; those that are missing are made, on the Ray at hand.

    `questions` are asked instead of all of the test set's; `progress` tells on stderr how far it is.
    A question that fails is scored as wrong and counted in `errors`. Raises DataError (corpus, two jobs of one
    name and unit), ModelError, RetrievalError, and EngineDeadError where one chunk's engine died three times; jobs
    that were committed stay, and the same call goes on from there.
    """
    config = config.model_copy(update={"run_dir": config.run_dir.resolve()})
    test_set = _open_test_set(config, questions)
    tasks = _tasks(config, jobs, test_set)
    found = {task.job: load_scores(task.files, task.fingerprint) for task in tasks}
    scores = {job: done for job, done in found.items() if done is not None}
    missing = [task for task in tasks if task.job not in scores]
    if missing:
        scores |= _run(config, missing, test_set, progress=progress)
    results: dict[str, dict[str, EvalScores]] = {}
    for task in tasks:
        results.setdefault(task.job.name, {})[task.job.unit] = scores[task.job]
    return results


def _open_test_set(config: Config, questions: Sequence[Question] | None) -> _TestSet:
    source = config.evaluate.corpus or config.corpus
    corpus = open_corpus(source)
    questions = list(corpus.questions() if questions is None else questions)
    fingerprint = corpus.fingerprint()
    index = _index_folder(config, source, fingerprint)
    ensure_index(corpus.passages(), config.retrieval, index, fingerprint)
    return _TestSet(questions, index, fingerprint)


def _index_folder(config: Config, source: CorpusConfig, fingerprint: str) -> Path:
    """`retrieval.index_dir` is the index of the top-level corpus; a test set of its own has its own index."""
    own = source != config.corpus
    retrieval = config.retrieval.model_copy(update={"index_dir": None}) if own else config.retrieval
    return index_folder(retrieval, config.run_dir, fingerprint)


def _tasks(config: Config, jobs: Sequence[EvalJob], test_set: _TestSet) -> list[_Task]:
    if not jobs:
        raise DataError("nothing to evaluate: name at least one model and one unit")
    models = {model: model_fingerprint(config, model) for model in dict.fromkeys(job.model for job in jobs)}
    questions = test_set.fingerprint
    tasks = [
        _Task(
            job,
            job_files(config.run_dir, job),
            job_fingerprint(config, job.unit, model=models[job.model], questions=questions),
        )
        for job in jobs
    ]
    seen: dict[JobFiles, EvalJob] = {}
    for task in tasks:
        if task.files in seen:
            raise DataError(
                f"two evaluations would write {task.files.scores}: '{seen[task.files].model}' and "
                f"'{task.job.model}': give them different names"
            )
        seen[task.files] = task.job
    return tasks


def _run(
    config: Config, tasks: Sequence[_Task], test_set: _TestSet, *, progress: bool
) -> dict[EvalJob, EvalScores]:
    """Runs and commits the tasks."""
    by_job = {task.job: task for task in tasks}
    schedule = Schedule(list(by_job), len(test_set.questions), config.evaluate.chunk_size)
    scores: dict[EvalJob, EvalScores] = {}
    with Progress(len(tasks) * len(test_set.questions), shown=progress) as bar:
        for chunk, answered in _answers(config, test_set, schedule):
            whole = schedule.complete(chunk, answered)
            if whole is not None:
                task = by_job[chunk.job]
                trajectories = [one.trajectory for one in whole]
                scores[task.job] = score_trajectories(trajectories, [one.repeats for one in whole])
                commit(task.files, task.job, task.fingerprint, scores[task.job], trajectories)
            bar.advance(chunk.stop - chunk.start, f"{chunk.job.name}, {chunk.job.unit}")
    return scores


def _answers(
    config: Config, test_set: _TestSet, schedule: Schedule
) -> Iterator[tuple[Chunk, list[Answered]]]:
    """Every chunk of the schedule with its answers, as they come. Ends all actors when it ends."""
    pool = _Pool(config, test_set.index, test_set.corpus)
    try:
        for _ in range(min(config.evaluate.engines, schedule.n_waiting)):
            pool.start()
        while not schedule.finished:
            worker, chunk, outcome = pool.wait()
            if isinstance(outcome, EngineDeadError | RayActorError):
                pool.kill(worker)
                if chunk is None:
                    raise EngineDeadError(f"an evaluation actor could not start: {outcome}") from outcome
                schedule.give_back(chunk, outcome)
                pool.start()
                continue
            if isinstance(outcome, Exception):
                raise outcome
            if chunk is not None:
                yield chunk, outcome
            following = schedule.take(worker.model)
            if following is not None:
                pool.run(worker, following, test_set.questions[following.start : following.stop])
    finally:
        pool.close()


@dataclass(slots=True, eq=False)
class _Worker:
    """One actor, and the model it was last asked to load."""

    actor: Any
    model: str | None = None


@dataclass(slots=True)
class _Pool:
    """The actors and what each of them is doing. An actor is given nothing before it is ready to work.

    So an actor that the cluster has no room for waits without holding up the others.
    """

    config: Config
    index: Path
    corpus: str
    _under_way: dict[Any, tuple[_Worker, Chunk | None]] = field(default_factory=dict)
    _workers: list[_Worker] = field(default_factory=list)

    def start(self) -> None:
        settings = self.config.evaluate
        remote = ray.remote(_Evaluator).options(
            num_cpus=settings.num_cpus, num_gpus=settings.num_gpus or None
        )
        worker = _Worker(remote.remote(self.config, self.index, self.corpus))
        self._workers.append(worker)
        self._under_way[worker.actor.open.remote()] = worker, None

    def run(self, worker: _Worker, chunk: Chunk, questions: Sequence[Question]) -> None:
        worker.model = chunk.job.model
        self._under_way[worker.actor.answer.remote(chunk.job, list(questions))] = worker, chunk

    def wait(self) -> tuple[_Worker, Chunk | None, Any]:
        """The next worker that is done, its chunk (None: it has just opened) and its answers, or its error."""
        done, _ = ray.wait(list(self._under_way), num_returns=1)
        worker, chunk = self._under_way.pop(done[0])
        try:
            return worker, chunk, ray.get(done[0])
        except RayTaskError as error:
            if isinstance(error.cause, SteperError):
                return worker, chunk, error.cause
            raise
        except RayActorError as error:
            return worker, chunk, error

    def kill(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        ray.kill(worker.actor)

    def close(self) -> None:
        """Closes engines that have one, then ends every actor: an engine's own processes end with it."""
        closing = [worker.actor.close.remote() for worker in self._workers if worker.model is not None]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for worker in list(self._workers):
            self.kill(worker)


class _Evaluator:
    """Lives in one Ray actor: a retriever, and the engine of one model at a time."""

    def __init__(self, config: Config, index: Path, corpus: str) -> None:
        self._config, self._index, self._corpus = config, index, corpus
        self._retriever: Retriever | None = None
        self._generator: Generator | None = None
        self._model: str | None = None
        self._slots = asyncio.Semaphore(config.evaluate.in_flight)

    async def open(self) -> None:
        """Apart from __init__, so that an error is typed and not the text of an actor that never was."""
        self._retriever = open_index(self._index, self._config.retrieval, self._corpus)

    async def answer(self, job: EvalJob, questions: Sequence[Question]) -> list[Answered]:
        """All questions, in their order. Raises ModelError or EngineDeadError."""
        await self._load(job.model)
        assert self._retriever is not None
        assert self._generator is not None
        settings = self._config.reasoning.model_copy(update={"unit": job.unit})
        reasoner = Reasoner(self._retriever, self._generator, settings, self._config.sampling, job.model)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(reasoner, question)) for question in questions]
        except* EngineDeadError as dead:
            first: BaseException = dead
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise EngineDeadError(str(first)) from None
        return [task.result() for task in tasks]

    async def close(self) -> None:
        generator, self._generator, self._model = self._generator, None, None
        if generator is not None:
            await generator.close()
            del generator
            gc.collect()  # the next model needs the memory of this one

    async def _load(self, model: str) -> None:
        if model != self._model:
            await self.close()
            self._generator = open_generator(self._config.engine.model_copy(update={"model": model}))
            self._model = model

    async def _one(self, reasoner: Reasoner, question: Question) -> Answered:
        repeats = 0

        def count(event: Event) -> None:
            nonlocal repeats
            if isinstance(event, PassagesFound):
                repeats += event.duplicates

        async with self._slots:
            trajectory = await reasoner.run(question, count)
        return Answered(trajectory, repeats)
