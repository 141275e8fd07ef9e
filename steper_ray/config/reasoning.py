"""Settings of a model, of how it decodes, and of the multi-step loop."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from steper_ray.config.base import FilePath, FolderOrName, Positive, Section


class EngineConfig(Section):
    """A model and what runs it."""

    kind: Literal["transformers", "vllm", "openai"] = "transformers"
    model: FolderOrName = "miniature:teacher"
    """A Hugging Face folder or hub name, `miniature:base`, `miniature:teacher`, or the name an endpoint serves."""
    tokenizer: FolderOrName | None = None
    """A folder or hub name, if it is not the model's own."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository brings along. Read it first: it may do anything."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    max_model_len: Positive = 2048
    """Longest prompt and completion together, in tokens."""
    max_batch: Positive = 64
    """Most requests that run together in one engine. An endpoint gets fewer at once while it refuses more."""
    tensor_parallel_size: Positive = 1
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    url: str | None = None
    """Base URL of an OpenAI-compatible endpoint, such as http://host:8000/v1."""
    route: Literal["auto", "completions", "chat"] = "auto"
    """An endpoint's route: `completions` takes text, or token ids with `tokenizer`; `chat` takes messages, which
    hosted providers want. `auto`: completions with `tokenizer`, else chat where the endpoint has it."""
    prefill: Literal["auto", "continue", "prefix", "last", "none"] = "auto"
    """How the chat route goes on with a reply that has begun: vLLM's `continue_final_message`, a `prefix` mark
    (DeepSeek, Mistral), a `last` message of the assistant as it is, or `none`: the chain stands in the user's turn.
    `auto` tries them with a sentence that is cut within a word, before the first question."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the endpoint's key. The key itself is never in a config."""
    timeout_s: float = Field(120.0, gt=0)
    """Longest wait for one generation with its retries, from when the engine takes it: the time in which a limit
    below keeps it waiting does not count."""
    retries: int = Field(8, ge=0, le=100)
    """Further attempts when an endpoint is busy, unreachable or fails before its first token; the waits between them
    double from half a second to half a minute, at random below that."""
    requests_per_minute: Positive | None = None
    """Most requests that an endpoint is sent; each of `build.engines` clients counts its own."""
    tokens_per_minute: Positive | None = None
    """Most tokens of prompts and completions together, counted like the requests."""

    @model_validator(mode="after")
    def _url(self) -> EngineConfig:
        if self.kind == "openai" and not self.url:
            raise ValueError("kind 'openai' needs `url`, such as http://host:8000/v1")
        if self.route == "chat" and self.tokenizer:
            raise ValueError("route 'chat' takes messages: leave `tokenizer` out, or set route=completions")
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
    """Every step of every question and sample draws separate numbers from it, the same in every run."""


class PromptConfig(Section):
    """How a prompt is put to a model: what training, rollouts, evaluation and service share."""

    format: Literal["auto", "text", "chat"] = "auto"
    """`chat`: in the turns of the model's chat template, the chain as the beginning of the reply; `text`: without any.
    `auto`: chat where the tokenizer has a template, and a student as it was trained. An endpoint without
    `engine.tokenizer` gets what its route takes (`engine.route`)."""
    instruction: str | None = None
    """The system message of a chat, or the first paragraph of the user's turn where the template has no system role;
    by default the framework's. An empty one leaves the template's default."""
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template, such as `{enable_thinking: false}`."""


class EscalateConfig(Section):
    """A larger model that writes again what the model is not sure of."""

    engine: EngineConfig
    """Such as one behind an endpoint. It is sent the same prompts, in its own tokens."""
    below: float = Field(0.9, gt=0, le=1)
    """A step whose least likely token has a probability below this is thrown away, and written by the larger model."""


class SearchConfig(Section):
    """Several candidates of each step are written, and the best chains go on."""

    candidates: int = Field(4, ge=2, le=32)
    """Of each step of each chain: one as `sampling` says, the others at `temperature`."""
    beams: Positive = 1
    """Chains that go on after each step."""
    temperature: float = Field(0.7, gt=0)
    score: Literal["logprob", "grounding", "agreement"] = "logprob"
    """By which the best ones are found: mean log-probability of a token; share of a step's claims that are found in the
    passages; share of a step's candidates that say the same."""


class ReasoningConfig(PromptConfig):
    """The multi-step loop."""

    framework: str = Field("ircot", pattern=r"^\w+$|^[\w.]+:\w+$")
    """How prompts are laid out and chains cut: `ircot`, `self_ask`, `react`, `iter_retgen` (a baseline,
    no teacher), or `package.module:Name` for your own."""
    unit: Literal["sentence", "chain"] = "sentence"
    """Text of one step: cut after the framework's step (IRCoT: a sentence), or on to the end of sequence."""
    max_steps: Positive = 5
    """S (the paper: 5). What is taken back takes steps too: give `confident` some more than the longest chain needs."""
    stop: Literal["fixed", "confident", "stable"] = "confident"
    """The rule by which an answer counts. `fixed`: as soon as it is stated (the paper). `confident`: a sentence below
    `confidence` is taken back, and a further step, up to `max_steps`, writes it again with the passages that it finds;
    an answer that is still doubted is given with stop reason `unsure`. `stable`: when two successive steps state the
    same one. A build always runs `fixed`. Without log-probabilities `confident` behaves like `fixed` (logged once).
    On the miniature `confident` has the most right answers for its steps (docs/benchmarks.md)."""
    confidence: float = Field(0.5, ge=0, le=1)
    """For `confident`: the least probability of a sentence's least likely token; 0 takes nothing back. Above 0.5 the
    miniature's students spend many more steps, most of them on what is right (unit `chain` gains by that)."""
    escalate: EscalateConfig | None = None
    """Let a larger model write the steps that the model doubts; not in training, which asks the student alone."""
    search: SearchConfig | None = None
    """Write several candidates of each step; not in training, which asks for one."""
    k: int = Field(4, ge=0)
    """Passages a step (the paper: 4). 0: none are searched for, so a model answers from what it knows."""
    max_passages: Positive = 20
    """Most passages in one prompt; later ones are dropped."""
    max_passage_chars: Positive = 4000
    """Most characters of one passage, title and text together: 4,000 are about 1,000 tokens of English, and up to 4,000
    of Chinese. All passages of a question have to fit into `engine.max_model_len`. `steper index` counts longer
    ones."""
    long_passages: Literal["cut", "leave_out"] = "cut"
    """A longer passage that was found is `cut` behind a sentence or word, or left out (`leave_out`)."""
    max_question_chars: Positive = 4000
    """A longer question is refused before anything is retrieved."""
    deadline_s: float | None = Field(None, gt=0)
    """Longest time for one question; then the best answer so far with stop reason `deadline`."""
    demonstrations: FilePath | None = None
    """Text put before every prompt; by default the framework's own where `few_shot` is set."""
    few_shot: bool = False
    """Show the project's own demonstrations (for models that were not trained on the format)."""

    @model_validator(mode="after")
    def _one_way(self) -> ReasoningConfig:
        if self.search is not None and self.escalate is not None:
            raise ValueError(
                "reasoning.search and reasoning.escalate: set one of them, and leave the other out"
            )
        return self

    @property
    def prompt(self) -> PromptConfig:
        """The part that training shares."""
        return PromptConfig(**{name: getattr(self, name) for name in PromptConfig.model_fields})
