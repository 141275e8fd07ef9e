"""Keys and values of prompts that were answered: the next step's prompt begins with the passages of this one.

Pure torch and numpy: it knows neither requests nor the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

#: A shorter common beginning is not worth a separate pass.
_WORTH = 64


@dataclass(frozen=True, slots=True)
class Prefix:
    """The tokens of a prompt, and of each layer (keys, values), each of shape (heads, tokens, head size)."""

    tokens: np.ndarray
    states: list[tuple[torch.Tensor, torch.Tensor]]


class PrefixStore:
    """The prompts that left last, of at most `max_tokens` together. One that is used again is taken out."""

    def __init__(self, max_tokens: int) -> None:
        self._room = max_tokens
        self._kept: list[Prefix] = []  # oldest first

    def put(self, tokens: Sequence[int], states: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._kept.append(Prefix(np.asarray(tokens, dtype=np.int64), states))
        self._room -= len(tokens)
        while self._room < 0:
            self._room += len(self._kept.pop(0).tokens)

    def take(self, tokens: Sequence[int]) -> tuple[Prefix, int] | None:
        """The prompt that shares most tokens with the beginning of these, and how many; None if they are few."""
        wanted = np.asarray(tokens, dtype=np.int64)
        best, shared = -1, _WORTH - 1
        for at, prefix in enumerate(self._kept):
            size = min(len(prefix.tokens), len(wanted))
            if size <= shared:
                continue
            differ = prefix.tokens[:size] != wanted[:size]
            same = int(differ.argmax()) if differ.any() else size
            if same > shared:
                best, shared = at, same
        if best < 0:
            return None
        prefix = self._kept.pop(best)
        self._room += len(prefix.tokens)
        return prefix, shared

    def clear(self) -> bool:
        """Drops all of them; False if there are none."""
        kept = bool(self._kept)
        self._room += sum(len(prefix.tokens) for prefix in self._kept)
        self._kept.clear()
        return kept
