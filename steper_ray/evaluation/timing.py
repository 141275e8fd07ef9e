"""Seconds, tokens and energy of one question (Fig. 6): a model is asked some questions one after the other.

- One question is asked first and not counted: it pays for what is compiled and loaded.
- What was measured is kept in RUN_DIR/eval/timing, one file an evaluation; a rerun measures what is missing.
- Without a GPU the model computes with one thread.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from time import perf_counter

from pydantic import TypeAdapter

from steper_ray.config import Config
from steper_ray.core.energy import EnergyMeter
from steper_ray.core.errors import DataError, GenerationError
from steper_ray.core.files import write_text
from steper_ray.core.fingerprints import digest
from steper_ray.core.locks import locked
from steper_ray.core.splits import draw
from steper_ray.core.tasks import in_order
from steper_ray.evaluation.pipeline import open_test_set, spec_of
from steper_ray.evaluation.scores import failed
from steper_ray.evaluation.statistics import Interval, clusters_of, interval
from steper_ray.evaluation.store import EvalJob, job_files
from steper_ray.generation import open_generator
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval import open_cached
from steper_ray.rollouts.spec import RolloutSpec
from steper_ray.schema import Question, Trajectory

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Timing:
    """What one question takes when it is asked alone."""

    seconds: Interval
    tokens: float
    """Written for one question."""
    joules: float | None
    """Of one question; None where no counter can be read."""


def time_jobs(config: Config, jobs: Sequence[EvalJob]) -> Mapping[EvalJob, Timing]:
    """The timing of each job, over `evaluate.timed_questions` of the test set; one job runs at a time.

    Raises DataError where the test set has fewer than two questions, GenerationError where one could not be answered;
    else as `evaluate`.
    """
    config = config.model_copy(update={"run_dir": config.run_dir.resolve()})
    own = config.evaluate
    with locked(config.run_dir, "evaluation"):
        test_set = open_test_set(config, None)
        chosen = _chosen(list(test_set.questions), own.timed_questions)
        found = {}
        for job in jobs:
            spec = spec_of(config, job, test_set)
            file = config.run_dir / "eval" / "timing" / f"{job_files(config.run_dir, job).shards.name}.json"
            fingerprint = digest([FORMAT, spec.identity, [question.id for question in chosen]])
            try:
                data = json.loads(file.read_text(encoding="utf-8"))
                if data.pop("check") == digest(data) and data["fingerprint"] == fingerprint:
                    found[job] = _timings().validate_python(data["timing"])
                    continue
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                pass
            (found[job],) = in_order(partial(_time, spec), [chosen], own.num_cpus, own.num_gpus)
            data = {"fingerprint": fingerprint, "timing": _timings().dump_python(found[job], mode="json")}
            write_text(file, json.dumps({**data, "check": digest(data)}, indent=2) + "\n")
    return found


@cache
def _timings() -> TypeAdapter[Timing]:
    return TypeAdapter(Timing)


def _chosen(questions: Sequence[Question], most: int) -> Sequence[Question]:
    """The question that is not counted, and those that are."""
    if len(questions) < 2:
        raise DataError("fewer than two questions to time: one is asked first, and not counted")
    return sorted(questions, key=lambda question: draw(question.id))[: most + 1]


def _time(spec: RolloutSpec, questions: Sequence[Question]) -> Timing:
    return asyncio.run(_time_all(spec, questions))


async def _time_all(spec: RolloutSpec, questions: Sequence[Question]) -> Timing:
    generator = open_generator(spec.engine)
    larger = None
    try:
        await generator.check()
        if spec.reasoning.escalate is not None:
            larger = open_generator(spec.reasoning.escalate.engine)
            await larger.check()
        retriever = open_cached(spec.index, spec.retrieval, spec.corpus)
        reasoner = Reasoner(retriever, generator, spec.reasoning, spec.sampling, spec.source, larger=larger)
        await reasoner.run(questions[0])
        meter, seconds, ended = EnergyMeter(), dict[str, float](), list[Trajectory]()
        for question in questions[1:]:
            started = perf_counter()
            ended.append(await reasoner.run(question))
            seconds[question.id] = perf_counter() - started
            if failed(ended[-1]):
                raise GenerationError(f"question '{question.id}' could not be timed: {ended[-1].error}")
        joules = meter.joules()
    finally:
        for engine in (generator, larger):
            if engine is not None:
                await engine.close()
    return Timing(
        interval([seconds], clusters_of({question.id: question.gold_ids for question in questions[1:]})),
        sum(step.usage.completion_tokens for one in ended for step in one.steps) / len(ended),
        None if joules is None else joules / len(ended),
    )
