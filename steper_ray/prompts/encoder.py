"""Tokenises a layout's segments, each alone and never across a boundary, between the turns of a chat or without any.

So the prompt of step s+1 repeats the tokens of step s up to its last passage, and what training sees and what an engine
sees is identical to the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from steper_ray.core.chat import Turns, text_turns
from steper_ray.core.tokenizers import Tokenizer, plain_ids
from steper_ray.frameworks.layout import Layout
from steper_ray.schema import Passage


@dataclass(slots=True)
class PromptEncoder:
    """Tokenises a layout's segments, each on its own, and remembers passages it has seen.

    `turns` are the ids around them, by default those of plain text. Not thread-safe; one for each engine or data
    loader.
    """

    tokenizer: Tokenizer
    layout: Layout
    turns: Turns | None = None
    max_cached: int = 4096
    _cache: dict[str, list[int]] = field(default_factory=dict)
    _around: Turns = field(init=False)

    def __post_init__(self) -> None:
        self._around = self.turns or text_turns(self.tokenizer)

    def after(self, question: str, wrong: Sequence[str]) -> PromptEncoder:
        """An encoder of prompts that show a wrong chain; it remembers the same passages."""
        return replace(self, layout=self.layout.after(question, wrong))

    def knowing(self, question: str, chain: Sequence[str]) -> PromptEncoder:
        """An encoder of prompts that show a right chain; it remembers the same passages."""
        return replace(self, layout=self.layout.knowing(question, chain))

    def segment(self, text: str) -> list[int]:
        ids = self._cache.get(text)
        if ids is None:
            ids = plain_ids(self.tokenizer, text)
            if len(self._cache) >= self.max_cached:
                self._cache.pop(next(iter(self._cache)))
            self._cache[text] = ids
        return ids

    @property
    def chat(self) -> bool:
        """Whether its prompts are turns of a chat."""
        return self.layout.in_turns

    @property
    def end(self) -> int:
        """The token that ends a target: the end of sequence, or that of a chat's turn."""
        return self._around.end

    def trunk(self, passages: Sequence[Passage]) -> list[int]:
        """Ids in front (begin of sequence, a chat's header and instruction), preamble and passages."""
        ids = list(self._around.head)
        for segment in self.layout.trunk_segments(passages):
            ids.extend(self.segment(segment))
        return ids

    def question(self, question: str) -> list[int]:
        """The question, and a chat's turn change behind it."""
        return [*self.segment(self.layout.question_segment(question)), *self._around.turn]

    def chain(self, chain: Sequence[str], *, begun: bool = False) -> list[int]:
        """The pieces of a chain; `begun` says that others stand in front of them."""
        return [i for text in self.layout.chain_segments(chain, begun=begun) for i in self.segment(text)]

    def prompt(self, question: str, passages: Sequence[Passage], chain: Sequence[str]) -> list[int]:
        """Token ids of the prompt at one step."""
        return self.trunk(passages) + self.question(question) + self.chain(chain)

    def target(self, chain: Sequence[str]) -> list[int]:
        """Token ids of a training target: the cumulative chain and the token that ends it."""
        return [*self.chain(chain), self.end]
