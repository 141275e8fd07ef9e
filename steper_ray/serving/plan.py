"""From a config to what the deployments need: paths made absolute, the index built, the corpus' first questions.

Errors in the settings are found here, before anything is deployed. Replicas open what is named here, so the
run's folder must be one that all nodes see. No Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from steper_ray.config import Config, EngineConfig, StudentConfig
from steper_ray.core.storage import as_path, has_scheme
from steper_ray.corpora import Corpus, open_corpus
from steper_ray.models import absolute_engine, absolute_reasoning, check_adapter, resolve_model
from steper_ray.retrieval import check_parts, ensure_index, index_folder, read_manifest
from steper_ray.serving.api import Limits
from steper_ray.serving.wire import About

EXAMPLES = 6


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """One engine deployment: a model, and the students that it serves, each with its adapter's folder or none."""

    name: str
    engine: EngineConfig
    students: Mapping[str, str | None]
    replicas: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan every replica is made from. `index` is a finished index of the corpus with fingerprint `corpus`."""

    config: Config
    index: Path
    corpus: str
    about: About
    examples: tuple[str, ...]
    engines: tuple[EnginePlan, ...]

    @property
    def limits(self) -> Limits:
        return Limits(self.about.max_steps, self.about.max_question_chars)


def make_plan(config: Config) -> Plan:
    """Builds the index if it is not there. Raises DataError, ModelError and RetrievalError."""
    config = _absolute(config)
    engines = plan_engines(config)
    if config.serve.retriever is not None:
        check_parts(config.retrieval, config.serve.retriever.shards)
    corpus = open_corpus(config.corpus)
    examples = tuple(question.text for question in islice(corpus.questions(answered=False), EXAMPLES))
    index, fingerprint = _index(config, corpus)
    reasoning = config.reasoning
    names = _in_order(config, engines)
    about = About(
        model=names[0],
        models=names,
        framework=reasoning.framework,
        unit=reasoning.unit,
        stop=reasoning.stop,
        max_steps=reasoning.max_steps,
        max_question_chars=reasoning.max_question_chars,
        passages=read_manifest(index).passages,
    )
    return Plan(config, index, fingerprint, about, examples, engines)


def plan_engines(config: Config) -> tuple[EnginePlan, ...]:
    """One engine for each model that is served. Raises ModelError, which names the student and the fix."""
    # Not checked as a name of the config is: a folder may be called anything.
    alone = StudentConfig.model_construct(name=public_name(config.engine.model))
    students = config.serve.students or (alone,)
    found: dict[str, list[StudentConfig]] = {}
    for student in students:
        found.setdefault(student.model or config.engine.model, []).append(student)
    return tuple(
        _engine_plan(config, model, served, f"Engine-{number}" if number > 1 else "Engine")
        for number, (model, served) in enumerate(found.items(), start=1)
    )


def _engine_plan(config: Config, model: str, students: Sequence[StudentConfig], name: str) -> EnginePlan:
    engine = absolute_engine(config.engine.model_copy(update={"model": model}))
    if engine.kind != "openai":
        resolve_model(engine.model)
    for student in students:
        if student.adapter is not None:
            check_adapter(student.adapter, engine)
    adapters = {student.name: student.adapter and _whole(student.adapter) for student in students}
    replicas = max(student.replicas or config.serve.replicas for student in students)
    return EnginePlan(name, engine, adapters, replicas)


def _whole(folder: str) -> str:
    return folder if has_scheme(folder) else str(Path(folder).expanduser().resolve())


def _in_order(config: Config, engines: Sequence[EnginePlan]) -> list[str]:
    named = [student.name for student in config.serve.students]
    return named or [name for engine in engines for name in engine.students]


def public_name(model: str) -> str:
    """The model's name for clients: of a folder its last part alone, since where it lies is no one's business."""
    if has_scheme(model):
        return as_path(model).name
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def _index(config: Config, corpus: Corpus) -> tuple[Path, str]:
    """The same index, in the same place, as the other stages use for this corpus."""
    fingerprint = corpus.fingerprint()
    folder = index_folder(config.retrieval, config.run_dir, fingerprint)
    ensure_index(corpus.passages(), config.retrieval, folder, fingerprint)
    return folder, fingerprint


def _absolute(config: Config) -> Config:
    """The config with whole paths in what a replica opens by it: a replica runs in another folder."""
    return config.model_copy(update={"reasoning": absolute_reasoning(config.reasoning)})
