"""A trajectory under way: its steps, the passages in its prompt, its policy, and what the next step asks. Pure."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from steper_ray.config import ReasoningConfig
from steper_ray.frameworks import rewrites
from steper_ray.frameworks.base import Framework
from steper_ray.generation.base import Prompt
from steper_ray.prompts import PromptEncoder, PromptWriter
from steper_ray.reasoning.draft import Draft
from steper_ray.reasoning.events import PassagesFound
from steper_ray.reasoning.passages import PassagePool
from steper_ray.reasoning.resuming import Begun
from steper_ray.reasoning.stopping import Written, policy_for
from steper_ray.schema import Hit, Passage, Step, StopReason, Usage


class Chain:
    """`query`, `add` and `take` once a step, in this order."""

    def __init__(self, config: ReasoningConfig, framework: Framework, question: str, begun: Begun) -> None:
        self.steps = list(begun.steps)
        self._config, self._framework, self.question = config, framework, question
        self._query = begun.query
        self._found: PassagesFound | None = None
        self._pool = PassagePool(config)
        self._policy = policy_for(config, framework, question)
        for step in self.steps:
            self._pool.add(step.hits)
            self._policy.follow(step)

    def copy(self) -> Chain:
        """Another one that goes on from here."""
        other = copy.copy(self)
        other.steps = list(self.steps)
        other._pool = self._pool.copy()
        other._policy = copy.deepcopy(self._policy, {id(self._framework): self._framework})
        return other

    @property
    def index(self) -> int:
        """The number of the next step, from 1."""
        return len(self.steps) + 1

    @property
    def passages(self) -> tuple[Passage, ...]:
        return self._pool.passages

    def query(self) -> str:
        """What the next step searches for."""
        if self._query is None:
            self._query = self._framework.next_query(self.question, self._written())
        return self._query

    def add(self, hits: Sequence[Hit], seconds: float) -> PassagesFound:
        """Puts what the search found into the prompt."""
        if rewrites(self._framework):
            self._pool = PassagePool(self._config)
        new = self._pool.add(hits)
        self._found = PassagesFound(self.index, new, len(hits) - len(new), seconds)
        return self._found

    def prompt(self, prompts: PromptEncoder | PromptWriter) -> Prompt:
        return prompts.prompt(self.question, self._pool.passages, self._before())

    def take(self, made: Draft, seconds: float, usage: Usage | None = None) -> StopReason | None:
        """Ends the step with a draft; returns why the trajectory ends with it, if it does.

        `usage`: the tokens of the step, where it cost more than its draft.
        """
        assert self._found is not None
        query = self.query()
        asked = (*(step.query for step in self.steps), query)
        last = self.index == self._config.max_steps
        ruling = self._policy.rule(Written(made.piece, made.spans, self._before(), asked, last))
        step = Step(
            index=self.index,
            query=query,
            hits=self._found.hits,
            reasoning=ruling.kept,
            mean_logprob=made.mean_logprob,
            usage=usage or made.usage,
            retrieval_seconds=self._found.seconds,
            generation_seconds=seconds,
            taken_back=ruling.taken_back,
            confidence=ruling.confidence,
            duplicates=self._found.duplicates,
            top_logprobs=made.top_logprobs,
        )
        self.steps.append(step)
        self._query = ruling.query
        return ruling.reason

    def _written(self) -> tuple[str, ...]:
        return tuple(step.reasoning for step in self.steps)

    def _before(self) -> tuple[str, ...]:
        """The chain as the prompt shows it: a framework that writes all again is shown none."""
        return () if rewrites(self._framework) else self._written()
