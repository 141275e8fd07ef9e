"""An English question and its answer as a declarative clause: 'When did X open?', '1900' -> 'X opened in 1900'.

- A question is read as [opening] wh-word [noun] auxiliary subject verb rest; the answer takes the asked one's place.
- What the rules do not read is None, never a guess at a sentence.

Rules of grammar; words.py knows the words. Pure text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steper_ray.rollouts.words import (
    AUXILIARY,
    BE,
    DAYS,
    DETERMINERS,
    DO,
    HAVE,
    NOUNS,
    PREPOSITIONS,
    TIMES,
    article,
    base_verb,
    inflected,
    is_finite,
    is_form,
    is_participle,
    is_verb,
    lemmas,
    placed,
    predicate,
)

_WH = frozenset("who whom whose what which when where why how".split())
_PARTICLES = frozenset("up out off down away back".split())
#: These open a clause behind which no answer stands.
_CLAUSES = frozenset("when while after before upon because if although despite".split())
_STOP = re.compile(r"(?<=[^\W.]{5})\.$")  # no abbreviation's
_UNIT = re.compile(r"\d\S* [^\W\d]")
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
        """The noun's last word, before a phrase that belongs to it: 'type' of 'type of government'."""
        named = [word.lower() for word in self.noun]
        cut = next((place for place, word in enumerate(named) if word in PREPOSITIONS), len(named))
        return named[cut - 1] if cut else ""

    @property
    def kind(self) -> str:
        """The kind of thing the answer names, for its preposition."""
        return {"when": "year", "where": "city", "why": "reason"}.get(self.wh, self.head)


def _words(question: str) -> list[str]:
    text = question.strip().rstrip("?!. ")
    first, blank, rest = text.partition(" ")
    return f"{_SPOKEN.get(first.lower(), first)}{blank}{rest}".split()


def _opening(words: Sequence[str]) -> tuple[str, str] | None:
    """The words before the wh-word: a phrase that stays in front ('Besides X,') and a preposition ('in which')."""
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
    if lowered and lowered[-1] in BE:
        return f"{' '.join(words)} {answer}"
    if lowered and lowered[-1] in PREPOSITIONS and BE & set(lowered):
        return f"{' '.join(words)} {answer}"
    if not set(lowered) & AUXILIARY and ({"of", "in"} & set(lowered[1:-1]) or "'s" in " ".join(lowered)):
        article = "" if lowered[0] in DETERMINERS or lowered[0] != words[0] else "the "
        return f"{article}{' '.join(words)} is {answer}"
    return None


def _blank(before: Sequence[str], after: Sequence[str], answer: str) -> str | None:
    """'X is part of which state' -> 'X is part of ANSWER': the wh-word stands where the answer belongs."""
    if {word.lower() for word in after} & AUXILIARY:
        return None
    phrase = next((n for n, word in enumerate(after) if word.lower() in PREPOSITIONS), len(after))
    if not {word.lower() for word in before} & AUXILIARY and not any(is_form(word, "VBD") for word in before):
        return None
    return " ".join((*before, answer, *after[phrase:]))


def _read(wh: str, rest: Sequence[str]) -> _Question | None:
    lowered = [word.lower() for word in rest]
    if wh in ("what", "which", "whose", "how"):
        for place, word in enumerate(lowered):
            if word in AUXILIARY or (place and wh != "whose" and is_finite(rest, place)):
                return _Question(wh, tuple(rest[:place]), rest[place], tuple(rest[place + 1 :]))
        if wh in ("what", "which") and lowered and is_verb(rest[0]) and lowered[0] not in NOUNS:
            return _Question(wh, (), rest[0], tuple(rest[1:]))
        return None
    if not rest:
        return None
    return _Question(wh, (), rest[0], tuple(rest[1:]))


def _turned(asked: _Question, preposition: str, answer: str) -> str | None:
    verb = asked.verb.lower()
    if asked.wh == "how" and (not asked.noun or asked.head in ("did", "was")):
        return None
    if verb not in AUXILIARY:
        return _subject(asked, answer)
    if not asked.rest or "you" in asked.rest:
        return None
    turn: Callable[[_Question, str, str], str | None]
    turn = _be if verb in BE else _do if verb in DO else _have if verb in HAVE else _modal
    return turn(asked, preposition, answer)


def _subject(asked: _Question, answer: str) -> str | None:
    """The answer is the subject: 'who won X', 'which state borders X'."""
    if asked.wh in ("when", "where", "why", "whose", "whom") or asked.verb in ("happens", "happened"):
        return None
    verb = asked.verb.lower() if lemmas(asked.verb.lower()).get("VERB") else asked.verb
    return " ".join((_counted(asked, answer), verb, *asked.rest))


def _be(asked: _Question, preposition: str, answer: str) -> str | None:
    rest, verb = asked.rest, asked.verb.lower()
    first = rest[0].lower()
    adverbial = asked.wh in ("when", "where", "why") or asked.head in TIMES | DAYS
    place = predicate(rest, loosely=adverbial)
    hangs = rest[-1].lower() in PREPOSITIONS and not preposition
    if asked.wh == "how":
        return _measured(asked, place, answer)
    if hangs and not adverbial and AUXILIARY & {word.lower() for word in rest}:
        return f"{' '.join(rest)} {verb} {answer}"
    if [word.lower() for word in rest[1:2]] in (["last"], ["first"]) and rest[2:3] == ("time",):
        return f"{' '.join(rest)} {verb} {placed(answer, preposition, asked.kind, False)}"
    if adverbial:
        return _joined(rest, place, verb, asked, placed(answer, preposition, asked.kind, hangs))
    adverb = int(first.endswith("ly") and len(rest) > 1)
    if first in ("a", "an") or is_participle(rest, adverb, loosely=True) or first in PREPOSITIONS:
        return f"{answer} {verb} {' '.join(rest)}"
    if preposition or hangs:
        return _joined(rest, place, verb, asked, placed(answer, preposition, asked.kind, hangs))
    ends = place is not None and place == len(rest) - 1
    if asked.noun:
        if asked.head == "nationality":
            return f"{' '.join(rest)} {verb} {answer}"
        if ends or (place and first not in DETERMINERS):
            return _joined(rest, place, verb, asked, placed(answer, "", asked.kind, False))
        if first in DETERMINERS or (
            asked.rest[0].islower() and first not in NOUNS and not first.startswith("'")
        ):
            return f"{_counted(asked, answer)} {verb} {' '.join(rest)}"
        return f"the {' '.join(asked.noun)} of {' '.join(rest)} {verb} {answer}"
    if ends and not AUXILIARY & {word.lower() for word in rest[:-1]}:
        return f"{' '.join(rest[:-1])} {verb} {rest[-1]} {answer}"
    if place and first not in DETERMINERS and "'s" not in " ".join(rest[:place]):
        return f"{' '.join(rest[:place])} {verb} {rest[place]} {answer} {' '.join(rest[place + 1 :])}".strip()
    return f"{' '.join(rest)} {verb} {answer}"


def _do(asked: _Question, preposition: str, answer: str) -> str | None:
    rest = asked.rest
    place, tag = base_verb(rest), {"did": "VBD", "does": "VBZ"}.get(asked.verb.lower())
    if place is None and tag == "VBD":  # 'when did Guyana became a member': already in the past
        place, tag = next((n for n, word in enumerate(rest) if n and is_form(word, tag)), None), None
    if place is None:
        return None
    verb = rest[place] if tag is None else inflected(rest[place], tag)
    return _ordered(asked, rest[:place], verb, rest[place + 1 :], preposition, answer)


def _have(asked: _Question, preposition: str, answer: str) -> str | None:
    rest, verb = asked.rest, asked.verb.lower()
    place = next((place for place in range(len(rest)) if is_participle(rest, place)), None)
    if place == 0 or (place is None and asked.wh in ("who", "what", "which", "how")):
        return f"{_counted(asked, answer)} {verb} {' '.join(rest)}"
    if place is None or asked.wh in ("how", "whose"):
        return None
    if rest[0].lower() in DETERMINERS and not preposition and asked.wh == "who":
        return f"{answer} {verb} {' '.join(rest)}"
    return _ordered(asked, rest[:place], f"{verb} {rest[place]}", rest[place + 1 :], preposition, answer)


def _modal(asked: _Question, preposition: str, answer: str) -> str | None:
    rest, verb = asked.rest, asked.verb.lower()
    if is_verb(rest[0]) and rest[0].lower() not in NOUNS:
        return f"{_counted(asked, answer)} {verb} {' '.join(rest)}"
    place = next(
        (n for n, word in enumerate(rest) if n and (word.lower() == "be" or n == base_verb(rest))), None
    )
    if place is None:
        return None
    end = place + 1
    if rest[place].lower() == "be" and end < len(rest) and is_participle(rest, end):
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
    adverbial = asked.wh in ("when", "where", "why") or (asked.head in TIMES | DAYS and not hangs)
    if preposition or adverbial or hangs:
        return " ".join(
            _behind(whole, len(subject) + 1, asked, placed(answer, preposition, asked.kind, hangs))
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
        place = article(rest)
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
    first, _, more = ending.partition(" ")
    answer = more if lowered[at - 1] in PREPOSITIONS and first in PREPOSITIONS else ending
    return [*words[: at - 1], words[at - 1].removesuffix(","), answer, *words[at:]]
