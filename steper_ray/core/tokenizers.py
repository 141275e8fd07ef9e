"""Tokenizers, and text encoded as text: a control token that is spelled out in it stays letters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from steper_ray.core.fingerprints import digest


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that the project relies on."""

    bos_token_id: int | None
    eos_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...


_vocabularies: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """Says whether two tokenizers give their ids to the same tokens. Computed once a tokenizer."""
    found = _vocabularies.get(tokenizer)
    if found is None:
        found = _vocabularies[tokenizer] = digest(sorted(tokenizer.get_vocab().items()))[:16]
    return found


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text as text: a control token that is spelled out in it ('</s>') stays letters.

    Control tokens are put into a prompt as ids and nowhere else. Hugging Face's tokenizers would read them from text.
    """
    if not hasattr(tokenizer, "split_special_tokens"):
        return tokenizer.encode(text, add_special_tokens=False)
    reads_all: Any = tokenizer
    try:
        ids: list[int] = reads_all.encode(text, **_AS_TEXT)
    except ValueError:  # Mistral's own tokenizers refuse the option; they never read control tokens from text
        return tokenizer.encode(text, add_special_tokens=False)
    unmarked = _unmarked(reads_all)
    return ids if unmarked.isdisjoint(ids) else _cut_ids(reads_all, text, unmarked)


_AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True}
#: Added tokens that are text: blanks (Gemma's, OLMo's), and words that a vocabulary was extended by.
_WORDS = re.compile(r"[\w\s\u2581'.-]*")
_unmarked_ids: WeakKeyDictionary[Any, frozenset[int]] = WeakKeyDictionary()


def _unmarked(tokenizer: Any) -> frozenset[int]:
    """Added tokens that are not marked as special, such as Qwen's <tool_call>: the option above does not split them."""
    ids = _unmarked_ids.get(tokenizer)
    if ids is None:
        added = tokenizer.added_tokens_decoder if tokenizer.is_fast else {}  # Python's own split them all
        ids = frozenset(
            id for id, token in added.items() if not token.special and not _WORDS.fullmatch(token.content)
        )
        _unmarked_ids[tokenizer] = ids
    return ids


def _cut_ids(tokenizer: Any, text: str, unmarked: frozenset[int]) -> list[int]:
    """The ids of the text, cut in the middle of each of these tokens: its halves are letters."""
    read = tokenizer(text, **_AS_TEXT, return_offsets_mapping=True)
    ids: list[int] = read["input_ids"]
    spans = [span for id, span in zip(ids, read["offset_mapping"], strict=True) if id in unmarked]
    cuts = [(begin + end) // 2 for begin, end in spans if end - begin > 1]
    if not cuts:
        return ids
    pieces = (text[begin:end] for begin, end in pairwise((0, *cuts, len(text))))
    return [id for piece in pieces for id in _cut_ids(tokenizer, piece, unmarked)]
