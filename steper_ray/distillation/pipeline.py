"""Questions and passages -> kept trajectories, on Ray Data. The room's only module that knows Ray.

One row is one shard of questions. An actor holds an engine and a retriever, takes several shards at a time
and keeps `in_flight` trajectories going over all of them, so the engine never waits for the slowest question
of a shard. It commits its shards itself; what it does with one is in rollout_actor.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import ray

from steper_ray import errors
from steper_ray.config import Config
from steper_ray.corpora import Corpus, open_corpus
from steper_ray.distillation.assemble import Part, assemble
from steper_ray.distillation.engine_log import EngineLog
from steper_ray.distillation.identity import digest, run_identity
from steper_ray.distillation.live import Live
from steper_ray.distillation.progress import Progress, Work
from steper_ray.distillation.report import BuildReport
from steper_ray.distillation.rollout_actor import Job, RolloutActor, shard_row
from steper_ray.distillation.scores import score_stores
from steper_ray.distillation.shards import Shard, ShardStore, by_question, cut
from steper_ray.distillation.teachers import TeacherRun, at_fixed_steps, is_answered, teacher_runs
from steper_ray.errors import SteperError
from steper_ray.models import absolute_engine
from steper_ray.retrieval.index import ensure_index, index_folder
from steper_ray.schema import Question

__all__ = ["BuildReport", "build_data"]

logger = logging.getLogger(__name__)

#: Restarts an engine in one build, besides those after deaths that a question is to blame for (suspects.py): one
#: death may be an accident, five are none. Ray Data alone restarts actors, and gives them their shards again, forever.
MAX_RESTARTS = 4


def build_data(config: Config) -> BuildReport:
    """Builds, or goes on building, run_dir/data/: trajectories/, kept/, dropped.jsonl, manifest.json.

    Questions that fail are rows with their error, also those that kill engines each time; they are counted, and named
    in dropped.jsonl. Raises DataError (corpus, duplicate question ids), RetrievalError, ModelError, and EngineDeadError
    where engines died more than MAX_RESTARTS times each of no question's fault; what was committed stays, and the
    same call goes on from there.
    """
    config = at_fixed_steps(config)
    corpus = open_corpus(config.corpus)
    questions, fingerprint = list(corpus.questions()), corpus.fingerprint()
    parts, new = list[Part](), 0
    for number, run in enumerate(teacher_runs(config)):
        if number and config.build.until_right:
            questions = _unanswered(parts[-1], config)
            if not questions:
                break
        part, made = _part(run, corpus, questions, fingerprint)
        parts.append(part)
        new += made
    return assemble(config, parts, run=new, skipped=len(corpus.skipped))


def _part(
    run: TeacherRun, corpus: Corpus, questions: Sequence[Question], fingerprint: str
) -> tuple[Part, int]:
    """What one teacher makes of the questions, committed, and how many shards were made just now."""
    config, run_dir = run.config, run.config.run_dir.resolve()
    identity = run_identity(config, fingerprint, run.first_sample)
    job = Job(
        _absolute(config),
        source=config.engine.model,
        index=index_folder(config.retrieval, run_dir, fingerprint),
        corpus=fingerprint,
        shards=run_dir / "data" / "trajectories",
        identity=digest(identity),
        log=EngineLog(run_dir / "data" / "engines", limit=config.build.engines * (1 + MAX_RESTARTS)),
        scores=score_stores(config, run_dir / "data" / "scores"),
        first_sample=run.first_sample,
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
    return Part(identity, shards, store, job.scores), len(new)


def _unanswered(part: Part, config: Config) -> list[Question]:
    """The questions of a part that none of its trajectories answers right."""
    match, left = config.build.match, list[Question]()
    for made in by_question([part], lambda pair: pair[0].question.id):
        if not is_answered([trajectory for trajectory, _ in made], match):
            left.append(made[0][0].question)
    return left


def _absolute(config: Config) -> Config:
    """The config with whole paths in what an actor opens by it: an actor runs in another folder."""
    reasoning, build = config.reasoning, config.build
    if build.verify.judge_engine is not None:
        judge = absolute_engine(build.verify.judge_engine)
        build = build.model_copy(update={"verify": build.verify.model_copy(update={"judge_engine": judge})})
    if reasoning.demonstrations is not None:
        reasoning = reasoning.model_copy(update={"demonstrations": reasoning.demonstrations.resolve()})
    engine = absolute_engine(config.engine)
    return config.model_copy(update={"engine": engine, "reasoning": reasoning, "build": build})


def _run(job: Job, missing: Sequence[Shard], *, n_questions: int) -> None:
    """Makes and commits the missing shards. Ctrl-C leaves those that are committed."""
    questions = {shard.id: [question.id for question in shard.questions] for shard in missing}
    left = [question for ids in questions.values() for question in ids]
    build = job.config.build
    live = Live(job.log.folder, left, groups=1 if build.until_right else build.samples)
    with Progress(n_questions, n_questions - len(left), live) as progress:
        try:
            for shard_id, done in _committed(job, missing):
                progress.advance(done, partial(live.committed, questions[shard_id]))
        except KeyboardInterrupt:
            logger.warning("stopped; committed shards are kept in %s: build again to go on", job.shards)
            raise


def _committed(job: Job, missing: Sequence[Shard]) -> Iterator[tuple[str, Work]]:
    """Each shard's id and what it came to, as it is committed."""
    build = job.config.build
    # Enough shards in an actor to fill its slots while one of them waits for its last questions.
    at_once = math.ceil(build.in_flight / build.shard_size) + 1
    dataset = ray.data.from_arrow([shard_row(shard) for shard in missing]).map_batches(
        RolloutActor,
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
            yield row["shard"], Work(**row["work"])
