"""Configuration: one pydantic model a stage, all of them sections of one YAML file (see config_file.py).

The resolved config is written beside every result. It knows no other room of the project.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Weights = tuple[float, float, float]


class Section(BaseModel):
    """A part of the config: unknown fields are errors, defaults are checked too."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class MiniatureConfig(Section):
    """The embedded made-up worlds."""

    seed: int = 1
    """Seed of the worlds, their names and questions."""
    worlds: Positive = 60
    """Number of worlds, about 47 passages each."""
    questions_per_world: Positive = 8
    split: Literal["train", "test"] = "train"
    """Names of one split never occur in the other."""


class CorpusConfig(Section):
    """Where questions and passages come from."""

    kind: Literal["miniature", "hotpotqa", "2wiki", "musique", "plain"] = "miniature"
    """An official file format, `plain` (JSONL or Parquet of passages and questions), or the made-up worlds."""
    questions: Path | None = None
    """Questions file (all kinds but `miniature`)."""
    passages: Path | None = None
    """Passages file; with an official format it may be left out: the questions' own contexts are pooled."""
    on_error: Literal["stop", "skip"] = "stop"
    """What a malformed line does: stop with its file and line, or be counted, named and skipped."""
    limit: Positive | None = None
    """Take only the first so many questions."""
    miniature: MiniatureConfig = MiniatureConfig()

    @model_validator(mode="after")
    def _files(self) -> CorpusConfig:
        if self.kind != "miniature" and self.questions is None:
            raise ValueError(f"kind '{self.kind}' needs `questions`: the path of a questions file")
        if self.kind == "plain" and self.passages is None:
            raise ValueError("kind 'plain' needs `passages`: the path of a passages file")
        return self


class RetrievalConfig(Section):
    """BM25 retrieval (the paper: BM25, top 4 a step)."""

    kind: Literal["bm25s", "lucene"] = "bm25s"
    """bm25s runs everywhere; lucene is Pyserini and needs a Java 21+ with jdk.incubator.vector."""
    index_dir: Path | None = None
    """Where the index lies or is built; by default below `<run_dir>/index`, one folder a corpus and setting."""
    k1: float = Field(1.2, ge=0)
    b: float = Field(0.75, ge=0, le=1)


class EngineConfig(Section):
    """A model and what runs it."""

    kind: Literal["transformers", "vllm", "openai"] = "transformers"
    model: str = "miniature:teacher"
    """A Hugging Face folder or hub name, `miniature:base`, `miniature:teacher`, or the name an endpoint serves."""
    tokenizer: str | None = None
    """A folder or hub name, if it is not the model's own."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    max_model_len: Positive = 2048
    """Longest prompt and completion together, in tokens."""
    max_batch: Positive = 64
    """Most requests that run together in one engine."""
    tensor_parallel_size: Positive = 1
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    url: str | None = None
    """Base URL of an OpenAI-compatible endpoint, such as http://host:8000/v1."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the endpoint's key. The key itself is never in a config."""
    timeout_s: float = Field(120.0, gt=0)
    """Longest wait for one generation."""

    @model_validator(mode="after")
    def _url(self) -> EngineConfig:
        if self.kind == "openai" and not self.url:
            raise ValueError("kind 'openai' needs `url`, such as http://host:8000/v1")
        return self


class SamplingConfig(Section):
    """How one generation decodes."""

    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: Positive = 128
    """Most tokens of one step."""
    min_tokens: int = Field(1, ge=0)
    """Tokens before the end of sequence is allowed: a step says something, even where its retrieval found nothing
    new and the prompt is that of an example which ends there. An endpoint that does not know it may ignore it."""
    seed: int = 0
    """Every step of every question and sample draws numbers of its own from it, the same ones in every run."""


class ReasoningConfig(Section):
    """The multi-step loop."""

    framework: Literal["ircot", "self_ask"] = "ircot"
    unit: Literal["sentence", "chain"] = "sentence"
    """What one step generates: cut after the first sentence (IRCoT), or on to the end of sequence."""
    max_steps: Positive = 5
    """S (the paper: 5)."""
    k: Positive = 4
    """Passages a step (the paper: 4)."""
    max_passages: Positive = 20
    """Most passages in one prompt; later ones are dropped."""
    max_question_chars: Positive = 4000
    """A longer question is refused before anything is retrieved."""
    deadline_s: float | None = Field(None, gt=0)
    """Longest time for one question; then the best answer so far with stop reason `deadline`."""
    demonstrations: Path | None = None
    """Text put before every prompt; by default the framework's own where `few_shot` is set."""
    few_shot: bool = False
    """Show the project's own demonstrations (for models that were not trained on the format)."""


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


class BuildConfig(Section):
    """Trajectories and step-wise examples."""

    teacher: Literal["engine", "annotation"] = "engine"
    """A model that reasons, or the chains written from gold decompositions and evidences (no model)."""
    match: Literal["exact", "contains"] = "exact"
    """When an answer counts as right for the filter (the paper does not say)."""
    samples: Positive = 1
    """Trajectories of each question; more than one needs a `sampling.temperature` above 0."""
    keep: Literal["first", "all", "majority"] = "first"
    """Of a question's right trajectories: the first, all that differ, or the first if most samples agree on a right
    answer (a right answer that most samples do not give was luck)."""
    verify: VerifyConfig = VerifyConfig()
    """Checks of every step, after the answer's."""
    shard_size: Positive = 64
    """Questions a shard: the unit that is committed, and redone after a kill."""
    engines: Positive = 1
    """Engine actors, each with `num_cpus`, or `tensor_parallel_size` GPUs on a GPU cluster."""
    in_flight: Positive = 64
    """Trajectories an engine keeps in flight."""
    num_cpus: float = Field(1.0, gt=0)
    """CPUs reserved for each engine actor."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs reserved for each engine actor; set it to `tensor_parallel_size` with vLLM on a GPU cluster."""


class TrainConfig(Section):
    """One student: the objective, the ZeRO-3 loop and its checkpoints."""

    student: str = "miniature:base"
    """The model to start from: a Hugging Face folder or hub name, or `miniature:base`."""
    method: Literal["steper", "vanilla_kd"] = "steper"
    """StepER learns all steps; vanilla-KD the final step alone."""
    weighting: Literal["difficulty", "uniform", "fixed"] = "difficulty"
    """Difficulty-aware (a learned sigma a task), the plain sum, or `fixed_weights`."""
    fixed_weights: Weights = (1.0, 1.0, 1.0)
    """Weights of initialization, expansion, aggregation where `weighting` is fixed (Table 2)."""
    normalize: Literal["per_task", "per_question"] = "per_task"
    """A task's loss is the mean over its examples, or its sum over the questions divided by their number (the
    paper's equation, where a question with more expansion steps has more of them in the loss)."""
    sigma_lr: float = Field(0.02, gt=0)
    """Learning rate of log sigma (its own optimiser; the paper does not say)."""
    log_sigma_bounds: tuple[float, float] = (-1.5, 1.5)
    """Bounds of log sigma: keeps a task that is learned from taking over the sum."""
    epochs: Positive = 2
    max_steps: Positive | None = None
    """Optimiser steps, if not set by `epochs`: the data is repeated as often as it takes."""
    lr: float = Field(5e-6, gt=0)
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    batch_examples: Positive = 64
    """Step-wise examples of one optimiser step, over all workers. Trajectories are kept whole: a batch takes
    round(batch_examples / mean examples a trajectory) of them, so StepER and vanilla-KD (one example each)
    make equally large steps, and vanilla-KD makes fewer of them an epoch."""
    row_tokens: Positive = 2048
    """Tokens of one packed row; no trajectory may be longer."""
    rows_per_micro_batch: Positive = 1
    """Rows of one forward pass on one worker: the lever for memory."""
    packing: Literal["tree", "padded"] = "tree"
    """Share a trajectory's passages between its steps (exact), or one padded row an example."""
    attention: Literal["blocks", "dense"] = "blocks"
    """Leave out what no token of a packed row sees, or mask it: same gradients; `dense` is for models whose layers do
    not pass on what blocks need."""
    gradient_checkpointing: bool = False
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    seed: int = 0
    workers: Positive = 2
    use_gpu: bool = False
    num_cpus: float = Field(1.0, gt=0)
    """CPUs reserved for each worker."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    offload: bool = False
    """Keep parameters and optimiser state in host memory (GPU only)."""
    checkpoint_every: Positive = 200
    """Optimiser steps between checkpoints."""
    keep_checkpoints: Positive = 2
    max_failures: int = Field(2, ge=0)
    """Worker failures that are restarted from the last checkpoint."""

    @model_validator(mode="after")
    def _bounds(self) -> TrainConfig:
        if self.log_sigma_bounds[0] >= self.log_sigma_bounds[1]:
            raise ValueError("log_sigma_bounds must be (low, high) with low < high")
        return self


class EvaluateConfig(Section):
    """Scores of one model over a test set."""

    corpus: CorpusConfig | None = None
    """The test set; by default the top-level corpus."""
    units: tuple[Literal["sentence", "chain"], ...] = ("sentence", "chain")
    """Which step units to report."""
    in_flight: Positive = 64
    """Trajectories an engine keeps in flight."""
    engines: Positive = 2
    """Engine actors at most; each has one model loaded at a time and takes chunks of questions from one queue."""
    chunk_size: Positive = 256
    """Questions an engine takes at a time: what is done again if it dies."""
    num_cpus: float = Field(1.0, gt=0)
    """CPUs reserved for each engine actor."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs reserved for each engine actor; set it to `engine.tensor_parallel_size` with vLLM on a GPU cluster."""


class DemoConfig(Section):
    """The comparison `steper demo` runs."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds; the table shows mean and spread over them."""


class ServeConfig(Section):
    """The reasoner endpoint."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    replicas: Positive = 1
    """Replicas of the engine deployment."""
    num_cpus: float = Field(1.0, gt=0)
    """CPUs reserved for each replica."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs reserved for each replica; set it to `engine.tensor_parallel_size` with vLLM on a GPU cluster."""
    max_ongoing_requests: Positive = 64
    """Questions that a replica works on at once."""
    max_queued_requests: Positive = 256
    """Questions that wait when all replicas are busy; one more is refused with 429."""
    request_timeout_s: float = Field(60.0, gt=0)
    """End-to-end deadline of one question."""
    token_env: str = "STEPER_API_TOKEN"
    """Name of the environment variable with the bearer token; unset: only loopback clients are served."""


class Config(Section):
    """The whole of one run."""

    run_dir: Path = Path("runs/default")
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
    def _samples(self) -> Config:
        if self.build.samples > 1 and self.build.teacher == "annotation":
            raise ValueError("build.samples > 1: annotations give one chain a question; set build.samples=1")
        if self.build.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                "build.samples > 1 with sampling.temperature 0 gives the same trajectory each time: "
                "set sampling.temperature, such as 0.7"
            )
        return self

    def dump(self) -> str:
        """The resolved config as YAML; `load_config` reads it back to an equal config."""
        return yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(self.dump(), encoding="utf-8")
