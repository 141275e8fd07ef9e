"""Counts over questions that add up: for progress and for reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steper_ray.rollouts.spec import Asking
from steper_ray.schema import Trajectory


@dataclass(slots=True)
class Work:
    """Questions with an end, those among them that are owed, those with a right answer; steps, tokens, searches."""

    questions: int = 0
    owed: int = 0
    right: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    searches: int = 0
    cached_searches: int = 0

    @classmethod
    def of(cls, questions: int, trajectories: Sequence[Trajectory], asking: Asking, owed: int = 0) -> Work:
        usages = [step.usage for trajectory in trajectories for step in trajectory.steps]
        return cls(
            questions,
            owed,
            len({t.question.id for t in trajectories if asking.is_right(t)}),
            len(usages),
            sum(usage.prompt_tokens for usage in usages),
            sum(usage.cached_tokens for usage in usages),
            sum(usage.completion_tokens for usage in usages),
        )

    def __iadd__(self, other: Work) -> Work:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self
