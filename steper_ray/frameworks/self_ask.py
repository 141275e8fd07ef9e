"""Self-Ask (Press et al. 2023): follow-up questions and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from steper_ray.core.answers import extract_answer
from steper_ray.frameworks.base import Fact, shipped_demonstrations
from steper_ray.frameworks.layout import Layout


class SelfAsk:
    """One step answers the open follow-up question and asks the next.

    A piece is 'Follow up: q1', then 'Intermediate answer: a1' and 'Follow up: q2' (two lines), and last
    'Intermediate answer: an' and 'So the final answer is: a': a follow-up question is asked one step before
    it is answered, so that it can query the retriever in between.
    """

    layout = Layout(
        passage="Title: {title}\n{text}\n\n",
        question="Question: {question}\nAre follow up questions needed here: Yes.",
        joiner="\n",
        instruction=(
            "Answer the question by follow up questions, each answered from the passages. Write lines of these forms "
            'alone: "Follow up: QUESTION", then "Intermediate answer: ANSWER", and so on; the last line is "So the '
            'final answer is: ANSWER".'
        ),
    )
    stop: tuple[str, ...] = ("\n\n", "\nQuestion:")
    lag = 1

    @property
    def demonstrations(self) -> str:
        return shipped_demonstrations("self_ask")

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
