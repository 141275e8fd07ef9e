"""The types that pass through the doors between rooms.

Frozen dataclasses with plain fields, so that they can be hashed, compared, pickled by Ray and written to Parquet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Ability(StrEnum):
    """The ability one step-wise example teaches (StepER, Fig. 1): the task its loss belongs to."""

    INITIALIZATION = "initialization"
    EXPANSION = "expansion"
    AGGREGATION = "aggregation"


def ability_of(step: int, n_steps: int) -> Ability:
    """The ability that step `step` of `n_steps` (from 1) teaches.

    The last step aggregates, the first of several initializes, those between expand. So a trajectory of one
    step yields only aggregation, and one of two yields initialization and aggregation.
    """
    if step == n_steps:
        return Ability.AGGREGATION
    return Ability.INITIALIZATION if step == 1 else Ability.EXPANSION


class StopReason(StrEnum):
    """Why a trajectory ended. Exactly one holds for every trajectory."""

    ANSWERED = "answered"
    UNSURE = "unsure"
    """An answer was stated, but the stopping policy did not trust it (reasoning.stop)."""
    STEP_LIMIT = "step_limit"
    EMPTY = "empty"
    DEADLINE = "deadline"
    RETRIEVER_FAILED = "retriever_failed"
    GENERATOR_FAILED = "generator_failed"
    REJECTED = "rejected"
    """The question or its prompt cannot be asked: empty, longer than a limit, or refused by the engine."""

    @property
    def is_owed(self) -> bool:
        """Whether circumstances ended it (a busy endpoint, a time-out, a lost engine or index shard) and not the
        question: such a trajectory is no result, and the question is asked again."""
        return self in (StopReason.RETRIEVER_FAILED, StopReason.GENERATOR_FAILED)


@dataclass(frozen=True, slots=True)
class Passage:
    """One unit of retrieval. `id` is unique in its corpus."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found for a query, with the retriever's score (higher is better)."""

    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class SubQuestion:
    """One hop of a gold decomposition. In `question`, `#n` stands for the answer of hop n (from 1)."""

    question: str
    answer: str
    support_id: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question with every accepted answer (the first is the canonical one, the rest are aliases)."""

    id: str
    text: str
    answers: tuple[str, ...]
    gold_ids: tuple[str, ...] = ()
    hops: int | None = None
    decomposition: tuple[SubQuestion, ...] = ()
    dataset: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one step: read, written, read from the engine's prefix cache, written while thinking, and written by
    the larger model of `reasoning.escalate`.

    Those of thinking and of the larger model are among the written ones; the chain does not hold what was thought.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    thinking_tokens: int = 0
    larger_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """The likeliest tokens at each token that a step wrote, with the model's log-probabilities (`build.logits`).

    `written` are the ids of what was written, from the step's first token on; `ids` and `logprobs` those of the
    likeliest, likeliest first, the same number for each token. `vocabulary` is the fingerprint of what the ids mean.
    """

    vocabulary: str
    written: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One round of retrieval and reasoning.

    `hits` are the passages that are NEW at this step, in prompt order; the prompt of step s shows the hits
    of steps 1..s. `reasoning` is what the generator added to the chain (one or more sentences, stripped), and
    `taken_back` what it wrote after that and the stopping policy took back: no later prompt shows it. `confidence` is
    the probability of the least likely token of both, 0 to 1; `mean_logprob` and `usage` count all that was generated.
    `duplicates` passages were found and not added: found before, too long, or the prompt was full.
    Of annotated chains alone: `supported` says whether the fact of this step has its passage in the prompt;
    `injected` is the id of the hit that was put there for it and not found (`build.annotation.missing`).
    """

    index: int
    query: str
    hits: tuple[Hit, ...]
    reasoning: str
    mean_logprob: float | None = None
    usage: Usage = field(default_factory=Usage)
    retrieval_seconds: float = 0.0
    generation_seconds: float = 0.0
    taken_back: str = ""
    confidence: float | None = None
    duplicates: int = 0
    supported: bool | None = None
    injected: str | None = None
    top_logprobs: TopLogprobs | None = None


def trajectory_id(question: str, sample: int, attempt: int) -> str:
    """The id of one trajectory of a question."""
    if attempt:
        return f"{question}~{sample}.{attempt}"
    return f"{question}~{sample}" if sample else question


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A question reasoned to its end. Errors are data: `stop_reason` and `error` say what went wrong.

    `source` is the teacher, `sample` numbers the trajectories of one question, from 0, over all teachers; `attempt`
    is 1 for a second chance, which saw the wrong chain of the same sample's first attempt.
    """

    question: Question
    framework: str
    steps: tuple[Step, ...]
    answer: str
    stop_reason: StopReason
    error: str | None = None
    source: str = ""
    sample: int = 0
    attempt: int = 0

    @property
    def id(self) -> str:
        """The question's id; further samples and second chances have their numbers behind it."""
        return trajectory_id(self.question.id, self.sample, self.attempt)

    @property
    def passages(self) -> tuple[Passage, ...]:
        """All passages in prompt order."""
        return tuple(hit.passage for step in self.steps for hit in step.hits)

    @property
    def chain(self) -> tuple[str, ...]:
        """The reasoning of each step, in order."""
        return tuple(step.reasoning for step in self.steps)


@dataclass(frozen=True, slots=True)
class StepScore:
    """One verifier's score for one step (1-based), 0 to 1; None where the step claims nothing to be checked.

    `question_id` is the trajectory's id.
    """

    question_id: str
    step: int
    verifier: str
    score: float | None


@dataclass(frozen=True, slots=True)
class StepExample:
    """(question, passages up to step s) -> the cumulative chain up to step s (StepER, Fig. 1 and 2).

    `passages` holds the passages of each step 1..s, `chain` the reasoning of each step 1..s: the target.
    `question_id` is the trajectory's id: examples that share it share one chain.
    """

    id: str
    question_id: str
    step: int
    n_steps: int
    ability: Ability
    question: str
    passages: tuple[tuple[Passage, ...], ...]
    chain: tuple[str, ...]
    framework: str = "ircot"
