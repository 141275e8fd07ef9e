"""Questions and passages -> teacher trajectories -> those to learn from. Every teacher asks through rollouts/."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from steper_ray.config import Config, CorpusConfig, ReasoningConfig, TeacherConfig
from steper_ray.core.errors import DataError, SteperError
from steper_ray.core.locks import locked
from steper_ray.core.tasks import in_order
from steper_ray.corpora import open_corpus
from steper_ray.data.assemble import assemble
from steper_ray.data.report import BuildReport
from steper_ray.frameworks import framework_of, rewrites
from steper_ray.models import absolute_engine
from steper_ray.rollouts.questions import QuestionFile
from steper_ray.rollouts.scores import score_folders
from steper_ray.rollouts.set import RolloutSet, owed_report
from steper_ray.rollouts.shards import DamagedShardError
from steper_ray.rollouts.sources import Source, open_source
from steper_ray.rollouts.spec import (
    Asking,
    Pool,
    RolloutSpec,
    absolute_annotation,
    absolute_reasoning,
    absolute_verify,
    at_fixed_steps,
)

logger = logging.getLogger(__name__)

_TRIES = 3  # assemblies of one build: shards that are damaged in between are made again
_DECOMPOSED_WITHIN = 200  # questions: without a decomposition among them, the data set has none


def build_data(config: Config) -> BuildReport:
    """Builds, or continues to build, run_dir/data/: trajectories/, kept/, dropped.jsonl, owed.jsonl, manifest.json.

    Raises DataError (corpus, duplicate question ids), RetrievalError, ModelError, EngineSetupError, EngineDeadError,
    StorageError, LockedError where another build is at work on this run_dir, and OwedError where more than
    `build.max_failed` of the questions are owed, after everything else is assembled. The same call continues from what
    was committed.
    """
    with locked(config.run_dir, "build"):
        return _build(at_fixed_steps(config))


def _build(config: Config) -> BuildReport:
    from steper_ray.rollouts.run import check_owed

    _check_steps(config.reasoning)
    if config.build.teacher == "annotation":
        _check_decompositions(config.corpus)
    source = open_source(config.corpus, config.retrieval, config.run_dir, config.build.shard_size)
    long = source.long_passages(config.reasoning.max_passage_chars, config.reasoning.long_passages)
    made = 0
    for left in reversed(range(_TRIES)):
        sets = list[RolloutSet]()
        try:
            made += _rollouts(config, source, sets)
            report = assemble(config, sets, run=made, skipped=source.questions.skipped, passages=long)
        except DamagedShardError as error:
            if not left:
                raise
            logger.warning("%s", error)
            _drop_damaged(sets)
            continue
        check_owed(owed_report(sets), config.build.max_failed, f"{report.folder}", report.summary())
        return report
    raise AssertionError("the last try returns or raises")


def _check_steps(reasoning: ReasoningConfig) -> None:
    """Raises SteperError where the trajectories would hold no steps that a student can learn."""
    if rewrites(framework_of(reasoning.framework)):
        raise SteperError(
            f"reasoning.framework={reasoning.framework} writes the whole chain again in each step, so there are no "
            "steps to learn: build with ircot, self_ask or react; to compare with it, name it where you evaluate"
        )
    if not reasoning.k:
        raise SteperError("reasoning.k=0 searches for nothing: trajectories to learn from need 1 or more")


def _check_decompositions(corpus: CorpusConfig) -> None:
    """Raises DataError where none of the first questions has a decomposition, before an index is built."""
    opened = open_corpus(corpus)
    if not any(question.decomposition for question in islice(opened.questions(), _DECOMPOSED_WITHIN)):
        raise DataError(
            f"build.teacher=annotation needs decompositions, and these questions ({opened.kind}) have none: "
            "set build.teacher=engine, or take 2WikiMultiHopQA, MuSiQue or plain questions with a `decomposition`"
        )


def _rollouts(config: Config, source: Source, sets: list[RolloutSet]) -> int:
    """Adds the teachers' sets, one after the other; returns how many shards were made just now."""
    from steper_ray.rollouts.run import run

    made = 0
    _check_routes(_teachers(config), source.questions)
    for teacher in _teachers(config):
        spec, pool = _spec(config, teacher, source.index, source.corpus, sets)
        sets.append(RolloutSet(spec, source.questions))
        new = spec.store.manifests(sets[-1].shards).count(None)
        run([spec], source.questions, pool, what="trajectories")
        made += new
    return made


def _check_routes(teachers: Sequence[TeacherConfig], questions: QuestionFile) -> None:
    """Raises DataError where a question is asked of no teacher."""
    routes = [Asking(datasets=teacher.datasets, hops=teacher.hops) for teacher in teachers]
    if Asking() in routes:
        return
    left = [question for question in questions if not any(route.wants(question) for route in routes)]
    if left:
        raise DataError(
            f"build.teachers: {len(left)} of {questions.count} questions are asked of no teacher, such as "
            f"'{left[0].id}' (data set '{left[0].dataset}', hops {left[0].hops}): name them in a teacher's `datasets` "
            "and `hops`, or add a last teacher without either"
        )


def _teachers(config: Config) -> tuple[TeacherConfig, ...]:
    """The teachers in the order they are asked in; `engine` alone where none are named."""
    build = config.build
    return build.teachers or (TeacherConfig(engine=config.engine, samples=build.samples),)


def _spec(
    config: Config, teacher: TeacherConfig, index: Path, fingerprint: str, sets: list[RolloutSet]
) -> tuple[RolloutSpec, Pool]:
    build, run_dir, sampling = config.build, config.run_dir.resolve(), config.sampling
    if teacher.temperature is not None:
        sampling = sampling.model_copy(update={"temperature": teacher.temperature})
    engine, verify = absolute_engine(teacher.engine), absolute_verify(build.verify)
    annotated = build.teacher == "annotation"
    asking = Asking(
        samples=teacher.samples,
        first_sample=sum(found.spec.asking.samples for found in sets),
        until_right=build.until_right,
        self_correct=build.self_correct,
        match=build.match,
        datasets=teacher.datasets,
        hops=teacher.hops,
    )
    spec = RolloutSpec(
        engine=engine,
        sampling=sampling,
        reasoning=absolute_reasoning(config.reasoning),
        retrieval=config.retrieval,
        index=index,
        corpus=fingerprint,
        folder=run_dir / "data" / "trajectories",
        source="annotation" if annotated else teacher.engine.model,
        teacher=build.teacher,
        annotation=absolute_annotation(build.annotation),
        asking=asking,
        before=tuple(found.spec.store for found in sets),
        verify=verify,
        logits=build.logits,
        scores=score_folders(run_dir / "data" / "scores", engine, sampling, verify),
    )
    own = {name: getattr(teacher, name) for name in ("engines", "in_flight", "num_cpus", "num_gpus")}
    pool = Pool(build.engines, build.in_flight, build.num_cpus, build.num_gpus, "build")
    return spec, replace(pool, **{name: value for name, value in own.items() if value is not None})


def _drop_damaged(sets: list[RolloutSet]) -> None:
    """Drops every damaged shard, so that one more run makes them all."""
    for found in sets:
        dropped = sum(in_order(found.spec.store.drop_damaged, found.shards))
        if dropped:
            logger.warning("%s: %d damaged shards are made again", found.spec.folder, dropped)
