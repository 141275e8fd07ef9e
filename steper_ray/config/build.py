"""Settings of trajectories, their verifiers and which of them are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from steper_ray.config.base import Positive, Section
from steper_ray.config.reasoning import EngineConfig


class VerifyConfig(Section):
    """The least score that each step of a trajectory must reach to be learned from; what is not set is not checked.

    The paper's filter sees the final answer alone. Changing a threshold asks no teacher again.
    """

    grounding: float | None = Field(None, ge=0, le=1)
    """Share of a step's names, numbers and answer that stand in the passages seen so far."""
    support: float | None = Field(None, ge=0, le=1)
    """Share of them that one single passage holds; for teachers that state one fact a step."""
    confidence: float | None = Field(None, ge=0, le=1)
    """The teacher's probability of a token, geometric mean over the step."""
    agreement: float | None = Field(None, ge=0, le=1)
    """Share of `agreement_drafts` other drafts of the step, by the teacher, that claim the same."""
    agreement_drafts: Positive = 4
    agreement_temperature: float = Field(0.7, gt=0)
    judge: float | None = Field(None, ge=0, le=1)
    """A model's probability that the step follows from the passages and helps."""
    judge_engine: EngineConfig | None = None
    """The judge, an endpoint (`kind: openai`); by default the teacher judges itself."""

    @model_validator(mode="after")
    def _endpoint(self) -> VerifyConfig:
        if self.judge_engine is not None and self.judge_engine.kind != "openai":
            raise ValueError(
                "judge_engine.kind must be 'openai': the GPUs of an engine actor hold the teacher; "
                "serve the judge and name its url"
            )
        return self


class TeacherConfig(Section):
    """One of several teachers. What is not set is that of `sampling` and `build`."""

    engine: EngineConfig
    datasets: tuple[str, ...] = ()
    """Data sets of the questions it is asked, as the corpus names them (`musique`, ...); by default all."""
    hops: tuple[Positive, ...] = ()
    """Hops of the questions it is asked; by default any number, and those whose number is not known."""
    samples: Positive = 1
    temperature: float | None = Field(None, ge=0)
    engines: Positive | None = None
    in_flight: Positive | None = None
    num_cpus: float | None = Field(None, gt=0)
    num_gpus: float | None = Field(None, ge=0)


class AnnotationConfig(Section):
    """How chains are written from gold decompositions (`build.teacher=annotation`)."""

    missing: Literal["inject", "drop", "keep"] = "inject"
    """For a fact whose passage is not in the prompt: `inject` puts the passage among the step's hits,
    `drop` omits the trajectory, `keep` states the fact all the same, which teaches to invent first and search later.
    """
    rewrite: EngineConfig | None = None
    """A model that writes each fact as one sentence; one that loses or adds a name, a number or the answer is not
    taken. By default rules write them."""


class BuildConfig(Section):
    """Trajectories, and which of them are kept."""

    teacher: Literal["engine", "annotation"] = "engine"
    """A model that reasons, or the chains written from gold decompositions and evidences (no model)."""
    annotation: AnnotationConfig = AnnotationConfig()
    match: Literal["exact", "contains"] = "exact"
    """The filter's rule for a right answer (the paper does not say)."""
    teachers: tuple[TeacherConfig, ...] = ()
    """Several teachers, asked one after the other, so that each has all GPUs; by default `engine` alone."""
    samples: Positive = 1
    """Trajectories of each question; more than one needs a `sampling.temperature` above 0."""
    self_correct: bool = False
    """A second chance for each wrong answer: the teacher sees its own wrong chain, never the right answer. The examples
    do not show it."""
    ask: Literal["all", "until_right"] | None = None
    """Take all samples of all teachers, or no more once an answer is right; by default `until_right` where `keep` is
    `first`."""
    keep: Literal["first", "all", "majority"] = "first"
    """Of a question's right trajectories: the first, all that differ, or the first if most samples agree on a right
    answer (a right answer that most samples do not give was luck; second chances have no vote)."""
    logits: int = Field(0, ge=0, le=64)
    """Likeliest tokens that are kept with the teacher's log-probabilities at each token it writes, for a student that
    learns from them (`train.soft_targets.teacher=build`). vLLM, its server with `engine.tokenizer`, and transformers
    give them; they cost no further pass of the teacher."""
    verify: VerifyConfig = VerifyConfig()
    """Checks of every step, after the answer's."""
    shard_size: Positive = 64
    """Questions a shard: the unit that is committed, and redone after a kill."""
    max_failed: float = Field(0.01, ge=0, le=1)
    """Largest share of questions that may be owed at the end (endpoint down, engines that die): with more, the command
    exits with status 75, and the same command asks them again."""
    engines: Positive = 1
    """Engine actors, each with `num_cpus`, or `tensor_parallel_size` GPUs on a GPU cluster."""
    in_flight: Positive = 128
    """Trajectories an engine keeps in flight: more than its `max_batch`, so that the batch stays full while some
    retrieve; no more than its key-value cache holds, or their prompts are read again at each step."""
    num_cpus: float = Field(1.0, gt=0)
    """CPUs reserved for each engine actor: the threads of an engine without a GPU."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs reserved for each engine actor; set it to `tensor_parallel_size` with vLLM on a GPU cluster."""

    @property
    def until_right(self) -> bool:
        """Whether a question is asked no more once an answer is right."""
        return (self.ask or ("until_right" if self.keep == "first" else "all")) == "until_right"

    @model_validator(mode="after")
    def _choice(self) -> BuildConfig:
        if self.keep != "first" and self.until_right:
            raise ValueError(
                f"keep '{self.keep}' chooses among all samples: leave `ask` out, or set keep=first"
            )
        if self.teacher == "annotation" and self.logits:
            raise ValueError(
                "annotations have no log-probabilities: leave `logits` out, or set teacher=engine"
            )
        if self.teacher == "annotation" and (self.teachers or self.self_correct):
            raise ValueError("annotations are no model: leave `teachers` and `self_correct` out")
        if self.teachers and self.samples > 1:
            raise ValueError("with `teachers` each has its own `samples`: leave build.samples out")
        return self
