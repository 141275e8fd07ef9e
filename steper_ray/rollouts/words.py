"""English words: which is a verb, a participle or a noun where it stands, and which preposition an answer takes.

Inflections are LemmInflect's; its tables, 20 MB, are read at the first question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

BE = frozenset("is are was were".split())
DO = frozenset("do does did".split())
HAVE = frozenset("has have had".split())
MODAL = frozenset("can could will would should must may might".split())
AUXILIARY = BE | DO | HAVE | MODAL
PREPOSITIONS = frozenset(
    "in on at by of to from during for with under after before between into near about against as over since until "
    "through within around across along among behind beyond inside outside toward towards without throughout "
    "because due off".split()
)
DETERMINERS = frozenset(
    "the a an his her its their this that these those first last second third next new old most more some any no "
    "all each every another other both many few several only very former main largest".split()
)
#: Readings as a noun are more common than as a verb; a question's verb is rarely one of them.
NOUNS = frozenset(
    "state season name part place time park house book film series show air age team water age king head war world "
    "father mother county country city church school party company club bank board body border river lake island "
    "street station university college people man woman day year date month person group area title song album "
    "record award movie band game cup prize president leader battle land sea ocean mountain population language "
    "race man border center centre number rock record side north south east west host "
    "court dream house black white red green blue gold silver iron stone wood fire light night".split()
)
_ADJECTIVES = frozenset(
    "able available active famous known located situated based born named called made responsible similar close due "
    "native common adjacent present dead alive popular part home".split()
)
ARTICLES = frozenset(("a", "an", "the"))
TIMES = frozenset("year years month decade century season era".split())
DAYS = frozenset("date day".split())
_SIDE = frozenset("side coast island floor continent river team".split())
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_NTH = r"\d{1,2}(?:st|nd|rd|th)?"
_DAY = re.compile(rf"{_NTH} (?:of )?{_MONTH}|{_MONTH} {_NTH}(?!\d)|\w+day\b|(?:the )?{_NTH}$", re.IGNORECASE)
_AT = re.compile(r"\b(?:University|College|School|Stadium|Airport|Station|Arena|Academy|Cathedral|Hotel)\b")


def predicate(rest: Sequence[str], loosely: bool = False) -> int | None:
    """The place where a participle, an adjective or a last preposition begins the predicate."""
    for place in range(1, len(rest)):
        if is_participle(rest, place, loosely) or (
            rest[place].lower() in _ADJECTIVES and not _is_after_article(rest, place)
        ):
            return place
    if len(rest) > 1 and rest[-1].lower() in PREPOSITIONS:
        return article(rest) or len(rest) - 1
    return None


def article(rest: Sequence[str]) -> int | None:
    """The place where an article behind a name begins the predicate: 'Nelson River A tributary of'."""
    return next((n for n in range(1, len(rest)) if rest[n] in ARTICLES and not rest[n - 1].islower()), None)


def base_verb(rest: Sequence[str]) -> int | None:
    """The place of the verb's base form: behind the subject, and rather no noun."""
    places = [n for n in range(1, len(rest)) if is_verb(rest[n]) and not _is_noun_there(rest, n)]
    sure = [n for n in places if rest[n].lower() not in NOUNS]
    only = [n for n in sure if not _reads(rest[n], "NOUN")]
    if sure and only and only[0] - sure[0] > 2:  # a verb far behind belongs to another clause
        return sure[0]
    return next(iter(only or sure or places), None)


def _is_noun_there(rest: Sequence[str], place: int) -> bool:
    """Behind an article or a preposition; 'first' and 'last' stand before verbs too ('did X first attend')."""
    before = rest[place - 1].lower()
    return _is_after_article(rest, place) and (before not in ("first", "last") or _reads(rest[place], "NOUN"))


def _is_after_article(words: Sequence[str], place: int) -> bool:
    before = words[place - 1].lower()
    return before in DETERMINERS or before in PREPOSITIONS or before.endswith("'s")


def is_finite(words: Sequence[str], place: int) -> bool:
    """Whether a word is a verb in the past or the third person, and not a plural noun."""
    word = words[place]
    if not word.islower() or word in PREPOSITIONS or _is_after_article(words, place):
        return False
    if not (is_form(word, "VBD") or is_form(word, "VBZ")):
        return False
    if _reads(word, "NOUN") and word.endswith("s"):
        following = words[place + 1].lower() if place + 1 < len(words) else ""
        return (
            bool(following)
            and following not in AUXILIARY
            and not is_form(following, "VBD")
            and (not is_verb(following) or not following.islower() or following in NOUNS)
        )
    return True


def is_verb(word: str) -> bool:
    """Whether a word may be the base form of a verb."""
    return word.islower() and word not in PREPOSITIONS and word in lemmas(word).get("VERB", ())


def is_participle(words: Sequence[str], place: int, loosely: bool = False) -> bool:
    """Whether a word is a participle; `loosely` counts those in -ing that are nouns too."""
    word = words[place]
    if not word.islower() or (place and _is_after_article(words, place)):
        return False
    if word.endswith("ing"):
        return bool(lemmas(word).get("VERB")) and (loosely or word not in lemmas(word).get("NOUN", ()))
    return is_form(word, "VBN") and word not in PREPOSITIONS and word not in NOUNS


@lru_cache(16384)
def is_form(word: str, tag: str) -> bool:
    """Whether a word is this form of a verb and not its base form."""
    from lemminflect import getInflection

    verbs = lemmas(word).get("VERB", ()) if word.islower() else ()
    return any(word != verb and word in getInflection(verb, tag) for verb in verbs)


def _reads(word: str, part: str) -> bool:
    return part in lemmas(word)


@lru_cache(16384)
def lemmas(word: str) -> dict[str, tuple[str, ...]]:
    from lemminflect import getAllLemmas  # its tables take 20 MB

    found: dict[str, tuple[str, ...]] = getAllLemmas(word)
    return found


_IRREGULAR = {("broadcast", "VBD"): "broadcast", ("lie", "VBD"): "lay"}


@lru_cache(4096)
def inflected(verb: str, tag: str) -> str:
    from lemminflect import getInflection

    known = _IRREGULAR.get((verb, tag))
    return known or next(iter(getInflection(verb, tag)), verb)


def placed(answer: str, preposition: str, kind: str, hangs: bool) -> str:
    """The answer behind the preposition that its kind asks for; none where it has one, or one hangs before it."""
    first, _, more = answer.partition(" ")
    if is_form(first, "VBN") and more.split()[:1] and more.split()[0] in PREPOSITIONS:  # 'built in 1900'
        answer, (first, *_) = more, more.split()
    if first.lower() in PREPOSITIONS:
        answer, first = first.lower() + answer[len(first) :], first.lower()
    if first in PREPOSITIONS and (hangs or preposition):
        return answer.partition(" ")[2] if first == preposition or hangs else answer
    if kind == "century" and re.fullmatch(r"(?:the )?\d+(?:st|nd|rd|th)", answer):
        answer = f"the {answer.removeprefix('the ')} century"
    if hangs or first in PREPOSITIONS:
        return answer
    if preposition:
        return f"{preposition} {answer}"
    if kind == "reason":
        return f"because of {answer}"
    if _DAY.match(answer) or kind in DAYS:
        return f"on {answer}"
    return f"{'at' if _AT.search(answer) else 'on' if kind in _SIDE else 'in'} {answer}"


def dated(answer: str) -> str:
    """A date or year behind its preposition: 'on 1 May 1900', 'in 1900'."""
    return placed(answer, "", "year", hangs=False)
