"""The protocol of a framework: pure text logic over the chain, the tuple of each step's piece of reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Protocol

from steper_ray.frameworks.layout import Layout


@dataclass(frozen=True, slots=True)
class Fact:
    """One hop of a gold chain: the sub-question with earlier answers filled in, its answer, and both as a sentence."""

    question: str
    answer: str
    statement: str


class Framework(Protocol):
    """How a prompt is laid out and how a chain is cut into steps."""

    @property
    def layout(self) -> Layout:
        """The prompt's templates."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end every generation."""
        ...

    @property
    def demonstrations(self) -> str:
        """Text before the prompt for models that were not trained on the layout (`reasoning.few_shot`)."""
        ...

    @property
    def lag(self) -> int:
        """Steps between asking for a fact and stating it: 0 where the statement itself asks for the next one."""
        ...

    def next_query(self, question: str, chain: Sequence[str]) -> str:
        """The query of step len(chain) + 1 to the retriever."""
        ...

    def cut(self, text: str) -> tuple[str, bool]:
        """The first step's worth of a generated text, cleaned, and whether it is surely complete."""
        ...

    def clean(self, text: str) -> str:
        """A whole generated text as one piece of the chain."""
        ...

    def gold_chain(self, facts: Sequence[Fact], answer: str) -> tuple[str, ...]:
        """The pieces a perfect reasoner writes: one a hop, then the answer."""
        ...


def rewrites(framework: Framework) -> bool:
    """Whether each step writes the whole chain again, from its own passages alone, and the last one's answer counts.

    An optional attribute of a framework, `rewrites`.
    """
    return bool(getattr(framework, "rewrites", False))


def shipped_demonstrations(name: str) -> str:
    """The text of demonstrations/NAME.txt in this package."""
    return (resources.files(__package__) / "demonstrations" / f"{name}.txt").read_text(encoding="utf-8")
