"""Text to terms, the same for passages and queries: stemmed words; pairs of characters where a script has no spaces.

- Text is normalised (NFKC) and lower-cased, so that composed and decomposed letters are the same.
- Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese are cut into overlapping pairs, as Lucene's CJKAnalyzer does.
- Other words lose the language's stop words and are stemmed by its Snowball stemmer.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterable

import regex
import Stemmer

#: Part of an index's identity: raised by hand when the same text gives other terms.
VERSION = 1
#: Lucene's English stop words.
_ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
).split()
_WORD = re.compile(r"\w+")
#: For ASCII: `\w` in lower case, anything else a blank.
_LOWER = bytes(
    ord(chr(code).lower()) if chr(code).isalnum() or chr(code) == "_" else ord(" ") for code in range(128)
).ljust(256)
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc"
#: `\w` lacks the vowel signs of Indic scripts.
_RUN = regex.compile(
    rf"[{_UNSPACED}][{_UNSPACED}\p{{M}}]*|[^\W{_UNSPACED}][\w\p{{M}}--[{_UNSPACED}]]*", regex.V1
)
#: Normalised lower-case text without such a character has the same words by `\w+`: Latin, Greek, Cyrillic, usual signs.
_SPECIAL = re.compile(
    "[^\0-\u02ff\u0370-\u0482\u048a-\u0556\u1e00-\u1fff\u2010-\u2027\u2030-\u203e\u20a0-\u20bf\u2100-\u214f]"
)
_IS_UNSPACED = regex.compile(rf"[{_UNSPACED}]")
_KNOWN = 1 << 18  # words whose stems an analyser keeps at most


class Analyzer:
    """One language's words. Safe to call from several threads."""

    def __init__(self, language: str = "english", stop_words: Iterable[str] | None = None) -> None:
        """`language` is a Snowball stemmer's, or `none`; `stop_words` replace those of the language."""
        if stop_words is None:
            stop_words = _ENGLISH if language == "english" else ()
        self._language = language
        self._stop_words = frozenset(unicodedata.normalize("NFKC", word).lower() for word in stop_words)
        self._local = threading.local()  # a Snowball stemmer must not be shared by threads

    def __call__(self, text: str) -> list[str]:
        """The terms in their order, repeated ones too."""
        return [term for word in self.words(text) if (term := self.term(word))]

    def words(self, text: str) -> list[str] | list[bytes]:
        """Of which the terms are made; of a text in ASCII as bytes, which is several times as fast."""
        if text.isascii():
            return text.encode().translate(_LOWER).split()
        text = unicodedata.normalize("NFKC", text).lower()
        if _SPECIAL.search(text):
            return [word for run in _RUN.findall(text) for word in _cut(run)]
        return _WORD.findall(text)

    def term(self, word: str | bytes) -> str:
        """A word's term, empty for a stop word."""
        terms: dict[str | bytes, str] | None = getattr(self._local, "terms", None)
        if terms is None or len(terms) > _KNOWN:
            terms = self._local.terms = {}
            self._local.stem = str if self._language == "none" else Stemmer.Stemmer(self._language).stemWord
        term = terms.get(word)
        if term is None:
            plain = word.decode() if isinstance(word, bytes) else word
            term = terms[word] = "" if plain in self._stop_words else str(self._local.stem(plain))
        return term


def _cut(run: str) -> list[str]:
    """A word as it is; a run of a script without spaces as its overlapping pairs."""
    if not _IS_UNSPACED.search(run):
        return [run]
    return [run[at : at + 2] for at in range(len(run) - 1)] or [run]
