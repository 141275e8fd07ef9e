"""Models over a test set: every job is a set of rollouts, and its scores or predictions are read from the shards.

A rerun asks what is missing or owed, and counts again only what has changed. `predict` after `evaluate` of the same
questions asks nothing, and the other way round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from steper_ray.config import Config
from steper_ray.core.errors import DataError
from steper_ray.core.locks import locked
from steper_ray.core.tasks import in_order
from steper_ray.evaluation.predictions import Predicted, Predictions, write_predictions
from steper_ray.evaluation.scores import EvalScores, Scored
from steper_ray.evaluation.store import (
    EvalJob,
    JobFiles,
    job_files,
    load_scores,
    save_scores,
    set_fingerprint,
)
from steper_ray.models import absolute_engine
from steper_ray.rollouts.run import check_owed, run
from steper_ray.rollouts.set import RolloutSet, owed_report
from steper_ray.rollouts.shards import DamagedShardError
from steper_ray.rollouts.sources import Source, open_source
from steper_ray.rollouts.spec import Pool, RolloutSpec, absolute_reasoning
from steper_ray.schema import Question, StopReason

__all__ = ["EvalJob", "evaluate", "predict"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

_TRIES = 3  # of one call: shards that are damaged are made again


def evaluate(
    config: Config,
    jobs: Sequence[EvalJob],
    *,
    questions: Sequence[Question] | None = None,
    progress: bool = True,
) -> dict[str, dict[str, EvalScores]]:
    """The scores of every job, by its name and unit; what is missing or owed is asked, on the Ray at hand.

    `questions` are asked instead of all of the test set's; `progress` shows on stderr how far it is. A question that is
    rejected is scored as wrong and counted in `errors`, one that is owed in `owed` too. Raises DataError (corpus, two
    jobs of one name and unit), ModelError, RetrievalError, EngineSetupError, EngineDeadError, StorageError, LockedError
    where another evaluation is at work on this run_dir, and OwedError where more than `evaluate.max_failed` of the
    questions are owed; the same call continues from what was committed.
    """
    config = config.model_copy(update={"run_dir": config.run_dir.resolve()})
    files = _files(config, jobs)
    with locked(config.run_dir, "evaluation"):
        test_set = open_test_set(config, questions)
        sets = {job: RolloutSet(spec_of(config, job, test_set), test_set.questions) for job in jobs}

        def count() -> dict[EvalJob, EvalScores]:
            return {job: _scores(config, job, files[job], sets[job]) for job in jobs}

        scores = _asked(config, list(sets.values()), test_set, count, shown=progress)
        results: dict[str, dict[str, EvalScores]] = {}
        for job in jobs:
            results.setdefault(job.name, {})[job.unit] = scores[job]
        owed = owed_report(list(sets.values()))
        check_owed(owed, config.evaluate.max_failed, "evaluation", format_scores(results))
    return results


def predict(config: Config, job: EvalJob) -> Predictions:
    """The answers to the test set's questions, which need no gold answers, in run_dir/predictions/NAME*.

    What is missing or owed is asked, on the Ray at hand. Raises as `evaluate`; OwedError after the files are written.
    """
    config = config.model_copy(update={"run_dir": config.run_dir.resolve()})
    with locked(config.run_dir, "evaluation"):
        test_set = open_test_set(config, None, answered=False)
        found = RolloutSet(spec_of(config, job, test_set), test_set.questions)
        stem = config.run_dir / "predictions" / job_files(config.run_dir, job).shards.name
        written = _asked(
            config, [found], test_set, lambda: write_predictions(stem, lambda: _predicted(found))
        )
        check_owed(owed_report([found]), config.evaluate.max_failed, "predictions", written.summary())
    return written


def _predicted(found: RolloutSet) -> Iterator[Predicted]:
    """Every question in its order."""
    for number, shard in enumerate(found.shards):
        ended = {trajectory.question.id: trajectory for trajectory in found.spec.store.read(shard)}
        manifest = found.spec.store.manifest(shard)
        errors = {owed.question: owed.error for owed in manifest.owed} if manifest is not None else {}
        for question in found.questions.read(number):
            yield Predicted(question, ended.get(question.id), errors.get(question.id))


def _asked(
    config: Config, sets: Sequence[RolloutSet], test_set: Source, use: Callable[[], T], *, shown: bool = True
) -> T:
    """The result of `use` once the sets are asked; shards that it finds damaged are asked again."""
    for left in reversed(range(_TRIES)):
        try:
            _ask(config, sets, test_set, shown=shown)
            return use()
        except DamagedShardError:
            if not left:
                raise
            for found in sets:
                list(in_order(found.spec.store.drop_damaged, found.shards, config.evaluate.num_cpus))
    raise AssertionError("the last try returns or raises")


def format_scores(results: Mapping[str, Mapping[str, EvalScores]]) -> str:
    """A line for each model and unit, for a terminal; `larger` is the share of tokens written by a larger model."""
    return "\n".join(
        f"{name:24} {unit:9} EM {scores.em:.3f}  F1 {scores.f1:.3f}  Acc {scores.acc:.3f}  "
        f"steps {scores.mean_steps:.2f}  n {scores.n}  errors {scores.errors}"
        + (f", {scores.owed} of them owed" if scores.owed else "")
        + (f"  larger {scores.larger_tokens / scores.completion_tokens:.0%}" if scores.larger_tokens else "")
        for name, units in results.items()
        for unit, scores in units.items()
    )


def _files(config: Config, jobs: Sequence[EvalJob]) -> dict[EvalJob, JobFiles]:
    if not jobs:
        raise DataError("nothing to evaluate: name at least one model and one unit")
    seen: dict[JobFiles, EvalJob] = {}
    for job in jobs:
        other = seen.setdefault(job_files(config.run_dir, job), job)
        if other != job:
            raise DataError(
                f"two evaluations would write {job_files(config.run_dir, job).scores}: '{other.model}' and "
                f"'{job.model}': give them different names"
            )
    return {job: files for files, job in seen.items()}


def open_test_set(config: Config, questions: Sequence[Question] | None, *, answered: bool = True) -> Source:
    """The test set's questions and index, which is made where it is missing. `retrieval.index_dir` is the index of the
    top-level corpus; another test set has another one."""
    own, source = config.evaluate, config.evaluate.corpus or config.corpus
    retrieval = config.retrieval
    if source != config.corpus:
        retrieval = retrieval.model_copy(update={"index_dir": None})
    return open_source(
        source,
        retrieval,
        config.run_dir,
        own.chunk_size,
        questions=questions,
        answered=answered,
        num_cpus=own.num_cpus,
    )


def _ask(config: Config, sets: Sequence[RolloutSet], test_set: Source, *, shown: bool) -> None:
    """Asks what is missing of the sets, so that they are complete up to what is owed."""
    own = config.evaluate
    pool = Pool(own.engines, own.in_flight, own.num_cpus, own.num_gpus, "evaluate")
    run([found.spec for found in sets], test_set.questions, pool, what="evaluate", shown=shown)


def spec_of(config: Config, job: EvalJob, test_set: Source) -> RolloutSpec:
    """The rollouts of a job."""
    return RolloutSpec(
        engine=absolute_engine(config.engine.model_copy(update={"model": job.model})),
        sampling=config.sampling,
        reasoning=absolute_reasoning(
            config.reasoning.model_copy(update={"unit": job.unit, **dict(job.reasoning)})
        ),
        retrieval=config.retrieval,
        index=test_set.index,
        corpus=test_set.corpus,
        folder=job_files(config.run_dir, job).shards,
        source=job.model,
    )


def _scores(config: Config, job: EvalJob, files: JobFiles, found: RolloutSet) -> EvalScores:
    """The job's scores, counted from its shards unless they were counted before."""
    fingerprint = set_fingerprint(found)
    if (known := load_scores(files, fingerprint)) is not None:
        return known
    total = Scored()
    for part in in_order(partial(_score_shard, found), range(len(found.shards)), config.evaluate.num_cpus):
        total.extend(part)
    scores = total.scores()
    if total.rejected:
        count = scores.stop_reasons[StopReason.REJECTED]
        logger.warning(
            "%s, %s: %d questions could not be asked and count as wrong, the first: %s",
            job.name, job.unit, count, total.rejected,
        )  # fmt: skip
    save_scores(files, job, fingerprint, found.shards, scores)
    return scores


def _score_shard(found: RolloutSet, number: int) -> Scored:
    scored, ended = Scored(), set[str]()
    for trajectory in found.spec.store.read(found.shards[number]):
        ended.add(trajectory.question.id)
        scored.add(trajectory)
    for question in _owed(found, number):
        if question.id not in ended:
            scored.add_owed(question)
    return scored


def _owed(found: RolloutSet, number: int) -> Iterator[Question]:
    manifest = found.spec.store.manifest(found.shards[number])
    if manifest is not None and manifest.owed:
        yield from found.questions.read(number)
