"""A student that still learns, asked a few questions: the real multi-step loop, as in any evaluation.

What `training` is given as its judge. It knows nothing of training but the settings of `train.validation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steper_ray.config import Config, EngineConfig
from steper_ray.core.errors import DataError
from steper_ray.core.splits import draw
from steper_ray.corpora import open_corpus
from steper_ray.evaluation.pipeline import EvalJob, evaluate
from steper_ray.evaluation.scores import METRICS
from steper_ray.retrieval import index_folder
from steper_ray.schema import Question


@dataclass(frozen=True, slots=True)
class _Asked:
    """The questions, and the run's config made into that of their evaluation."""

    questions: Sequence[Question]
    config: Config


def questions_of(config: Config) -> list[Question]:
    """The questions that a student is asked while it learns: never one that it learns from.

    Raises DataError where there are none.
    """
    validation = config.train.validation
    corpus = open_corpus(validation.corpus or config.corpus)
    questions = sorted(corpus.questions(), key=lambda question: draw(question.id))
    if validation.corpus is None and validation.share:
        questions = [question for question in questions if draw(question.id) < validation.share]
    if not questions:
        raise DataError(
            "train.validation.questions: no question is held out: raise train.validation.share, or name a corpus"
        )
    return questions[: validation.questions]


def question_judge(config: Config) -> Callable[[Path, str, int], dict[str, Any]]:
    """A function that answers them with the model in a folder, on separate actors, and returns the scores.

    Its trajectories and scores lie below training/<name>/eval. It raises what `evaluate` raises.
    """
    config = config.model_copy(update={"run_dir": config.run_dir.resolve()})
    asked: list[_Asked] = []

    def judge(model: Path, name: str, step: int) -> dict[str, Any]:
        if not asked:  # the corpus is read once, and not before the first student is there
            asked.append(_prepare(config))
        one = asked[0]
        own = one.config.model_copy(update={"run_dir": config.run_dir / "training" / name})
        job = EvalJob(f"step-{step}", str(model), config.reasoning.unit)
        scores = evaluate(own, [job], questions=one.questions, progress=False)[job.name][job.unit]
        means = {metric: getattr(scores, metric) for metric in METRICS}
        return {"unit": job.unit, "n": scores.n, "errors": scores.errors, "owed": scores.owed, **means}

    return judge


def _prepare(config: Config) -> _Asked:
    validation = config.train.validation
    source = validation.corpus or config.corpus
    own = source != config.corpus
    retrieval = config.retrieval.model_copy(update={"index_dir": None}) if own else config.retrieval
    index = index_folder(retrieval, config.run_dir, open_corpus(source).fingerprint())
    engine = validation.engine or config.engine
    if engine.kind == "openai":  # an endpoint cannot load the student
        engine = EngineConfig(max_model_len=engine.max_model_len)
    settings = config.evaluate
    cpus, gpus = validation.num_cpus, validation.num_gpus
    settings = settings.model_copy(
        update={
            "corpus": None,
            "engines": 1,
            "num_cpus": settings.num_cpus if cpus is None else cpus,
            "num_gpus": settings.num_gpus if gpus is None else gpus,
        }
    )
    changed = {
        "corpus": source,
        "retrieval": retrieval.model_copy(update={"index_dir": index}),
        "engine": engine,
        "evaluate": settings,
    }
    return _Asked(questions_of(config), config.model_copy(update=changed))
