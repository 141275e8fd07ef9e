"""A gold sub-question and its answer as a reasoning sentence, or as a follow-up question. Pure text rules.

Sub-questions come as natural questions ('Who was the first president of X?'), as relations ('X >> spouse')
and as fragments ('federal leader of X'). Every statement is one sentence by the rule that cuts a generation
(`core.sentences`), so a chain written here has the same steps as a chain that was generated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from steper_ray.core.sentences import CLOSING, first_sentence

_REFERENCE = re.compile(r"#(\d+)")
_BLANK_BEFORE = re.compile(r"\s+(?=[?,;:.!]|['\u2019]s\b)")
_IDENTITY = re.compile(r"(?:who|what|which) (is|are|was|were) (.+)", re.IGNORECASE)
_SUBJECT = re.compile(r"who (?!(?:do|does|did|can|could|will|would|should)\b)(.+)", re.IGNORECASE)
# A question that ends in one of these asks for what stands behind it: no rule here turns it round.
_DANGLING = re.compile(
    r"\b(?:in|on|at|to|of|for|from|by|with|as|into|about|after|called|known|named)$", re.IGNORECASE
)
# Relations that are verbs ('shares border with') or open with a participle ('located in ...'); or the like.
_VERBS = {
    "shares": "share",
    "has": "have",
    "follows": "follow",
    "crosses": "cross",
    "applies": "apply",
    "contains": "contain",
}
_PARTICIPLES = frozenset(
    "located owned educated licensed named founded followed distributed based part member present".split()
)
_PLACED = re.compile(r"(\w+ (?:in|on|of|at|by)) (?:the )?(?!or )(.+)")


def fill_in(question: str, answers: Sequence[str]) -> str:
    """A sub-question with '#n' replaced by the answer of hop n, and MuSiQue's stray blanks removed.

    A number that points at no earlier hop is part of the text ('#1 Record') and stays.
    """

    def answer(match: re.Match[str]) -> str:
        hop = int(match.group(1))
        return answers[hop - 1] if 1 <= hop <= len(answers) else match.group()

    return _BLANK_BEFORE.sub("", " ".join(_REFERENCE.sub(answer, question).split()))


def state(question: str, answer: str) -> str:
    """The fact that `question` (filled in) has this answer, as one declarative sentence.

    'X >> director' and 'Who is the director of X?' give 'The director of X is A.', 'who won X' gives
    'A won X.'; what no rule fits is quoted: 'The answer to "when did X open" is A.'
    """
    answer = " ".join(answer.split())
    entity, arrow, relation = (part.strip() for part in question.partition(">>"))
    if arrow:
        return _sentence(_state_relation(entity, relation, answer))
    bare = question.rstrip("?!. ")
    identity, subject = _IDENTITY.fullmatch(bare), _SUBJECT.fullmatch(bare)
    if not _DANGLING.search(bare):
        if identity and _names_a_thing(bare, identity[2]):
            return _sentence(f"{identity[2]} {identity[1]} {answer}")
        if identity and identity[2].lower().startswith(("a ", "an ")):  # 'what is a word for X'
            return _sentence(f"{answer} {identity[1]} {identity[2]}")
        # 'who was crowned king' has its subject in front, 'who was Ada talking to' has not.
        if subject and not (identity and identity[2][0].isupper()):
            return _sentence(f"{answer} {subject[1]}")
    quoted = bare.replace('"', "'")
    return _sentence(f'The answer to "{quoted}" is {answer}')


def follow_up(question: str) -> str:
    """A sub-question (filled in) as a question that Self-Ask and ReAct ask: one line with a question mark."""
    entity, arrow, relation = (part.strip() for part in question.partition(">>"))
    if not arrow:
        return _upper(question.rstrip("?!. ")) + "?"
    first, _, rest = relation.partition(" ")
    if first in _VERBS:
        return f"What does {entity} {' '.join([_VERBS[first], rest]).strip()}?"
    if _DANGLING.search(relation):
        return f"What is {entity} {relation}?"
    if first in _PARTICIPLES:
        placed = _PLACED.fullmatch(relation)
        return f"What {placed[2]} is {entity} {placed[1]}?" if placed else f"What is {entity} {relation}?"
    return f"What is the {relation} of {entity}?"


def _state_relation(entity: str, relation: str, answer: str) -> str:
    first = relation.partition(" ")[0]
    if first in _VERBS:
        return f"{entity} {relation} {answer}"
    if first in _PARTICIPLES or _DANGLING.search(relation):  # 'capital of', 'participant in'
        return f"{entity} is {relation} {answer}"
    return f"The {relation} of {entity} is {answer}"


def _names_a_thing(question: str, rest: str) -> bool:
    """'Who is the mayor of X', 'what was X's name' turn round; 'who was crowned', 'what is a word' do not."""
    if rest.lower().startswith("the ") or "'s " in rest:
        return True
    return not question.lower().startswith("who ") and not rest.lower().startswith(("a ", "an "))


def _sentence(text: str) -> str:
    """One sentence by the reasoner's rule: closing marks inside are dropped, the last full stop counts."""
    text = _upper(" ".join(text.split()))
    while True:
        head, complete = first_sentence(f"{text} Next")
        if not complete or len(head) >= len(text):
            break
        text = CLOSING.sub(r"\1", head) + text[len(head) :]  # also that of a quotation: ... is "Go home."
    text = text if text.endswith(".") else f"{text}."
    # The stop of 'Jay Z.' or 'Washington, D.C.' looks like an initial's, which ends no sentence.
    return text if first_sentence(f"{text} Next") == (text, True) else f"{text}."


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
