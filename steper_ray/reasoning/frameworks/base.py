"""What a framework is: pure text logic over the chain, the tuple of each step's piece of reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Fact:
    """One hop of a gold chain: the sub-question with earlier answers filled in, its answer, and both as a sentence."""

    question: str
    answer: str
    statement: str


class Framework(Protocol):
    """How a chain is cut into steps. `stop` holds the strings that end a generation in any case."""

    name: str
    stop: tuple[str, ...]

    def next_query(self, question: str, chain: Sequence[str]) -> str:
        """What step len(chain) + 1 asks the retriever."""
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
