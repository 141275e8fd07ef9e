"""The specification of a set of rollouts, and the actors it runs on.

- The identity holds everything that decides what a trajectory says: two specs of one identity share their shards.
- Actors, batch sizes, paths and the stopping policy's unused settings are no part of it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from steper_ray import models
from steper_ray.config import (
    AnnotationConfig,
    Config,
    EngineConfig,
    ReasoningConfig,
    RetrievalConfig,
    SamplingConfig,
    VerifyConfig,
)
from steper_ray.core.answers import is_right
from steper_ray.core.errors import DataError
from steper_ray.core.fingerprints import digest
from steper_ray.frameworks import framework_of
from steper_ray.models import absolute_engine, model_fingerprint
from steper_ray.retrieval import search_settings
from steper_ray.rollouts.annotation import VERSION as ANNOTATION_VERSION
from steper_ray.rollouts.shards import ShardStore
from steper_ray.schema import SCHEMA_VERSION, Question, StopReason, Trajectory

#: Raised by hand when a change of the code makes the same inputs give other trajectories.
TRAJECTORY_VERSION = 3


@dataclass(frozen=True, slots=True)
class Asking:
    """How often a question is asked: `samples` of it from number `first_sample` on, none more once one is right
    (`until_right`), and a second chance for a wrong answer (`self_correct`). Where `datasets` or `hops` are named, only
    their questions are asked."""

    samples: int = 1
    first_sample: int = 0
    until_right: bool = False
    self_correct: bool = False
    match: Literal["exact", "contains"] = "exact"
    datasets: tuple[str, ...] = ()
    hops: tuple[int, ...] = ()

    def wants(self, question: Question) -> bool:
        """Whether the teacher is asked this question."""
        return (not self.datasets or question.dataset in self.datasets) and (
            not self.hops or question.hops in self.hops
        )

    def is_right(self, trajectory: Trajectory) -> bool:
        return trajectory.stop_reason is StopReason.ANSWERED and is_right(
            trajectory.answer, trajectory.question.answers, self.match
        )


@dataclass(frozen=True, slots=True)
class Pool:
    """The engine actors of a run. `section` is the part of the config that sets them, for messages."""

    engines: int
    in_flight: int
    num_cpus: float
    num_gpus: float
    section: str

    def shards_at_once(self, shard_size: int) -> int:
        """Shards of an actor under way: enough to fill its slots while one of them waits for its last questions."""
        return math.ceil(self.in_flight / shard_size) + 1


@dataclass(frozen=True)
class RolloutSpec:
    """One teacher or student over a file of questions. Paths are absolute: an actor's working folder is another one.

    `source` names the teacher in its trajectories. `before` are the shards of earlier teachers: with
    `asking.until_right` a question is asked only where none of them has a right answer and none is owed.
    """

    engine: EngineConfig
    sampling: SamplingConfig
    reasoning: ReasoningConfig
    retrieval: RetrievalConfig
    index: Path
    corpus: str
    folder: Path
    source: str
    teacher: Literal["engine", "annotation"] = "engine"
    annotation: AnnotationConfig = field(default_factory=AnnotationConfig)
    asking: Asking = Asking()
    before: tuple[ShardStore, ...] = ()
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    #: How many of the likeliest tokens are kept at each token (`build.logits`).
    logits: int = 0
    #: Folder of each verifier that asks a model, by its name.
    scores: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Plain JSON. Raises DataError or ModelError for files that cannot be read."""
        identity: dict[str, Any] = {
            "versions": {"schema": SCHEMA_VERSION, "trajectory": TRAJECTORY_VERSION},
            "corpus": self.corpus,
            "teacher": self.teacher,
            "retrieval": search_settings(self.retrieval),
            "reasoning": reasoning_identity(self.reasoning),
        }
        if self.teacher == "annotation":
            rewrite = self.annotation.rewrite
            identity["annotation"] = {
                "version": ANNOTATION_VERSION,
                "missing": self.annotation.missing,
                "rewrite": None if rewrite is None else engine_identity(rewrite),
            }
        if self.teacher == "engine":
            identity |= {
                "engine": engine_identity(self.engine),
                "sampling": self.sampling.model_dump(mode="json"),
                "samples": self.asking.samples,
            }
            if self.asking.samples > 1 or self.asking.self_correct or self.before:
                # Who is asked again depends on what is right.
                identity["again"] = {
                    "match": self.asking.match,
                    "self_correct": self.asking.self_correct,
                    "until_right": self.asking.until_right,
                    "before": [store.identity for store in self.before] if self.asking.until_right else [],
                }
            if self.asking.datasets or self.asking.hops:
                identity["asked_of"] = {
                    "datasets": sorted(self.asking.datasets),
                    "hops": sorted(self.asking.hops),
                }
            if self.logits:
                identity["logits"] = self.logits
            if self.asking.first_sample:
                identity["first_sample"] = self.asking.first_sample
        return identity

    @cached_property
    def store(self) -> ShardStore:
        return ShardStore(self.folder, digest(self.identity))


def reasoning_identity(config: ReasoningConfig) -> dict[str, Any]:
    """The settings, with the demonstrations file by its content: an edited prompt is another prompt."""
    unused = {"confidence"} if config.stop == "fixed" else set[str]()
    settings = config.model_dump(mode="json", exclude={"demonstrations", "escalate", "search", *unused})
    if config.search is not None:
        settings["search"] = config.search.model_dump(mode="json")
    if (escalate := config.escalate) is not None:
        settings["escalate"] = {"below": escalate.below, "engine": engine_identity(escalate.engine)}
    if config.demonstrations is not None:
        try:
            settings["demonstrations"] = hashlib.sha256(config.demonstrations.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(
                f"reasoning.demonstrations: {config.demonstrations} cannot be read: {error}"
            ) from error
    return settings


def engine_identity(config: EngineConfig) -> dict[str, Any]:
    """The settings that decide an engine's answers, with its model and tokenizer by content."""
    settings = config.model_dump(mode="json", include={"kind", "dtype", "max_model_len", "route", "prefill"})
    return {**settings, **model_fingerprint(config)}


def absolute_reasoning(config: ReasoningConfig) -> ReasoningConfig:
    """The settings by whole paths. Raises SteperError for an unknown framework."""
    framework_of(config.framework)
    return models.absolute_reasoning(config)


def absolute_verify(config: VerifyConfig) -> VerifyConfig:
    if config.judge_engine is None:
        return config
    return config.model_copy(update={"judge_engine": absolute_engine(config.judge_engine)})


def absolute_annotation(config: AnnotationConfig) -> AnnotationConfig:
    if config.rewrite is None:
        return config
    return config.model_copy(update={"rewrite": absolute_engine(config.rewrite)})


def at_fixed_steps(config: Config) -> Config:
    """The config of a build: its chains are learned from as they were written, so nothing in them is taken back."""
    return config.model_copy(update={"reasoning": config.reasoning.model_copy(update={"stop": "fixed"})})
