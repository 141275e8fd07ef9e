"""Settings of evaluation, demo and self-distillation, and the whole of one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from steper_ray.config.base import FilePath, FolderOrName, Positive, Section
from steper_ray.config.build import BuildConfig
from steper_ray.config.data import CorpusConfig, RetrievalConfig
from steper_ray.config.reasoning import EngineConfig, ReasoningConfig, SamplingConfig
from steper_ray.config.serve import ServeConfig
from steper_ray.config.train import TrainConfig


class JudgeConfig(Section):
    """A model that rates chains by the three abilities (`steper judge`)."""

    engine: EngineConfig
    """A large model, best one that is no relation of the models it judges."""
    questions: Positive = 200
    """Questions of an evaluation that are judged, the same ones in every evaluation of a test set."""
    max_tokens: Positive = 2_000_000
    """Tokens of prompts and replies that one command spends, about: what is under way then is finished."""
    in_flight: Positive = 16
    """Prompts under way at once."""


class EvaluateConfig(Section):
    """Scores of one model over a test set."""

    corpus: CorpusConfig | None = None
    """The test set; by default the top-level corpus."""
    units: tuple[Literal["sentence", "chain"], ...] = ("sentence", "chain")
    """Step units to report."""
    in_flight: Positive = 64
    """Trajectories an engine keeps in flight."""
    engines: Positive = 2
    """Engine actors at most; each has one model loaded at a time and takes chunks of questions from one queue."""
    chunk_size: Positive = 256
    """Questions a shard: the unit that is committed, and redone after a kill."""
    max_failed: float = Field(0.01, ge=0, le=1)
    """Largest share of questions that may be owed at the end (endpoint down, engines that die): with more, the command
    exits with status 75, and the same command asks them again."""
    num_cpus: float = Field(1.0, gt=0)
    """CPUs reserved for each engine actor: the threads of an engine without a GPU."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs reserved for each engine actor; set it to `engine.tensor_parallel_size` with vLLM on a GPU cluster."""
    judge: JudgeConfig | None = None
    """The judge of chains."""
    timed_questions: Positive = 20
    """Questions that `steper paper fig6` asks one after the other, for the seconds and the energy of one."""


class DemoConfig(Section):
    """The comparison `steper demo` runs."""

    students: tuple[Literal["vanilla_kd", "vanilla_kd_equal_steps", "steper_uniform", "steper"], ...] = Field(
        ("vanilla_kd", "vanilla_kd_equal_steps", "steper"), min_length=1
    )
    """Students trained from `train.student`: vanilla-KD at StepER's epochs and at its steps, StepER with equal
    weights and with those of `train.weighting`. The last one is compared with all others, question by question."""
    few_shot_base: bool = False
    """Show the base the project's demonstrations: a model that was not trained on the format cannot know it."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds; the table shows mean and spread over them."""
    equal_steps_seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """Seeds of vanilla-KD at StepER's optimiser steps, which reads several times the tokens of any other student;
    by default `seeds`."""


class SelfDistilConfig(Section):
    """Self-distillation: students that learn from their own right trajectories, with no teacher."""

    rounds: Positive = 1
    """Rounds: in each the last student reasons over the questions without a right trajectory, what it gets right joins
    the data, and a student is trained on it, starting from `train.student` (as STaR, Zelikman et al., 2022)."""
    student: FolderOrName | None = None
    """The first student, which reasons in round 1: a folder or name; by default run_dir/models/<train.method>."""
    engine: EngineConfig | None = None
    """Engine of the students (its `model` is set to theirs); by default as `engine`."""
    samples: Positive = 1
    """Trajectories of a question at most, until one is right; more than one needs a temperature above 0."""
    temperature: float | None = Field(None, ge=0)
    """By default that of `sampling`."""


class TuneConfig(Section):
    """Settings of inference that are tried on held-out questions (`steper tune`)."""

    settings: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """The values of each setting to try, every combination of them: fields of `reasoning` and `retrieval`, such as
    {reasoning.k: [2, 4, 8], reasoning.unit: [sentence, chain]}."""
    corpus: CorpusConfig | None = None
    """The questions, never those of the test set; by default those of `corpus` that `train.validation.share` holds out
    of training."""
    first: Positive = 32
    """Questions of the first round."""
    questions: Positive = 288
    """Questions of the last round, or all there are."""
    keep: float = Field(1 / 3, gt=0, lt=1)
    """Share of the candidates that goes on to the next round, which asks 1 / `keep` times the questions."""
    by: Literal["em", "f1", "acc"] = "em"
    """The score that decides; of equals the one that writes fewer tokens."""

    @field_validator("settings")
    @classmethod
    def _known(cls, given: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for name, values in given.items():
            section, _, field = name.partition(".")
            sections: dict[str, type[Section]] = {"reasoning": ReasoningConfig, "retrieval": RetrievalConfig}
            if section not in sections or field.partition(".")[0] not in sections[section].model_fields:
                raise ValueError(f"{name}: no field of reasoning or retrieval, such as reasoning.k")
            if not values:
                raise ValueError(f"{name}: no values to try: give a list, such as [2, 4, 8]")
        return given


class Config(Section):
    """The whole of one run."""

    run_dir: FilePath = Path("runs/default")
    """Everything the run writes lies below it."""
    corpus: CorpusConfig = CorpusConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    engine: EngineConfig = EngineConfig()
    """The model that reasons: the teacher in build, the judged model in evaluate, the student in serve."""
    sampling: SamplingConfig = SamplingConfig()
    reasoning: ReasoningConfig = ReasoningConfig()
    build: BuildConfig = BuildConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = ServeConfig()
    demo: DemoConfig = DemoConfig()
    self_distil: SelfDistilConfig = SelfDistilConfig()
    tune: TuneConfig = TuneConfig()

    @model_validator(mode="after")
    def _verifiers(self) -> Config:
        verify = self.build.verify
        if self.build.teacher == "annotation":
            if verify.agreement is not None:
                raise ValueError("build.verify.agreement: annotations have no other drafts; leave it out")
            if verify.judge is not None and verify.judge_engine is None:
                raise ValueError(
                    "build.verify.judge: annotations have no model; set build.verify.judge_engine"
                )
        return self

    @model_validator(mode="after")
    def _routes(self) -> Config:
        for engine in (self.engine, *(teacher.engine for teacher in self.build.teachers)):
            if engine.kind != "openai" or engine.tokenizer:
                continue
            if (engine.route, self.reasoning.format) == ("chat", "text"):
                raise ValueError(
                    "engine.route=chat sends turns: leave reasoning.format at auto, or set engine.route=completions"
                )
            if (engine.route, self.reasoning.format) == ("completions", "chat"):
                raise ValueError(
                    "reasoning.format=chat over engine.route=completions needs the model's chat template: set "
                    "engine.tokenizer, or engine.route=chat"
                )
        return self

    @model_validator(mode="after")
    def _logits(self) -> Config:
        if not self.build.logits:
            return self
        for engine in (self.engine, *(teacher.engine for teacher in self.build.teachers)):
            if engine.kind == "openai" and not engine.tokenizer:
                raise ValueError(
                    "build.logits needs the ids of the tokens, which an endpoint gives for prompts of ids: set "
                    "engine.tokenizer to the model's, or build.logits=0"
                )
        if self.reasoning.escalate is not None:
            raise ValueError(
                "build.logits with reasoning.escalate: two models write the tokens, one of them in the other's place: "
                "leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _samples(self) -> Config:
        if self.build.samples > 1 and self.build.teacher == "annotation":
            raise ValueError("build.samples > 1: annotations give one chain a question; set build.samples=1")
        asked = [(self.build.samples, None), *((t.samples, t.temperature) for t in self.build.teachers)]
        if any(n > 1 and not (self.sampling.temperature if own is None else own) for n, own in asked):
            raise ValueError(
                "build.samples > 1 with sampling.temperature 0 gives the same trajectory each time: "
                "set sampling.temperature, such as 0.7"
            )
        return self

    def dump(self) -> str:
        """The resolved config as YAML; `load_config` reads it back to an equal config."""
        return yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False)

    def save(self, folder: Path) -> None:
        """Writes config.yaml into the folder. Raises StorageError."""
        from steper_ray.core.files import write_text  # brings pyarrow, which reading a config does not need

        write_text(folder / "config.yaml", self.dump())
