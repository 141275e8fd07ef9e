"""The passages of one trajectory: in the order they came, near-duplicates dropped, long ones cut, capped. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from steper_ray.config import ReasoningConfig
from steper_ray.core.answers import comparable
from steper_ray.core.sentences import split_sentences
from steper_ray.schema import Hit, Passage

_JOINER = "\u200d"  # of emoji and of Indic letters


class PassagePool:
    """Accumulates the hits of a trajectory's steps (IRCoT: new passages are appended at the end)."""

    def __init__(self, config: ReasoningConfig) -> None:
        self._config = config
        self._passages: list[Passage] = []
        self._seen: set[tuple[str, str]] = set()

    def copy(self) -> PassagePool:
        other = PassagePool(self._config)
        other._passages, other._seen = list(self._passages), set(self._seen)
        return other

    @property
    def passages(self) -> tuple[Passage, ...]:
        return tuple(self._passages)

    def __contains__(self, passage: Passage) -> bool:
        """Whether the passage, or one that says the same, is there; a long one as the prompt shows it."""
        shown = within_limit(passage, self._config)
        return shown is not None and _key(shown) in self._seen

    def add(self, hits: Sequence[Hit]) -> tuple[Hit, ...]:
        """The hits that are new, as the prompt shows them, in their order; those beyond the limit are dropped.

        Two passages are near-duplicates when title and text are equal as answers are (`answers.comparable`).
        """
        fresh = []
        for hit in hits:
            passage = within_limit(hit.passage, self._config)
            if passage is None or len(self._passages) >= self._config.max_passages:
                continue
            key = _key(passage)
            if key not in self._seen:
                self._seen.add(key)
                self._passages.append(passage)
                fresh.append(hit if passage is hit.passage else replace(hit, passage=passage))
        return tuple(fresh)


def _key(passage: Passage) -> tuple[str, str]:
    return comparable(passage.title), comparable(passage.text)


def within_limit(passage: Passage, config: ReasoningConfig) -> Passage | None:
    """The passage with at most `max_passage_chars` of title and text; None for one that is omitted."""
    limit = config.max_passage_chars
    if len(passage.title) + len(passage.text) <= limit:
        return passage
    if config.long_passages == "leave_out":
        return None
    title = cut(passage.title, limit)
    return replace(passage, title=title, text=cut(passage.text, limit - len(title)))


def cut(text: str, limit: int) -> str:
    """At most `limit` characters of a text: whole sentences if they fill half of it, else whole words.

    Where neither does, it is cut between two characters as they are read: no letter loses its accent or vowel sign.
    """
    if len(text) <= limit:
        return text
    head, end = text[: limit + 1], 0
    for sentence in split_sentences(head)[:-1]:
        end = head.index(sentence, end) + len(sentence)
    if 2 * end < limit:
        end = next((at for at in range(limit, limit // 2, -1) if head[at].isspace()), 0)
    if not end:
        end = next((at for at in range(limit, 0, -1) if not _joined(head[at - 1], head[at])), limit)
    return head[:end].rstrip()


def _joined(left: str, right: str) -> bool:
    """Whether two code points belong to one character as it is read: accents, vowel signs, emoji, Korean syllables."""
    if _JOINER in (left, right) or unicodedata.category(right).startswith("M"):
        return True
    # Skin tones, then flags (pairs: rather none than half of one), then medial vowels and final consonants.
    return (
        "\U0001f3fb" <= right <= "\U0001f3ff"
        or (_is_flag(left) and _is_flag(right))
        or ("\u1100" <= left <= "\u11ff" and "\u1160" <= right <= "\u11ff")
    )


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
