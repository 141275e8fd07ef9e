"""A gold sub-question and its answer as a reasoning sentence, or as a follow-up question. Pure text rules.

- Sub-questions are natural questions ('Who was the first president of X?': clauses.py), relations ('X >> spouse':
  relations.txt) and fragments ('federal leader of X').
- Every statement is one sentence by the rule that cuts a generation (`core.sentences`), so a chain written here has the
  same steps as a chain that was generated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

from steper_ray.core.sentences import CLOSING, first_sentence
from steper_ray.rollouts.clauses import declare
from steper_ray.rollouts.words import PREPOSITIONS, dated
from steper_ray.schema import Passage

_REFERENCE = re.compile(r"#(\d+)")
_BLANK_BEFORE = re.compile(r"\s+(?=[?,;:.!]|['\u2019]s\b)")
_TWICE = re.compile(r"\b(the|a|an) (?=(?:the|an?) )", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{3,}")
_INSIDE = re.compile(r"(?<=[^.!?:] )[^\W\d_a-z][^\W\d_]{2,}")  # capitalised, and not at a sentence's start
_UNCLOSED = re.compile(r"\s*\([^)]*$")
_QUOTES = re.compile(r"``\s*|\s*''")
#: Participles that open a relation ('located in ...') which relations.txt does not have.
_PARTICIPLES = frozenset(
    "located owned educated licensed named founded followed distributed based part member present".split()
)
#: Names that take an article.
_THE = re.compile(
    r"(?:University|Kingdom|Republic|Duchy|Principality|Order|Battle|House|Isle|City) of |"
    r"(?:United (?:States|Kingdom|Arab)|Netherlands|Philippines|Bahamas|Gambia|Maldives)\b|"
    r"(?:USA|US|UK|USSR|U\.S\.(?:A\.)?|U\.K\.)$|"
    r".*\b(?:Empire|Union|Republic|Party|Medal|Prize|Award|Cross|Trophy|Islands|Confederacy|War)$"
)
#: Adjectives of nationality where a country is asked for.
_NATIONALITY = re.compile(
    r"(?:[A-Z]\w+ )?(?:[A-Z]\w+(?:ian|ese|ish|ican|doran|rean|lean|ttish)|Cuban|German|French|Dutch|Greek|Czech|Swiss|"
    r"Thai|Welsh|Afghan|Iraqi|Israeli|Pakistani|Bangladeshi|Filipino|Argentine|Slovak|Slovene)"
)
_COUNTRY = ("country", "country of citizenship", "country of origin")


def fill_in(question: str, answers: Sequence[str]) -> str:
    """A sub-question with '#n' replaced by the answer of hop n, and MuSiQue's stray blanks removed.

    A number that points at no earlier hop is part of the text ('#1 Record') and stays.
    """

    def answer(match: re.Match[str]) -> str:
        hop = int(match.group(1))
        return answers[hop - 1] if 1 <= hop <= len(answers) else match.group()

    filled = " ".join(_QUOTES.sub('"', _REFERENCE.sub(answer, question)).split())
    return _TWICE.sub("", _BLANK_BEFORE.sub("", filled))


def references(question: str, hops: int) -> frozenset[int]:
    """The earlier hops (from 0, of `hops`) whose answers a sub-question needs."""
    numbers = (int(number) - 1 for number in _REFERENCE.findall(question))
    return frozenset(number for number in numbers if 0 <= number < hops)


def recased(statement: str, passage: Passage) -> str:
    """The statement with its small words written as names where the passage writes them so, and never small."""
    text = f"{passage.title}. {passage.text}"
    small = {word for word in _WORD.findall(text) if word.islower()}
    names = {word.lower(): word for word in _INSIDE.findall(text) if word.lower() not in small}
    return _WORD.sub(lambda match: names.get(match.group(), match.group()), statement)


def state(question: str, answer: str) -> str:
    """The fact that `question` (filled in) has this answer, as one declarative sentence.

    'X >> director' gives 'X was directed by A.', 'When did X open?' 'X opened in A.'; what no rule reads is quoted:
    'The answer to "how was X built" is A.'
    """
    answer = _QUOTES.sub('"', " ".join(answer.split()))
    subject, arrow, relation = (part.strip() for part in question.partition(">>"))
    if arrow:
        return _sentence(_related(_UNCLOSED.sub("", subject) or subject, relation, answer))
    clause = declare(question, answer)
    if clause is None:
        quoted = question.rstrip("?!. ").replace('"', "'")
        clause = f'The answer to "{quoted}" is {answer}'
    return _sentence(clause)


def follow_up(question: str) -> str:
    """A sub-question (filled in) as a question that Self-Ask and ReAct ask: one line with a question mark."""
    subject, arrow, relation = (part.strip() for part in question.partition(">>"))
    if not arrow:
        return _upper(question.rstrip("?!. ")) + "?"
    known = relations().get(relation.lower())
    if known is not None:
        return _upper(_filled(known[1], subject, ""))
    if _hangs(relation):
        return f"What is {subject} {relation}?"
    return f"What is the {relation} of {subject}?"


@cache
def relations() -> dict[str, tuple[str, str]]:
    """Statement and question of each relation in relations.txt."""
    text = (resources.files(__package__) / "relations.txt").read_text(encoding="utf-8")
    rows = (line.split(" | ") for line in text.splitlines() if line and not line.startswith("#"))
    return {relation: (statement, question) for relation, statement, question in rows}


def _related(subject: str, relation: str, answer: str) -> str:
    name = relation.lower()
    if name in _COUNTRY and _NATIONALITY.fullmatch(answer):
        return f"{subject} was {answer}" if name == "country of citizenship" else f"{subject} is {answer}"
    if name == "cause of death" and answer.endswith(("ed", "shot", "hung")):
        return f"{subject} was {answer}"
    known = relations().get(name)
    if known is not None:
        return _filled(known[0], subject, answer)
    if _hangs(relation):
        return f"{subject} is {relation} {answer}"
    return f"The {relation} of {subject} is {answer}"


def _hangs(relation: str) -> bool:
    """Whether a relation is a predicate of its subject: 'capital of', 'located in the state'."""
    words = relation.lower().split()
    return bool(words) and (words[0] in _PARTICIPLES or words[-1] in PREPOSITIONS)


def _filled(template: str, subject: str, answer: str) -> str:
    article = "the " if _THE.match(answer) else ""
    values = {"S": subject, "O": article + answer, "@O": dated(answer)}
    return re.sub(r"(?<!\w)(?:S|@?O)(?!\w)", lambda match: values[match.group()], template)


def _sentence(text: str) -> str:
    """One sentence by the reasoner's rule: closing marks inside are dropped, the last full stop counts."""
    text = _upper(_TWICE.sub("", " ".join(text.split())))
    while True:
        head, complete = first_sentence(f"{text} Next")
        if not complete or len(head) >= len(text):
            break
        opened = CLOSING.sub(r"\1", head)  # also that of a quotation: ... is "Go home."
        text = " ".join(f"{opened}{text[len(head) :]}".split())
    # The stop of 'Jay Z.' or 'D.C.' looks like an initial's, which ends no sentence.
    endings = (text.removesuffix(".") + ".", _without_stops(text) + ".", f"{text}, as stated.")
    return next(one for one in endings if first_sentence(f"{one} Next") == (one, True))


def _without_stops(text: str) -> str:
    """'Washington, D.C.' -> 'Washington, DC'."""
    head, blank, last = text.rpartition(" ")
    return f"{head}{blank}{last.replace('.', '')}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
