"""Tokenises a layout's segments, each alone and never across a boundary.

So the prompt of step s+1 repeats the tokens of step s up to its last passage, and what training sees and what an engine
sees is identical to the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from steper_ray.core.tokenizers import Tokenizer, plain_ids
from steper_ray.frameworks.layout import Layout
from steper_ray.schema import Passage


@dataclass(slots=True)
class PromptEncoder:
    """Tokenises a layout's segments, each on its own, and remembers passages it has seen.

    Not thread-safe; one for each engine or data loader.
    """

    tokenizer: Tokenizer
    layout: Layout
    max_cached: int = 4096
    _cache: dict[str, list[int]] = field(default_factory=dict)

    def of(self, layout: Layout) -> PromptEncoder:
        """An encoder of another layout that remembers the same passages."""
        return replace(self, layout=layout)

    def segment(self, text: str) -> list[int]:
        ids = self._cache.get(text)
        if ids is None:
            ids = plain_ids(self.tokenizer, text)
            if len(self._cache) >= self.max_cached:
                self._cache.pop(next(iter(self._cache)))
            self._cache[text] = ids
        return ids

    def trunk(self, passages: Sequence[Passage]) -> list[int]:
        """Begin-of-sequence (if the tokenizer has one), preamble and passages."""
        bos = self.tokenizer.bos_token_id
        ids = [] if bos is None else [bos]
        for segment in self.layout.trunk_segments(passages):
            ids.extend(self.segment(segment))
        return ids

    def question(self, question: str) -> list[int]:
        return list(self.segment(self.layout.question_segment(question)))

    def chain(self, chain: Sequence[str]) -> list[int]:
        return [i for segment in self.layout.chain_segments(chain) for i in self.segment(segment)]

    def prompt(self, question: str, passages: Sequence[Passage], chain: Sequence[str]) -> list[int]:
        """Token ids of the prompt at one step."""
        return self.trunk(passages) + self.question(question) + self.chain(chain)

    def target(self, chain: Sequence[str]) -> list[int]:
        """Token ids of a training target: the cumulative chain and the end of sequence."""
        return [*self.chain(chain), self.tokenizer.eos_token_id]
