"""An English question and its answer as a declarative clause: 'When did X open?', '1900' -> 'X opened in 1900'.

- A question is read as [opening] wh-word [noun] auxiliary subject verb rest; the answer takes the asked one's place.
- What the rules do not read is None, never a guess at a sentence.

Rules of grammar over words; inflections are LemmInflect's. Pure text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_BE = frozenset("is are was were".split())
_DO = frozenset("do does did".split())
_HAVE = frozenset("has have had".split())
_MODAL = frozenset("can could will would should must may might".split())
_AUXILIARY = _BE | _DO | _HAVE | _MODAL
_WH = frozenset("who whom whose what which when where why how".split())
PREPOSITIONS = frozenset(
    "in on at by of to from during for with under after before between into near about against as over since until "
    "through within around across along among behind beyond inside outside toward towards without throughout "
    "because due off".split()
)
_PARTICLES = frozenset("up out off down away back".split())
_DETERMINERS = frozenset(
    "the a an his her its their this that these those first last second third next new old most more some any no "
    "all each every another other both many few several only very former main largest".split()
)
#: Readings as a noun are more common than as a verb; a question's verb is rarely one of them.
_NOUNS = frozenset(
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
_ARTICLES = frozenset(("a", "an", "the"))
#: These open a clause behind which no answer stands.
_CLAUSES = frozenset("when while after before upon because if although despite".split())
_TIMES = frozenset("year years month decade century season era".split())
_DAYS = frozenset("date day".split())
_SIDE = frozenset("side coast island floor continent river team".split())
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_NTH = r"\d{1,2}(?:st|nd|rd|th)?"
_DAY = re.compile(rf"{_NTH} (?:of )?{_MONTH}|{_MONTH} {_NTH}(?!\d)|\w+day\b|(?:the )?{_NTH}$", re.IGNORECASE)
_STOP = re.compile(r"(?<=[^\W.]{5})\.$")  # no abbreviation's
_UNIT = re.compile(r"\d\S* [^\W\d]")
_AT = re.compile(r"\b(?:University|College|School|Stadium|Airport|Station|Arena|Academy|Cathedral|Hotel)\b")
_SPOKEN = {"who's": "who is", "what's": "what is", "where's": "where is", "when's": "when is"}


def declare(question: str, answer: str) -> str | None:
    """The clause without its full stop, its first letter as it comes; None where no rule reads the question."""
    words, answer = _words(question), _STOP.sub("", answer.strip().rstrip(",;:"))
    lowered = [word.lower() for word in words]
    asked = next((place for place, word in enumerate(lowered) if word in _WH), None)
    if asked is None:
        return _fragment(words, answer)
    opening, preposition, rest = _opening(words[:asked]), "", words[asked + 1 :]
    if opening is None:
        return _blank(words[:asked], rest, f"in {answer}" if lowered[asked] == "where" else answer)
    lead, preposition = opening
    question_of = _read(lowered[asked], rest)
    clause = None if question_of is None else _turned(question_of, preposition, answer)
    return None if clause is None else f"{lead} {clause}".strip()


@dataclass(frozen=True, slots=True)
class _Question:
    """`noun` is what is asked for ('which STATE', 'how MANY PEOPLE'); `verb` its first verb, mostly an auxiliary."""

    wh: str
    noun: tuple[str, ...]
    verb: str
    rest: tuple[str, ...]

    @property
    def head(self) -> str:
        """The noun's last word, before a phrase of its own: 'type' of 'type of government'."""
        named = [word.lower() for word in self.noun]
        cut = next((place for place, word in enumerate(named) if word in PREPOSITIONS), len(named))
        return named[cut - 1] if cut else ""

    @property
    def kind(self) -> str:
        """What the answer names, for its preposition."""
        return {"when": "year", "where": "city", "why": "reason"}.get(self.wh, self.head)


def _words(question: str) -> list[str]:
    text = question.strip().rstrip("?!. ")
    first, blank, rest = text.partition(" ")
    return f"{_SPOKEN.get(first.lower(), first)}{blank}{rest}".split()


def _opening(words: Sequence[str]) -> tuple[str, str] | None:
    """What stands before the wh-word: a phrase that stays in front ('Besides X,') and a preposition ('in which')."""
    lead, last = list(words), ""
    if lead and lead[-1].lower() in PREPOSITIONS and (len(lead) == 1 or lead[-2].endswith(",")):
        last = lead.pop().lower()
    if lead and not (
        lead[-1].endswith(",") and (lead[0].lower() in PREPOSITIONS | {"besides", "despite", "according"})
    ):
        return None
    return " ".join(lead), last


def _fragment(words: Sequence[str], answer: str) -> str | None:
    """'federal leader of X', 'The date of birth of X is' -> '... is ANSWER'."""
    lowered = [word.lower() for word in words]
    if lowered[:1] == ["name"] and lowered[1:2] == ["the"]:
        words, lowered = words[1:], lowered[1:]
    if lowered and lowered[-1] in _BE:
        return f"{' '.join(words)} {answer}"
    if lowered and lowered[-1] in PREPOSITIONS and _BE & set(lowered):
        return f"{' '.join(words)} {answer}"
    if not set(lowered) & _AUXILIARY and ({"of", "in"} & set(lowered[1:-1]) or "'s" in " ".join(lowered)):
        article = "" if lowered[0] in _DETERMINERS or lowered[0] != words[0] else "the "
        return f"{article}{' '.join(words)} is {answer}"
    return None


def _blank(before: Sequence[str], after: Sequence[str], answer: str) -> str | None:
    """'X is part of which state' -> 'X is part of ANSWER': the wh-word stands where the answer belongs."""
    if {word.lower() for word in after} & _AUXILIARY:
        return None
    phrase = next((n for n, word in enumerate(after) if word.lower() in PREPOSITIONS), len(after))
    if not {word.lower() for word in before} & _AUXILIARY and not any(_form(word, "VBD") for word in before):
        return None
    return " ".join((*before, answer, *after[phrase:]))


def _read(wh: str, rest: Sequence[str]) -> _Question | None:
    lowered = [word.lower() for word in rest]
    if wh in ("what", "which", "whose", "how"):
        for place, word in enumerate(lowered):
            if word in _AUXILIARY or (place and wh != "whose" and _is_finite(rest, place)):
                return _Question(wh, tuple(rest[:place]), rest[place], tuple(rest[place + 1 :]))
        if wh in ("what", "which") and lowered and _is_verb(rest[0]) and lowered[0] not in _NOUNS:
            return _Question(wh, (), rest[0], tuple(rest[1:]))
        return None
    if not rest:
        return None
    return _Question(wh, (), rest[0], tuple(rest[1:]))


def _turned(asked: _Question, preposition: str, answer: str) -> str | None:
    verb = asked.verb.lower()
    if asked.wh == "how" and (not asked.noun or asked.head in ("did", "was")):
        return None
    if verb not in _AUXILIARY:
        return _subject(asked, answer)
    if not asked.rest or "you" in asked.rest:
        return None
    turn: Callable[[_Question, str, str], str | None]
    turn = _be if verb in _BE else _do if verb in _DO else _have if verb in _HAVE else _modal
    return turn(asked, preposition, answer)


def _subject(asked: _Question, answer: str) -> str | None:
    """The answer is the subject: 'who won X', 'which state borders X'."""
    if asked.wh in ("when", "where", "why", "whose", "whom") or asked.verb in ("happens", "happened"):
        return None
    verb = asked.verb.lower() if _lemmas(asked.verb.lower()).get("VERB") else asked.verb
    return " ".join((_counted(asked, answer), verb, *asked.rest))


def _be(asked: _Question, preposition: str, answer: str) -> str | None:
    rest, verb = asked.rest, asked.verb.lower()
    first = rest[0].lower()
    adverbial = asked.wh in ("when", "where", "why") or asked.head in _TIMES | _DAYS
    place = _predicate(rest, loosely=adverbial)
    hangs = rest[-1].lower() in PREPOSITIONS and not preposition
    if asked.wh == "how":
        return _measured(asked, place, answer)
    if hangs and not adverbial and _AUXILIARY & {word.lower() for word in rest}:
        return f"{' '.join(rest)} {verb} {answer}"
    if [word.lower() for word in rest[1:2]] in (["last"], ["first"]) and rest[2:3] == ("time",):
        return f"{' '.join(rest)} {verb} {_placed(answer, preposition, asked.kind, False)}"
    if adverbial:
        return _joined(rest, place, verb, asked, _placed(answer, preposition, asked.kind, hangs))
    adverb = int(first.endswith("ly") and len(rest) > 1)
    if first in ("a", "an") or _is_participle(rest, adverb, loosely=True) or first in PREPOSITIONS:
        return f"{answer} {verb} {' '.join(rest)}"
    if preposition or hangs:
        return _joined(rest, place, verb, asked, _placed(answer, preposition, asked.kind, hangs))
    ends = place is not None and place == len(rest) - 1
    if asked.noun:
        if asked.head == "nationality":
            return f"{' '.join(rest)} {verb} {answer}"
        if ends or (place and first not in _DETERMINERS):
            return _joined(rest, place, verb, asked, _placed(answer, "", asked.kind, False))
        if first in _DETERMINERS or (
            asked.rest[0].islower() and first not in _NOUNS and not first.startswith("'")
        ):
            return f"{_counted(asked, answer)} {verb} {' '.join(rest)}"
        return f"the {' '.join(asked.noun)} of {' '.join(rest)} {verb} {answer}"
    if ends and not _AUXILIARY & {word.lower() for word in rest[:-1]}:
        return f"{' '.join(rest[:-1])} {verb} {rest[-1]} {answer}"
    if place and first not in _DETERMINERS and "'s" not in " ".join(rest[:place]):
        return f"{' '.join(rest[:place])} {verb} {rest[place]} {answer} {' '.join(rest[place + 1 :])}".strip()
    return f"{' '.join(rest)} {verb} {answer}"


def _do(asked: _Question, preposition: str, answer: str) -> str | None:
    rest = asked.rest
    place = _base(rest)
    if place is None:
        return None
    tag = {"did": "VBD", "does": "VBZ"}.get(asked.verb.lower())
    verb = rest[place] if tag is None else _inflected(rest[place], tag)
    return _ordered(asked, rest[:place], verb, rest[place + 1 :], preposition, answer)


def _have(asked: _Question, preposition: str, answer: str) -> str | None:
    rest, verb = asked.rest, asked.verb.lower()
    place = next((place for place in range(len(rest)) if _is_participle(rest, place)), None)
    if place == 0 or (place is None and asked.wh in ("who", "what", "which", "how")):
        return f"{_counted(asked, answer)} {verb} {' '.join(rest)}"
    if place is None or asked.wh in ("how", "whose"):
        return None
    if rest[0].lower() in _DETERMINERS and not preposition and asked.wh == "who":
        return f"{answer} {verb} {' '.join(rest)}"
    return _ordered(asked, rest[:place], f"{verb} {rest[place]}", rest[place + 1 :], preposition, answer)


def _modal(asked: _Question, preposition: str, answer: str) -> str | None:
    rest, verb = asked.rest, asked.verb.lower()
    if _is_verb(rest[0]) and rest[0].lower() not in _NOUNS:
        return f"{_counted(asked, answer)} {verb} {' '.join(rest)}"
    place = next((n for n, word in enumerate(rest) if n and (word.lower() == "be" or n == _base(rest))), None)
    if place is None:
        return None
    end = place + 1
    if rest[place].lower() == "be" and end < len(rest) and _is_participle(rest, end):
        end += 1
    return _ordered(
        asked, rest[:place], f"{verb} {' '.join(rest[place:end])}", rest[end:], preposition, answer
    )


def _ordered(
    asked: _Question, subject: Sequence[str], verb: str, tail: Sequence[str], preposition: str, answer: str
) -> str | None:
    """Subject, verb, then the answer as object, or behind the rest as time, place, reason or after its preposition."""
    hangs = bool(tail) and tail[-1].lower() in PREPOSITIONS
    whole = (*subject, verb, *tail)
    if asked.wh == "how":
        if asked.head in ("many", "much", "times") or asked.noun[0].lower() in ("many", "much"):
            return " ".join((*subject, verb, _counted(asked, answer), *tail))
        return (
            " ".join((*whole, answer if answer.startswith("for ") else f"for {answer}"))
            if asked.head == "long"
            else None
        )
    adverbial = asked.wh in ("when", "where", "why") or (asked.head in _TIMES | _DAYS and not hangs)
    if preposition or adverbial or hangs:
        return " ".join(
            _behind(whole, len(subject) + 1, asked, _placed(answer, preposition, asked.kind, hangs))
        )
    if tail and tail[0].lower() in _PARTICLES:
        verb, tail = f"{verb} {tail[0]}", tail[1:]
    return " ".join((*subject, verb, answer, *tail))


def _measured(asked: _Question, place: int | None, answer: str) -> str | None:
    """'how many N are there in X', 'how many N are in X', 'how long is X'."""
    rest, verb = asked.rest, asked.verb.lower()
    if asked.noun[0].lower() in ("many", "much"):
        if rest[0].lower() == "there":
            return f"there {verb} {_counted(asked, answer)} {' '.join(rest[1:])}".strip()
        return f"{_counted(asked, answer)} {verb} {' '.join(rest)}"
    if len(asked.noun) > 1 or place is not None:
        return None
    return f"{' '.join(rest)} {verb} {answer}"


def _counted(asked: _Question, answer: str) -> str:
    """The answer with the noun that is counted, unless it names it: '35' -> '35 stores'."""
    if asked.head in ("percentage", "percent", "amount", "number", "share") and "of" in asked.noun:
        return f"{answer} {' '.join(asked.noun[asked.noun.index('of') :])}"
    if asked.wh != "how" or asked.noun[0].lower() != "many":
        return answer
    noun = " ".join(asked.noun[1:])
    first = noun.split()[:1]
    if re.search(r"(?:dozen|hundred|thousand|million|billion)s$", answer):
        answer += " of"
    known = not first or first[0].lower()[:5] in answer.lower() or _UNIT.search(answer) is not None
    return answer if known else f"{answer} {noun}"


def _joined(rest: Sequence[str], place: int | None, verb: str, asked: _Question, ending: str) -> str:
    """'X' or 'X located' -> 'X is ENDING', 'X is located ENDING'."""
    if place is None and asked.wh != "why":
        place = _article(rest)
    subject, predicate = (rest, ()) if place is None else (rest[:place], rest[place:])
    return " ".join(_behind((*subject, verb, *predicate), len(subject) + 2, asked, ending))


def _behind(words: Sequence[str], start: int, asked: _Question, ending: str) -> list[str]:
    """The ending behind the words, or before a clause or, for a place, a phrase that follows the verb."""
    lowered = [word.lower() for word in words]
    at = next((n for n in range(start, len(words) - 1) if lowered[n] in _CLAUSES), None)
    if at is None and asked.wh == "where" and start < len(words) - 1 and lowered[start] in PREPOSITIONS:
        hangs = lowered[start + 1] in PREPOSITIONS  # 'leave from in Toronto'
        at = start + hangs if hangs or lowered[start] in ("in", "on", "at") else None
    if at is None:
        return [*words, ending]
    answer = ending.split(maxsplit=1)[-1] if words[at - 1].lower() in PREPOSITIONS else ending
    return [*words[: at - 1], words[at - 1].removesuffix(","), answer, *words[at:]]


def _placed(answer: str, preposition: str, kind: str, hangs: bool) -> str:
    """The answer behind the preposition that its kind asks for; none where it has one, or one hangs before it."""
    first, _, more = answer.partition(" ")
    if _form(first, "VBN") and more.split()[:1] and more.split()[0] in PREPOSITIONS:  # 'built in 1900'
        answer, (first, *_) = more, more.split()
    if first.lower() in PREPOSITIONS:
        answer, first = first.lower() + answer[len(first) :], first.lower()
    if first in PREPOSITIONS and (hangs or preposition):
        return answer.split(maxsplit=1)[-1] if first == preposition or hangs else answer
    if kind == "century" and re.fullmatch(r"(?:the )?\d+(?:st|nd|rd|th)", answer):
        answer = f"the {answer.removeprefix('the ')} century"
    if hangs or first in PREPOSITIONS:
        return answer
    if preposition:
        return f"{preposition} {answer}"
    if kind == "reason":
        return f"because of {answer}"
    if _DAY.match(answer) or kind in _DAYS:
        return f"on {answer}"
    return f"{'at' if _AT.search(answer) else 'on' if kind in _SIDE else 'in'} {answer}"


def dated(answer: str) -> str:
    """A date or year behind its preposition: 'on 1 May 1900', 'in 1900'."""
    return _placed(answer, "", "year", hangs=False)


def _predicate(rest: Sequence[str], loosely: bool = False) -> int | None:
    """Where a participle, an adjective or a last preposition begins what is said of the subject."""
    for place in range(1, len(rest)):
        if _is_participle(rest, place, loosely) or (
            rest[place].lower() in _ADJECTIVES and not _is_after_article(rest, place)
        ):
            return place
    if len(rest) > 1 and rest[-1].lower() in PREPOSITIONS:
        return _article(rest) or len(rest) - 1
    return None


def _article(rest: Sequence[str]) -> int | None:
    """Where an article behind a name begins what is said of it: 'Nelson River A tributary of'."""
    return next((n for n in range(1, len(rest)) if rest[n] in _ARTICLES and not rest[n - 1].islower()), None)


def _base(rest: Sequence[str]) -> int | None:
    """Where the base form of the verb stands: behind the subject, and rather no noun."""
    places = [n for n in range(1, len(rest)) if _is_verb(rest[n]) and not _is_noun_there(rest, n)]
    sure = [n for n in places if rest[n].lower() not in _NOUNS]
    only = [n for n in sure if not _reads(rest[n], "NOUN")]
    if (
        sure and only and only[0] - sure[0] > 2
    ):  # 'did the X found at Y join': what comes far behind is another clause
        return sure[0]
    return next(iter(only or sure or places), None)


def _is_noun_there(rest: Sequence[str], place: int) -> bool:
    """Behind an article or a preposition; 'first' and 'last' stand before verbs too ('did X first attend')."""
    before = rest[place - 1].lower()
    return _is_after_article(rest, place) and (before not in ("first", "last") or _reads(rest[place], "NOUN"))


def _is_after_article(words: Sequence[str], place: int) -> bool:
    before = words[place - 1].lower()
    return before in _DETERMINERS or before in PREPOSITIONS or before.endswith("'s")


def _is_finite(words: Sequence[str], place: int) -> bool:
    """Whether a word is a verb in the past or the third person, and not a plural noun."""
    word = words[place]
    if not word.islower() or word in PREPOSITIONS or _is_after_article(words, place):
        return False
    if not (_form(word, "VBD") or _form(word, "VBZ")):
        return False
    if _reads(word, "NOUN") and word.endswith("s"):
        following = words[place + 1].lower() if place + 1 < len(words) else ""
        return (
            bool(following)
            and following not in _AUXILIARY
            and not _form(following, "VBD")
            and (not _is_verb(following) or not following.islower() or following in _NOUNS)
        )
    return True


def _is_verb(word: str) -> bool:
    """Whether a word may be the base form of a verb."""
    return word.islower() and word not in PREPOSITIONS and word in _lemmas(word).get("VERB", ())


def _is_participle(words: Sequence[str], place: int, loosely: bool = False) -> bool:
    """Whether a word is a participle; `loosely` counts those in -ing that are nouns too."""
    word = words[place]
    if not word.islower() or (place and _is_after_article(words, place)):
        return False
    if word.endswith("ing"):
        return bool(_lemmas(word).get("VERB")) and (loosely or word not in _lemmas(word).get("NOUN", ()))
    return _form(word, "VBN") and word not in PREPOSITIONS and word not in _NOUNS


def _form(word: str, tag: str) -> bool:
    """Whether a word is this form of a verb and not its base form."""
    from lemminflect import getInflection

    verbs = _lemmas(word).get("VERB", ()) if word.islower() else ()
    return any(word != verb and word in getInflection(verb, tag) for verb in verbs)


def _reads(word: str, part: str) -> bool:
    return part in _lemmas(word)


def _lemmas(word: str) -> dict[str, tuple[str, ...]]:
    from lemminflect import getAllLemmas  # its tables take 20 MB

    found: dict[str, tuple[str, ...]] = getAllLemmas(word)
    return found


_IRREGULAR = {("broadcast", "VBD"): "broadcast", ("lie", "VBD"): "lay"}


def _inflected(verb: str, tag: str) -> str:
    from lemminflect import getInflection

    known = _IRREGULAR.get((verb, tag))
    return known or next(iter(getInflection(verb, tag)), verb)
