"""What a step of reasoning claims, and how much of it stands in the passages: two scores, with no model.

A claim is a name, a number or the stated answer. Rules over English text, not linguistics: they read chains as
teachers write them, full sentences with capitalised names. Pure functions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from steper_ray.answers import extract_answer, normalize
from steper_ray.schema import Passage

#: Words that are capitalised only because a sentence begins with them.
_OPENERS = frozenset(
    "a about according after all also although an and another as at based because before besides both but by during "
    "each either every finally first for from furthermore given hence her here his however i i'd i'll i'm i've if in "
    "into is it its last let like meanwhile moreover most neither next no none nor not now of on one only or other "
    "others our out over per second she he since so some such than that the their then there therefore these they "
    "third this those though through thus to two under unlike until up was we were what when where whereas which "
    "while who whose why with within without yes yet you".split()
)
_WORD = r"(?<!\w)[A-Z][\w\-]*(?:['\u2019](?!s\b)\w+)*"
#: Capitalised words, and small ones that stand between two of them: "University of the West".
_NAME = re.compile(rf"{_WORD}(?:[ ](?:(?:of|the|de|la|le|von|van|der|di|da|du)[ ]){{0,2}}{_WORD})*")
_NUMBER = re.compile(r"(?<!\w)\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
_HYPHEN = re.compile(r"[-\u2010-\u2014/]")
_POSSESSIVE = re.compile(r"['\u2019]s?\b")
_ASKED = re.compile(r"^\s*(?:Follow up|Action):.*$", re.MULTILINE)
_LABEL = re.compile(r"^\s*(?:Intermediate answer|Thought):\s*", re.MULTILINE)
_CLOSED = frozenset(("yes", "no"))


@dataclass(frozen=True, slots=True)
class Claims:
    """What one step claims, each normalised as answers are (SQuAD). `answer` is None where none is stated."""

    names: tuple[str, ...]
    numbers: tuple[str, ...]
    answer: str | None

    @property
    def all(self) -> tuple[str, ...]:
        """Every claim once."""
        stated = (self.answer,) if self.answer is not None else ()
        return tuple(dict.fromkeys((*self.names, *self.numbers, *stated)))


def claims_of(reasoning: str) -> Claims:
    """The claims of one step. What Self-Ask asks or ReAct searches is no claim, nor is a yes or no.

    ReAct's answer is claimed by its Finish, all else by its thoughts.
    """
    answer = extract_answer(reasoning)
    text = reasoning if answer is None else reasoning[: reasoning.rindex(answer)]
    text = _LABEL.sub("", _ASKED.sub("", text))
    names = [name for match in _NAME.finditer(text) if (name := _name(match.group()))]
    numbers = [_plain(number) for number in _NUMBER.findall(text)]
    stated = None if answer is None or normalize(answer) in _CLOSED else _plain(answer)
    return Claims(tuple(dict.fromkeys(names)), tuple(dict.fromkeys(numbers)), stated or None)


def grounding(reasoning: str, question: str, passages: Iterable[Passage]) -> float | None:
    """Share of the claims that stand in the passages seen so far, 0 to 1; None where nothing is claimed.

    A name or number of the question counts as standing there; the answer must be in a passage.
    """
    claims = claims_of(reasoning)
    if not claims.all:
        return None
    texts = [_readable(passage) for passage in passages]
    asked = _Text(question)
    known = sum(
        any(claim in text for text in texts) or (claim != claims.answer and claim in asked)
        for claim in claims.all
    )
    return known / len(claims.all)


def support(reasoning: str, passages: Iterable[Passage]) -> float | None:
    """The largest share of the claims that ONE passage holds, 0 to 1; None where nothing is claimed.

    A fact is stated in one place: a sentence that joins a name of one passage to a value of another, all of them
    grounded, scores low. So does a sentence that rightly joins two facts: choose the threshold for the teacher.
    """
    claims = claims_of(reasoning).all
    if not claims:
        return None
    texts = (_readable(passage) for passage in passages)
    return max((sum(claim in text for claim in claims) / len(claims) for text in texts), default=0.0)


class _Text:
    """A normalised text that knows whether whole words stand in it."""

    def __init__(self, *parts: str) -> None:
        self._padded = " | ".join(("", *(_plain(part) for part in parts), ""))

    def __contains__(self, words: str) -> bool:
        return f" {words} " in self._padded


def _readable(passage: Passage) -> _Text:
    return _Text(passage.title, passage.text)


def _plain(text: str) -> str:
    """As answers are compared, and without accents, hyphens and possessives, which chains and passages mix."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return normalize(_HYPHEN.sub(" ", _POSSESSIVE.sub(" ", letters)))


def _name(run: str) -> str:
    """A run of capitalised words without the opener of a sentence, normalised; empty if nothing is left."""
    words: Sequence[str] = run.split()
    while words and words[0].lower().replace("\u2019", "'") in _OPENERS:
        words = words[1:]
    return _plain(" ".join(words))
