"""The claims of a reasoning step, and how much of them the passages hold and where, without a model.

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

from steper_ray.core.answers import extract_answer, normalize
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
#: Hyphens and dashes that are not ASCII.
_HYPHENS = frozenset("\u2010\u2011\u2012\u2013\u2014")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_POSSESSIVE = re.compile(r"['\u2019]s?\b")
_ASKED = re.compile(r"^\s*(?:Follow up|Action):.*$", re.MULTILINE)
_LABEL = re.compile(r"^\s*(?:Intermediate answer|Thought):\s*", re.MULTILINE)
#: Where a passage's sentence may end; that 'Dr. No' is cut in two does no harm.
_STOP = re.compile(r"(?<=[.!?])\s+")
_CLOSED = frozenset(("yes", "no"))


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of one step, each normalised as answers are (SQuAD). `answer` is None where none is stated.

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
    """The places of a text's claims.

    `passages` are places among those seen, from 0 and in order: few that together hold every claim that any holds.
    `missing` are the claims, as they are written, that stand nowhere.
    """

    passages: tuple[int, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shares:
    """How many of a step's claims are stated in what was read, as shares from 0 to 1.

    `grounding` is the share that stands in any of the passages seen so far or, the answer excepted, in the question.
    `support` is the largest share that ONE passage holds. A fact is stated in one place: a sentence that joins a name
    of one passage to a value of another, all of them grounded, scores low. So does a sentence that rightly joins two
    facts: choose the threshold for the teacher.
    """

    grounding: float
    support: float


class Ground:
    """The question and the passages seen so far, each read once: what one sentence of a chain after another stands on.

    A name or number of the question counts as standing there; the answer must be in a passage.
    """

    def __init__(self, question: str, passages: Iterable[Passage] = ()) -> None:
        self._question = _Text(_plain(question))
        self._passages: list[_Facts] = []
        self._used: dict[int, int] = {}  # passage -> the last sentence that stands on it
        self.add(passages)

    def add(self, passages: Iterable[Passage]) -> None:
        """The passages that are new at the next step."""
        self._passages += map(_Facts, passages)

    def shares(self, reasoning: str) -> Shares | None:
        """The shares of one step's claims; None where it claims nothing."""
        claims = claims_of(reasoning)
        every = claims.all
        if not every:
            return None
        held = self._held(every)
        standing = len(every) - len(self._missing(claims, held))
        return Shares(standing / len(every), max(map(len, held), default=0) / len(every))

    def of(self, reasoning: str) -> Grounds | None:
        """The grounds of the chain's next sentence; None where it claims nothing.

        Many passages may hold a name. Of those that hold equally many of the claims not placed yet, one is taken that
        states more of them in one place, then one with more of the sentence's words, then the one that the chain
        stood on last (a conclusion names what a sentence before it found), then the first that was found.
        """
        claims = claims_of(reasoning)
        if not claims.all:
            return None
        held = self._held(claims.all)
        words = {word for word in _plain(reasoning).split() if len(word) > 3}  # 'is' and 'of' carry no claim

        def fitness(n: int) -> tuple[int, int, int]:
            passage = self._passages[n]
            return passage.together(held[n]), len(words & passage.whole.words), self._used.get(n, -1)

        left = set[str]().union(*held)
        chosen: list[int] = []
        while left:
            most = max(len(some & left) for some in held)
            chosen.append(max((n for n, some in enumerate(held) if len(some & left) == most), key=fitness))
            left -= held[chosen[-1]]
        self._used |= dict.fromkeys(chosen, max(self._used.values(), default=-1) + 1)
        missing = [claims.wording[claim] for claim in self._missing(claims, held)]
        return Grounds(tuple(sorted(chosen)), tuple(missing))

    def _held(self, claims: Sequence[str]) -> list[set[str]]:
        """Those that each passage holds."""
        return [passage.whole.held(claims) for passage in self._passages]

    def _missing(self, claims: Claims, held: Iterable[Set[str]]) -> list[str]:
        """Those that stand neither in a passage nor, the answer excepted, in the question."""
        every = claims.all
        standing = (self._question.held(every) - {claims.answer}).union(*held)
        return [claim for claim in every if claim not in standing]


def grounding(reasoning: str, question: str, passages: Iterable[Passage]) -> float | None:
    """`Shares.grounding` of one step; None where it claims nothing."""
    shares = Ground(question, passages).shares(reasoning)
    return None if shares is None else shares.grounding


def support(reasoning: str, passages: Iterable[Passage]) -> float | None:
    """`Shares.support` of one step; None where it claims nothing."""
    shares = Ground("", passages).shares(reasoning)
    return None if shares is None else shares.support


class _Text:
    """A text of parts that `_plain` made, in which whole words are looked up."""

    def __init__(self, *parts: str) -> None:
        self._padded = " | ".join(("", *parts, ""))

    def held(self, claims: Iterable[str]) -> set[str]:
        """Those that stand in it."""
        text = self._padded
        return {claim for claim in claims if f" {claim} " in text}

    @cached_property
    def words(self) -> frozenset[str]:
        """Its words, each once."""
        return frozenset(self._padded.split())


class _Facts:
    """A passage as a whole, and sentence by sentence, each under the title."""

    def __init__(self, passage: Passage) -> None:
        self._title, self._text = _plain(passage.title), passage.text
        self.whole = _Text(self._title, _plain(passage.text))

    @cached_property
    def _each(self) -> list[_Text]:
        # Most passages are never compared by their sentences.
        return [_Text(self._title, _plain(part)) for part in _STOP.split(self._text)]

    def together(self, claims: Set[str]) -> int:
        """Most of these that one sentence holds."""
        return max(len(text.held(claims)) for text in self._each) if claims else 0


def _plain(text: str) -> str:
    """As answers are compared, and without accents, hyphens and possessives, which chains and passages mix."""
    letters = text if text.isascii() else _simple(text)
    if "'" in letters or "\u2019" in letters:
        letters = _POSSESSIVE.sub(" ", letters)
    return normalize(letters.replace("-", " ").replace("/", " "))


def _simple(text: str) -> str:
    """The text without accents and with ASCII hyphens in place of others."""
    letters = unicodedata.normalize("NFKD", text)
    for letter in set(_NOT_ASCII.findall(letters)):
        if unicodedata.combining(letter):
            letters = letters.replace(letter, "")
        elif letter in _HYPHENS:
            letters = letters.replace(letter, "-")
    return letters


def _normalised(texts: Iterable[str]) -> dict[str, str]:
    """Each text once, by its normal form; those of which nothing is left are omitted."""
    return {plain: text for text in texts if (plain := _plain(text))}


def _without_opener(run: str) -> str:
    """A run of capitalised words without the opener of a sentence."""
    words: Sequence[str] = run.split()
    while words and words[0].lower().replace("\u2019", "'") in _OPENERS:
        words = words[1:]
    return " ".join(words)
