"""From a config to what the deployments need: paths made absolute, the index built, the corpus' first questions.

Whatever a person must mend is found here, before anything is deployed. Replicas open what is named here, so the
run's folder must be one that all nodes see. No Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from steper_ray.config import Config
from steper_ray.corpora import Corpus, open_corpus
from steper_ray.models import absolute_engine, resolve_model
from steper_ray.retrieval import ensure_index, index_folder, read_manifest
from steper_ray.serving.api import Limits
from steper_ray.serving.wire import About

EXAMPLES = 6


@dataclass(frozen=True, slots=True)
class Plan:
    """What every replica is made from. `index` is a finished index of the corpus with fingerprint `corpus`."""

    config: Config
    index: Path
    corpus: str
    about: About
    examples: tuple[str, ...]

    @property
    def limits(self) -> Limits:
        return Limits(self.about.max_steps, self.about.max_question_chars)


def make_plan(config: Config) -> Plan:
    """Builds the index if it is not there. Raises DataError, ModelError and RetrievalError."""
    if config.engine.kind != "openai":
        resolve_model(config.engine.model)
    corpus = open_corpus(config.corpus)
    examples = tuple(question.text for question in islice(corpus.questions(), EXAMPLES))
    index, fingerprint = _index(config, corpus)
    reasoning = config.reasoning
    about = About(
        model=public_name(config.engine.model),
        framework=reasoning.framework,
        unit=reasoning.unit,
        max_steps=reasoning.max_steps,
        max_question_chars=reasoning.max_question_chars,
        passages=read_manifest(index).passages,
    )
    return Plan(_absolute(config), index, fingerprint, about, examples)


def public_name(model: str) -> str:
    """The model's name for clients: of a folder its last part alone, since where it lies is no one's business."""
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
    reasoning = config.reasoning
    if reasoning.demonstrations is not None:
        reasoning = reasoning.model_copy(update={"demonstrations": reasoning.demonstrations.resolve()})
    return config.model_copy(update={"engine": absolute_engine(config.engine), "reasoning": reasoning})
