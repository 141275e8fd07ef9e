"""What a step of reasoning claims, and where and how much of it stands in the passages, with no model.

The verifiers of the training data score with these rules, and the endpoint ties each sentence to its passages with
them. A claim is a name, a number or the stated answer. Rules over English text, not linguistics: they read chains as
teachers write them, full sentences with capitalised names. Pure, and part of the ground.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property

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
#: Where a passage's sentence may end; that 'Dr. No' is cut in two does no harm.
_STOP = re.compile(r"(?<=[.!?])\s+")
_CLOSED = frozenset(("yes", "no"))


@dataclass(frozen=True, slots=True)
class Claims:
    """What one step claims, each normalised as answers are (SQuAD). `answer` is None where none is stated.

    `wording` has each claim as it is written.
    """

    names: tuple[str, ...]
    numbers: tuple[str, ...]
    answer: str | None
    wording: Mapping[str, str] = field(compare=False)

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
    names = _normalised(_without_opener(match.group()) for match in _NAME.finditer(text))
    numbers = _normalised(_NUMBER.findall(text))
    stated = _normalised(() if answer is None or normalize(answer) in _CLOSED else (answer,))
    return Claims(tuple(names), tuple(numbers), next(iter(stated), None), {**stated, **numbers, **names})


@dataclass(frozen=True, slots=True)
class Grounds:
    """Where the claims of a text stand.

    `passages` are places among those seen, from 0 and in order: few that together hold every claim that any holds.
    `missing` are the claims, as they are written, that stand nowhere.
    """

    passages: tuple[int, ...]
    missing: tuple[str, ...]


class Ground:
    """The question and the passages seen so far, each read once: what one sentence of a chain after another stands on.

    A name or number of the question counts as standing there; the answer must be in a passage.
    """

    def __init__(self, question: str, passages: Iterable[Passage] = ()) -> None:
        self._question = _Text(question)
        self._passages: list[_Facts] = []
        self._used: dict[int, int] = {}  # passage -> the last sentence that stands on it
        self.add(passages)

    def add(self, passages: Iterable[Passage]) -> None:
        """The passages that are new at the next step."""
        self._passages += map(_Facts, passages)

    def of(self, reasoning: str) -> Grounds | None:
        """The grounds of the chain's next sentence; None where it claims nothing.

        Many passages may hold a name. Of those that hold equally many of the claims not placed yet, one is taken that
        states more of them in one place, then one with more of the sentence's words, then the one that the chain
        stood on last (a conclusion names what a sentence before it found), then the first that was found.
        """
        claims = claims_of(reasoning)
        if not claims.all:
            return None
        held = [{claim for claim in claims.all if claim in passage.whole} for passage in self._passages]
        words = {word for word in _plain(reasoning).split() if len(word) > 3}  # 'is' and 'of' tell nothing

        def fitness(n: int) -> tuple[int, int, int, int]:
            passage = self._passages[n]
            together, shared = passage.together(held[n]), passage.whole.shares(words)
            return len(held[n] & left), together, shared, self._used.get(n, -1)

        found = left = set().union(*held)
        chosen: list[int] = []
        while left:
            chosen.append(max(range(len(held)), key=fitness))
            left = left - held[chosen[-1]]
        self._used |= dict.fromkeys(chosen, max(self._used.values(), default=-1) + 1)
        missing = [
            claims.wording[claim]
            for claim in claims.all
            if claim not in found and (claim == claims.answer or claim not in self._question)
        ]
        return Grounds(tuple(sorted(chosen)), tuple(missing))


def grounding(reasoning: str, question: str, passages: Iterable[Passage]) -> float | None:
    """Share of the claims that stand in the passages seen so far or in the question, as `Ground` reads them, 0 to 1.

    None where nothing is claimed.
    """
    grounds = Ground(question, passages).of(reasoning)
    if grounds is None:
        return None
    claims = len(claims_of(reasoning).all)
    return (claims - len(grounds.missing)) / claims


def support(reasoning: str, passages: Iterable[Passage]) -> float | None:
    """The largest share of the claims that ONE passage holds, 0 to 1; None where nothing is claimed.

    A fact is stated in one place: a sentence that joins a name of one passage to a value of another, all of them
    grounded, scores low. So does a sentence that rightly joins two facts: choose the threshold for the teacher.
    """
    claims = claims_of(reasoning).all
    if not claims:
        return None
    texts = (_Text(passage.title, passage.text) for passage in passages)
    return max((sum(claim in text for claim in claims) / len(claims) for text in texts), default=0.0)


class _Text:
    """A normalised text that knows whether whole words stand in it."""

    def __init__(self, *parts: str) -> None:
        self._padded = " | ".join(("", *(_plain(part) for part in parts), ""))

    def __contains__(self, words: str) -> bool:
        return f" {words} " in self._padded

    def shares(self, words: Set[str]) -> int:
        """How many of these words stand in it."""
        return len(words & set(self._padded.split()))


class _Facts:
    """A passage as a whole, and sentence by sentence, each under the title."""

    def __init__(self, passage: Passage) -> None:
        self._passage = passage
        self.whole = _Text(passage.title, passage.text)

    @cached_property
    def _each(self) -> list[_Text]:
        # Most passages are never compared by their sentences.
        return [_Text(self._passage.title, part) for part in _STOP.split(self._passage.text)]

    def together(self, claims: Set[str]) -> int:
        """Most of these that one sentence holds."""
        return max(sum(claim in text for claim in claims) for text in self._each) if claims else 0


def _plain(text: str) -> str:
    """As answers are compared, and without accents, hyphens and possessives, which chains and passages mix."""
    letters = text
    if not text.isascii():
        letters = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return normalize(_HYPHEN.sub(" ", _POSSESSIVE.sub(" ", letters)))


def _normalised(texts: Iterable[str]) -> dict[str, str]:
    """Each text once, by its normal form; those of which nothing is left are left out."""
    return {plain: text for text in texts if (plain := _plain(text))}


def _without_opener(run: str) -> str:
    """A run of capitalised words without the opener of a sentence."""
    words: Sequence[str] = run.split()
    while words and words[0].lower().replace("\u2019", "'") in _OPENERS:
        words = words[1:]
    return " ".join(words)
