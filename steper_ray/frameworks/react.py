"""ReAct (Yao et al. 2023): a thought, then an action, which searches or finishes.

The paper's observations are the passages in front of the question (layout), in the order they were found, so the
chain holds thoughts and actions alone; an observation that a model writes is made up and ends its step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from steper_ray.core.answers import extract_answer, in_brackets
from steper_ray.frameworks.base import Fact, shipped_demonstrations
from steper_ray.frameworks.layout import Layout

_LABEL = re.compile(r"\**(thought|action|observation)(?: ?\d+)? ?:\** ?", re.IGNORECASE)
_CALL = re.compile(r"(search|finish) ?(?=\[)", re.IGNORECASE)
#: An action that a model writes behind its thought, on the same line.
_BEHIND = re.compile(r"(?<=\S) (?=action(?: ?\d+)? ?: ?(?:search|finish) ?\[)", re.IGNORECASE)
_ROUND = str.maketrans("[]", "()")


class ReAct:
    """One step thinks about what was found and acts: 'Thought: ...' and 'Action: Search[query]', two lines.

    The last step's action is 'Action: Finish[answer]'. A search asks the retriever for the NEXT step's passages;
    those of the first step are found by the question, as in the other frameworks. Pieces are kept in this form
    however a model wrote them: numbered, in small letters, in bold, without a label or a closing bracket.
    """

    layout = Layout(
        passage="Title: {title}\n{text}\n\n",
        question="Question: {question}",
        joiner="\n",
        instruction=(
            'Answer the question from the passages in steps of two lines: "Thought: WHAT YOU KNOW AND NEED", then '
            '"Action: Search[QUERY]" to find more passages, or "Action: Finish[ANSWER]" when the answer is known.'
        ),
    )
    stop: tuple[str, ...] = ("\nObservation", "\nQuestion:", "\nTitle:")
    lag = 1

    @property
    def demonstrations(self) -> str:
        return shipped_demonstrations("react")

    def next_query(self, question: str, chain: Sequence[str]) -> str:
        """The question first, then the last search; the thought where a step's action is none that searches."""
        for piece in reversed(chain):
            lines = [_parse(line) for line in reversed(piece.split("\n"))]
            for label, body in lines:
                call = _CALL.match(body) if label == "action" else None
                if call and call[1].lower() == "search" and (query := in_brackets(body[call.end() :])[0]):
                    return query
            if thought := next((body for label, body in lines if label == "thought" and body), ""):
                return thought
        return question

    def cut(self, text: str) -> tuple[str, bool]:
        """Up to the first action."""
        return _read(text, one_step=True)

    def clean(self, text: str) -> str:
        return _read(text, one_step=False)[0]

    def gold_chain(self, facts: Sequence[Fact], answer: str) -> tuple[str, ...]:
        """Each fact is thought when its passage is there, one step after its question was searched."""
        finish = _action("Finish", answer)
        if not facts:
            return (finish,)
        thoughts = ("I need to look up the first fact.", *(fact.statement for fact in facts))
        actions = (*(_action("Search", fact.question) for fact in facts), finish)
        return tuple(f"Thought: {t}\n{action}" for t, action in zip(thoughts, actions, strict=True))


def _read(text: str, one_step: bool) -> tuple[str, bool]:
    """A generated text in the form of the chain, up to its first action or its end, and whether that surely came."""
    kept: list[str] = []
    lines = _BEHIND.sub("\n", "\n".join(" ".join(line.split()) for line in text.split("\n"))).split("\n")
    for number, line in enumerate(lines, 1):
        label, body = _parse(line)
        if label == "observation":
            return "\n".join(kept), True
        if label == "action" and body:
            action, closed = _act(body)
            kept.append(action)
            if one_step or extract_answer(action) is not None:
                return "\n".join(kept), closed or number < len(lines)
        elif not label and kept and kept[-1].startswith("Thought:"):
            kept[-1] = f"{kept[-1]} {body}".rstrip()
        elif body:
            kept.append(f"Thought: {body}")
    return "\n".join(kept), False


def _parse(line: str) -> tuple[str, str]:
    """A line's label in small letters, '' where it has none, and the rest; a bare 'Search[...]' is an action."""
    match = _LABEL.match(line)
    if match is None:
        return "action" if _CALL.match(line) else "", line
    return match[1].lower(), line[match.end() :]


def _act(body: str) -> tuple[str, bool]:
    """The action as the chain keeps it, and whether its bracket is closed. One that is none is kept as it is."""
    call = _CALL.match(body)
    if call is None:
        return f"Action: {body}", False
    argument, closed = in_brackets(body[call.end() :])
    return _action(call[1].capitalize(), argument), closed


def _action(verb: str, argument: str) -> str:
    """A line that reads back as this verb and argument: brackets that do not pair become round ones."""
    argument = " ".join(argument.split())
    line = f"{verb}[{argument}]"
    if in_brackets(line[len(verb) :]) != (argument, True):
        line = f"{verb}[{argument.translate(_ROUND)}]"
    return f"Action: {line}"
