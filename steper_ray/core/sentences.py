"""Ends of reasoning sentences, in any script. Pure text, no other module.

A full stop ends one only before a blank and what can open the next: a capital, a digit, or a letter of a script without
capitals. The marks of other scripts are part of no abbreviation: '。' needs no blank behind it, '।' and '؟' none before
a letter.
"""

# ruff: noqa: RUF001, RUF003 (letters of other scripts are meant)
from __future__ import annotations

import re
import unicodedata

#: What follows decides whether these end a sentence. The last is Greek's question mark.
_STOPS = ".!?\u203c\u203d\u2047\u2048\u2049\u037e"
#: Marks of East Asian scripts, full and half width. The last is also a decimal point and an initial's stop.
_WIDE = "\u3002\uff61\uff01\uff1f\ufe52\ufe56\ufe57\uff0e"
#: Marks of Arabic, Urdu, Devanagari and its sisters, Armenian, Ethiopic, Burmese, Khmer and Mongolian.
_OTHER = "\u061f\u06d4\u0964\u0965\u0589\u1362\u1367\u1368\u104b\u17d4\u17d5\u1803\u1809"
_FULL_STOPS = "\u3002\uff61"
# German closes with what opens in English; French has a blank before its closing mark.
_CLOSERS = "(?:[\"'\u201d\u2019\u201c\u00bb\u203a\u300d\u300f)\\]\uff09\u3011]|[ \u00a0\u202f]\u00bb)*"
_OPENERS = "\"'\u201c\u2018\u201e\u201a\u00ab\u2039\u00bf\u00a1\u300c\u300e\u300a\u3008\u02bb\u02bf"
_BRACKETS = "([\u3010\uff08"

_END = re.compile(rf"(?P<marks>[{_STOPS}{_WIDE}{_OTHER}]+)(?P<closers>{_CLOSERS})|\n")
#: Blanks, signs of writing direction, an opening mark, and the character that decides.
_NEXT = re.compile(
    rf"(?P<blanks>\s*)[\u200e\u200f]*(?:[{_OPENERS}]|(?P<bracket>[{re.escape(_BRACKETS)}]))?(?P<opener>\S)"
)
#: A sentence's closing marks at the end of a text; group 1 is what closes a quotation or a bracket there.
CLOSING = re.compile(rf"[{_STOPS}{_WIDE}{_OTHER}]+({_CLOSERS})$")

#: A letter alone, with an accent or the vowel sign of a Dravidian script ('സി.'), where no word is so short.
_INITIAL = re.compile(
    "(?:^|[\\s.(\uff08]|\\.-)([^\\W\\d_])(?:[\u0300-\u036f]|(?=\\W)[\u0b80-\u0ddf])*[.\uff0e]$"
)
_ABBREVIATIONS = frozenset(
    "mr. mrs. ms. dr. prof. st. jr. sr. vs. no. vol. gen. col. lt. sgt. capt. rev. hon. gov. sen. rep. inc. ltd. "
    "co. corp. e.g. i.e. etc. mt. ft. feat. bros. ca. approx. u.s. u.k. a.k.a. abbrev. translit. "
    "sra. dra. nr. bzw. z.b. d.h. проф. акад. св. им. ул. см. т.е. дж. ім. вул. αγ. π.χ. डॉ. ดร.".split()
)
#: 'г. Москва' is a city; behind a number 'г.' is a year and 'м.' are metres, which may end a sentence.
_PLACES = frozenset("г. м.".split())


def first_sentence(text: str) -> tuple[str, bool]:
    """The first sentence of `text`, stripped, and whether it is surely complete.

    It is complete when more text follows that can open a sentence, or a line break. A full stop behind an
    initial ('J. Smith') or a common abbreviation does not end a sentence.
    """
    body = text.lstrip()
    for match in _END.finditer(body):
        if match.group() == "\n" or _ends(match, body):
            return body[: match.end()].rstrip(), True
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


def _ends(match: re.Match[str], body: str) -> bool:
    """Whether these marks end a sentence, by what stands before and behind them."""
    following = _NEXT.match(body, match.end())
    if following is None:
        return False
    mark, opener, blank = match["marks"][-1], following["opener"], bool(following["blanks"])
    if mark in _STOPS:
        # In brackets, letters without capitals are the name before them in its own script: 'Fire! (ファイヤー)'.
        opens = _can_open(opener) and not (following["bracket"] and unicodedata.category(opener) == "Lo")
        return blank and opens and not _is_abbreviation(body[: match.end()])
    if mark == _WIDE[-1] and _is_abbreviation(body[: match.end()]):
        return False
    if blank:
        return opener.isalnum()
    if match["closers"]:
        # Japanese continues behind a quotation with a particle: '「はい。」と答えた'.
        return mark in _FULL_STOPS and opener.isalpha() and not "\u3040" <= opener <= "\u309f"
    if mark == _WIDE[-1]:
        return opener.isalpha() and not unicodedata.name(opener, "").startswith(("LATIN", "FULLWIDTH LATIN"))
    return opener.isalpha() or (mark in _WIDE and opener.isalnum())


def _can_open(character: str) -> bool:
    """Whether a sentence can begin with it: a capital, a digit, or a letter of a script without capitals."""
    if character.isupper() or character.isdecimal():
        return True
    if "\u10d0" <= character <= "\u10ff":  # Georgian: small letters, and no sentence begins with a capital
        return True
    return unicodedata.category(character) in ("Lo", "Lt", "Nl") and not character.islower()


def _is_abbreviation(head: str) -> bool:
    """Whether the full stop that ends `head` belongs to its last word."""
    if not head.endswith((".", "\uff0e")):
        return False
    if (initial := _INITIAL.search(head)) is not None and _is_initial(initial[1]):
        return True
    words = head.rsplit(maxsplit=2)[-2:]
    last = words[-1].lower().lstrip(_OPENERS + _BRACKETS)
    return last in _ABBREVIATIONS or (last in _PLACES and not words[0][-1].isdecimal())


def _is_initial(letter: str) -> bool:
    """Whether a letter alone before a full stop stands for a name; a syllable of Korean or Chinese is a word."""
    return letter.isupper() or (_can_open(letter) and letter < "\u1100")
