"""The two frameworks of the paper, IRCoT and Self-Ask: what one step is, what it asks the retriever, its gold form.

A framework is pure text logic over the chain, the tuple of each step's piece of reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from steper_ray.answers import extract_answer
from steper_ray.config import ReasoningConfig
from steper_ray.errors import DataError
from steper_ray.prompt import LAYOUTS, Layout
from steper_ray.reasoning.sentences import first_sentence


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


_CONCLUSION = re.compile(r"^(thus|so|therefore|hence)\b", re.IGNORECASE)
_WH_WORD = re.compile(r"\b(who|whom|whose|what|when|where|why|which|how)\b", re.IGNORECASE)


class IRCoT:
    """One step is one reasoning sentence; the last one queries the retriever (IRCoT, Trivedi et al. 2023)."""

    name: str = "ircot"
    stop: tuple[str, ...] = ("\n",)

    def next_query(self, question: str, chain: Sequence[str]) -> str:
        """The question first, then the last sentence that is no conclusion ('So ...', 'Thus ...')."""
        for piece in reversed(chain):
            sentences = split_sentences(piece)
            for sentence in reversed(sentences):
                if not _CONCLUSION.match(sentence):
                    return strip_wh(sentence)
        return question

    def cut(self, text: str) -> tuple[str, bool]:
        sentence, complete = first_sentence(text)
        return self.clean(sentence), complete

    def clean(self, text: str) -> str:
        return " ".join(text.split())

    def gold_chain(self, facts: Sequence[Fact], answer: str) -> tuple[str, ...]:
        return (*(fact.statement for fact in facts), f"So the answer is: {answer}.")


class SelfAsk:
    """One step answers the open follow-up question and asks the next (Self-Ask, Press et al. 2023).

    A piece is 'Follow up: q1', then 'Intermediate answer: a1' and 'Follow up: q2' (two lines), and last
    'Intermediate answer: an' and 'So the final answer is: a': a follow-up question is asked one step before
    it is answered, so that it can query the retriever in between.
    """

    name: str = "self_ask"
    stop: tuple[str, ...] = ("\n\n", "\nQuestion:")
    _follow_up = "Follow up:"

    def next_query(self, question: str, chain: Sequence[str]) -> str:
        """The question first, then the last follow-up question."""
        for piece in reversed(chain):
            for line in reversed(piece.split("\n")):
                if line.startswith(self._follow_up):
                    return line.removeprefix(self._follow_up).strip() or question
        return question

    def cut(self, text: str) -> tuple[str, bool]:
        """Up to the first follow-up question or the final answer, the whole line."""
        kept: list[str] = []
        lines = text.lstrip().split("\n")
        for number, line in enumerate(lines):
            kept.append(line)
            if line.strip().startswith(self._follow_up) or extract_answer(line) is not None:
                return self.clean("\n".join(kept)), number + 1 < len(lines)
        return self.clean("\n".join(kept)), False

    def clean(self, text: str) -> str:
        return "\n".join(" ".join(line.split()) for line in text.split("\n") if line.strip())

    def gold_chain(self, facts: Sequence[Fact], answer: str) -> tuple[str, ...]:
        pieces = [f"{self._follow_up} {facts[0].question}"] if facts else []
        for fact, following in pairwise(facts):
            pieces.append(f"Intermediate answer: {fact.answer}\n{self._follow_up} {following.question}")
        last = f"So the final answer is: {answer}"
        return (*pieces, f"Intermediate answer: {facts[-1].answer}\n{last}" if facts else last)


FRAMEWORKS: dict[str, Framework] = {"ircot": IRCoT(), "self_ask": SelfAsk()}


def split_sentences(text: str) -> list[str]:
    """All sentences of a text, by the rule of `first_sentence`."""
    sentences = []
    rest = text.strip()
    while rest:
        sentence, complete = first_sentence(rest)
        if sentence:
            sentences.append(sentence)
        rest = rest[len(sentence) :].lstrip() if complete else ""
    return sentences


def strip_wh(sentence: str) -> str:
    """A sentence without question words, as a BM25 query (IRCoT's code); unchanged if nothing would be left."""
    stripped = " ".join(_WH_WORD.sub(" ", sentence).split())
    return stripped or sentence


def layout_for(config: ReasoningConfig) -> Layout:
    """The framework's layout, with demonstrations in front where the config asks for them.

    Raises DataError for a demonstrations file that cannot be read.
    """
    layout = LAYOUTS[config.framework]
    if config.demonstrations is not None:
        return replace(layout, preamble=_read(config.demonstrations))
    if config.few_shot:
        name = f"demonstrations/{config.framework}.txt"
        return replace(
            layout, preamble=resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        )
    return layout


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\n") + "\n\n"
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"reasoning.demonstrations: {path} cannot be read: {error}") from error
