"""Measures of trajectories: the cost of their steps, the lengths of their examples, repetitions. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from statistics import quantiles

from steper_ray.core.answers import comparable
from steper_ray.schema import Ability, Question, Step, Trajectory, ability_of


@dataclass(slots=True)
class StepCost:
    """Tokens and seconds of all generations at one step; requests run side by side, so the
    seconds are waits added up and not time on a clock."""

    n: int = 0
    passages: int = 0
    """Those that were new at the step."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    thinking_tokens: int = 0
    retrieval_seconds: float = 0.0
    generation_seconds: float = 0.0

    def add(self, step: Step) -> None:
        self.n += 1
        self.passages += len(step.hits)
        self.prompt_tokens += step.usage.prompt_tokens
        self.cached_tokens += step.usage.cached_tokens
        self.completion_tokens += step.usage.completion_tokens
        self.thinking_tokens += step.usage.thinking_tokens
        self.retrieval_seconds += step.retrieval_seconds
        self.generation_seconds += step.generation_seconds

    @classmethod
    def total(cls, costs: Iterable[StepCost]) -> StepCost:
        """All steps together."""
        rows = [astuple(cost) for cost in costs]
        return cls(*map(sum, zip(*rows, strict=True))) if rows else cls()

    @property
    def cached(self) -> float:
        """Share of the prompt tokens that came from the engine's prefix cache, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def fresh_tokens(self) -> int:
        """Tokens of prompts that the engine had to compute."""
        return self.prompt_tokens - self.cached_tokens

    @property
    def retrieval_share(self) -> float:
        """Share of all waits that was retrieval, 0 to 1."""
        waits = self.retrieval_seconds + self.generation_seconds
        return self.retrieval_seconds / waits if waits else 0.0

    def engine_seconds(self, in_flight: int) -> float:
        """Least seconds of one engine, if always this many trajectories ran side by side."""
        return (self.retrieval_seconds + self.generation_seconds) / in_flight


@dataclass(slots=True)
class ExampleLengths:
    """The examples of one ability: histograms of their passages, words and tokens.

    A prompt is passages and question, a target the chain up to the step. Tokens are the teacher's: what it read at that
    step, demonstrations and chain included, and what it wrote up to there; only where its engine reported them.
    """

    passages: Counter[int] = field(default_factory=Counter)
    prompt_words: Counter[int] = field(default_factory=Counter)
    target_words: Counter[int] = field(default_factory=Counter)
    tokens_read: Counter[int] = field(default_factory=Counter)
    tokens_written: Counter[int] = field(default_factory=Counter)

    @property
    def n(self) -> int:
        return self.passages.total()


def add_examples(lengths: dict[Ability, ExampleLengths], trajectory: Trajectory) -> None:
    """Counts the examples that a kept trajectory gives, one a step."""
    passages = target = written = 0
    prompt = len(trajectory.question.text.split())
    for step in trajectory.steps:
        passages += len(step.hits)
        prompt += sum(len(f"{hit.passage.title} {hit.passage.text}".split()) for hit in step.hits)
        target += len(step.reasoning.split())
        written += step.usage.completion_tokens
        of = lengths.setdefault(ability_of(step.index, len(trajectory.steps)), ExampleLengths())
        of.passages[passages] += 1
        of.prompt_words[prompt] += 1
        of.target_words[target] += 1
        if step.usage.prompt_tokens:
            of.tokens_read[step.usage.prompt_tokens] += 1
            of.tokens_written[written] += 1


@dataclass(slots=True)
class Repeats:
    """Texts that come twice, compared as answers are: without case, punctuation and articles."""

    texts: int = 0
    """Questions whose text came before."""
    chains: int = 0
    """Kept trajectories whose whole chain came before, of the same question or another."""
    _seen: set[bytes] = field(default_factory=set)

    def add_question(self, question: Question) -> None:
        self.texts += self._came("text", comparable(question.text))

    def add_chain(self, trajectory: Trajectory) -> None:
        self.chains += self._came("chain", *map(comparable, trajectory.chain))

    def _came(self, *parts: str) -> bool:
        """Whether it was asked for before. Hashes, not texts: a million of them are 50 MB."""
        key = hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()
        came = key in self._seen
        self._seen.add(key)
        return came


def spread(counts: Counter[int]) -> tuple[int, int, int] | None:
    """Median, 95th percentile and largest; None of nothing."""
    values = sorted(counts.elements())
    if len(values) < 2:
        return (values[0],) * 3 if values else None
    cuts = quantiles(values, n=20, method="inclusive")
    return round(cuts[9]), round(cuts[18]), max(values)
