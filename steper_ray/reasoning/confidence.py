"""An engine's confidence in each sentence it wrote: the probability of the sentence's least likely token.

The blanks around a sentence and the end of sequence are no part of it: what they weigh is whether to go on, not whether
the sentence is true. Text and log-probabilities in, probabilities out; no engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from steper_ray.core.tokenizers import Tokenizer
from steper_ray.generation.base import Chunk


class TokenSpans:
    """Takes a generation chunk by chunk, and remembers which token wrote which part of the text."""

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer = tokenizer
        self._text = (
            ""  # without blanks: pieces of the chain are cleaned, so theirs are not those that were generated
        )
        self._spans: list[tuple[int, int, float]] = []
        self._held: list[float] = []

    def add(self, chunk: Chunk) -> None:
        start, text = len(self._text), _squeezed(chunk.text)
        self._text += text
        if not chunk.text:  # within a character, or held back by a stop string: the text follows
            self._held.extend(chunk.logprobs)
            return
        self._spans.extend((start, len(self._text), value) for value in self._held)
        self._held.clear()
        sizes = self._sizes(chunk, len(text))
        for at, value in enumerate(chunk.logprobs):
            end = len(self._text) if sizes is None else start + sizes[at]
            self._spans.append((start, end, value))
            start = start if sizes is None else end

    def least(self, parts: Sequence[str]) -> list[float | None]:
        """For each part of the text, in their order, the probability of its least likely token, 0 to 1.

        None where the engine reports none. A part that a framework has reworded is not found: then the
        whole text counts.
        """
        found, after = [], 0
        for part in parts:
            wanted = _squeezed(part)
            start = self._text.find(wanted, after)
            after = end = start + len(wanted) if start >= 0 else after
            if start < 0:
                start, end = 0, len(self._text)
            values = [value for low, high, value in self._spans if high > start and low < end and high > low]
            found.append(math.exp(min(values)) if values else None)
        return found

    def _sizes(self, chunk: Chunk, size: int) -> list[int] | None:
        """The length of each token's text in a chunk of several; None where that is not known."""
        several = len(chunk.logprobs) > 1 and len(chunk.token_ids) == len(chunk.logprobs)
        if self._tokenizer is None or not several:
            return None
        sizes = [len(_squeezed(self._tokenizer.decode([token]))) for token in chunk.token_ids]
        return sizes if sum(sizes) == size else None


def _squeezed(text: str) -> str:
    return "".join(text.split())
