"""IRCoT (Trivedi et al. 2023): reasoning sentences, each of which asks for the next passages."""

from __future__ import annotations

import re
from collections.abc import Sequence

from steper_ray.core.sentences import first_sentence, split_sentences
from steper_ray.frameworks.base import Fact, shipped_demonstrations
from steper_ray.frameworks.layout import Layout

_CONCLUSION = re.compile(r"^(thus|so|therefore|hence)\b", re.IGNORECASE)
_WH_WORD = re.compile(r"\b(who|whom|whose|what|when|where|why|which|how)\b", re.IGNORECASE)


class IRCoT:
    """One step is one reasoning sentence; the last one queries the retriever."""

    layout = Layout(
        passage="Title: {title}\n{text}\n\n",
        question="Q: {question}",
        answer="\nA:",
        joiner=" ",
        instruction=(
            "Answer the question step by step from the passages, one fact a sentence, in plain sentences without "
            "lists or headings. The passages may not hold everything yet: state the fact that comes next. When the "
            'answer is known, end with the sentence "So the answer is: ANSWER."'
        ),
    )
    stop: tuple[str, ...] = ("\n",)
    lag = 0

    @property
    def demonstrations(self) -> str:
        return shipped_demonstrations("ircot")

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
        return (*(fact.statement for fact in facts), f"So the answer is: {answer.removesuffix('.')}.")


def strip_wh(sentence: str) -> str:
    """A sentence without question words, as a BM25 query (IRCoT's code); unchanged if nothing would be left."""
    stripped = " ".join(_WH_WORD.sub(" ", sentence).split())
    return stripped or sentence
