"""A framework of your own, in one file: notes, one a line.

    steper build --config mine.yaml reasoning.framework=examples.new_framework:Notes

The prompt is `[title] text` for each passage, then `? question`, then the notes; the last note is the next query.
"""

from __future__ import annotations

from collections.abc import Sequence

from steper_ray.frameworks import Fact, Layout


class Notes:
    """One step is one note."""

    layout = Layout(passage="[{title}] {text}\n", question="? {question}", joiner="\n- ")
    stop = ("\n?",)
    lag = 0  # a note states its fact at once
    demonstrations = "Write one note a line. End with: So the answer is: ANSWER.\n"

    def next_query(self, question: str, chain: Sequence[str]) -> str:
        return chain[-1] if chain else question

    def cut(self, text: str) -> tuple[str, bool]:
        note, end_of_line, _ = text.lstrip("- ").partition("\n")
        return note.strip(), bool(end_of_line)

    def clean(self, text: str) -> str:
        return text.strip()

    def gold_chain(self, facts: Sequence[Fact], answer: str) -> tuple[str, ...]:
        return (*(fact.statement for fact in facts), f"So the answer is: {answer}.")
