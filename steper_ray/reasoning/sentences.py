"""Where a reasoning sentence ends. Pure text, no other module."""

from __future__ import annotations

import re

# A closing mark (with quotes or brackets), blanks, and something that can open a sentence.
_BOUNDARY = re.compile("[.!?][\"'\u201d\u2019)\\]]*(?=\\s+[\"'\u201c\u2018(\\[]?[A-Z0-9])|\n")
_INITIAL = re.compile(r"(?:^|[\s.(])[A-Z]\.$")
_ABBREVIATIONS = frozenset(
    "mr. mrs. ms. dr. prof. st. jr. sr. vs. no. vol. gen. col. lt. sgt. capt. rev. hon. gov. sen. rep. inc. ltd. "
    "co. corp. e.g. i.e. etc. mt. ft. feat. bros. ca. approx. u.s. u.k.".split()
)


def first_sentence(text: str) -> tuple[str, bool]:
    """The first sentence of `text`, stripped, and whether it is surely complete.

    It is complete when more text follows that can open a sentence, or a line break. A full stop behind an
    initial ('J. Smith') or a common abbreviation does not end a sentence.
    """
    body = text.lstrip()
    for match in _BOUNDARY.finditer(body):
        head = body[: match.end()].rstrip()
        if match.group() == "\n" or not _is_abbreviation(head):
            return head, True
    return body.rstrip(), False


def split_sentences(text: str) -> list[str]:
    """All sentences of a text, by the rule of `first_sentence`."""
    sentences = []
    rest = text.strip()
    while rest:
        sentence, complete = first_sentence(rest)
        if sentence:
            sentences.append(sentence)
        rest = rest[len(sentence) :].lstrip() if complete else ""
    return sentences


def _is_abbreviation(head: str) -> bool:
    if not head.endswith("."):
        return False
    return _INITIAL.search(head) is not None or head.split()[-1].lower() in _ABBREVIATIONS
