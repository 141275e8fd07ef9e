"""BM25 in this process: a bm25s index over title and text, memory-mapped, the same on every machine.

Scores are Lucene's BM25 (bm25s method 'lucene', Kamphuis et al. 2020). Words are lower-cased, Lucene's
English stop words go, the rest is stemmed by Snowball English. Knows nothing of manifests and of how an index
is checked.
"""

from __future__ import annotations

import re
import threading
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from steper_ray.core.errors import DataError
from steper_ray.retrieval.store import PassageStore
from steper_ray.schema import Hit, Passage

LIBRARY = f"bm25s {bm25s.__version__}"
_WORD = re.compile(r"\w+")
_STOP_WORDS = frozenset(STOPWORDS_EN)


class Analyzer:
    """Text to stems, the same for passages and queries."""

    def __init__(self) -> None:
        self._local = threading.local()  # a Snowball stemmer caches words and must not be shared by threads

    def __call__(self, text: str) -> list[str]:
        stemmer = getattr(self._local, "stemmer", None)
        if stemmer is None:
            stemmer = self._local.stemmer = Stemmer.Stemmer("english")
        words = [word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]
        stems: list[str] = stemmer.stemWords(words)
        return stems


def build(passages: Iterable[Passage], folder: Path, *, k1: float, b: float) -> None:
    """Writes the index of `passages` (in their order) into `folder`.

    Holds the stems' numbers in memory, 4 bytes a word. Raises DataError if no passage has a word.
    """
    analyze, vocabulary = Analyzer(), dict[str, int]()
    documents = [
        array("i", [vocabulary.setdefault(stem, len(vocabulary)) for stem in analyze(f"{p.title} {p.text}")])
        for p in passages
    ]
    if not vocabulary:
        raise DataError(
            "corpus: no passage has a word to search for (only stop words or signs): check the texts"
        )
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index((documents, vocabulary), create_empty_token=False, show_progress=False)
    index.save(folder, show_progress=False)


class Bm25Retriever:
    """Searches the index of `build`; its postings and passages stay on disk until they are touched.

    Deterministic: ties go to the passage that comes first in the corpus. Safe to call from several threads.
    """

    def __init__(self, folder: Path, store: PassageStore, part: tuple[int, int] = (0, 1)) -> None:
        """`part` (i, n): only the i-th of n parts of the corpus, from 0, with the scores of the whole; its postings are
        then held in memory.

        Raises OSError, ValueError or KeyError for an index that is broken.
        """
        self._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        if self._index.scores["num_docs"] != len(store):
            raise ValueError(f"{self._index.scores['num_docs']} passages indexed, {len(store)} stored")
        self._store, self._analyze = store, Analyzer()
        number, parts = part
        self._first = number * len(store) // parts
        if parts > 1:
            self._index.scores = _cut(self._index.scores, self._first, (number + 1) * len(store) // parts)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.search`; scores are BM25's, above 0."""
        return [self._search(query, k) for query in queries]

    def _search(self, query: str, k: int) -> list[Hit]:
        known = self._index.get_tokens_ids(self._analyze(query))
        if not known or k < 1:
            return []
        scores = self._index.get_scores_from_ids(known)
        found = np.flatnonzero(scores > 0)
        if len(found) > k:  # keep every passage that ties with the k-th, then order them all
            found = found[scores[found] >= np.partition(scores[found], -k)[-k]]
        best = found[np.argsort(-scores[found], kind="stable")][:k]
        return [
            Hit(self._store[self._first + position], float(scores[position])) for position in best.tolist()
        ]


def _cut(scores: dict[str, Any], first: int, end: int) -> dict[str, Any]:
    """bm25s' matrix of scores (a column a word, compressed) for the documents from `first` to before `end`."""
    indices = scores["indices"]
    kept = (indices >= first) & (indices < end)
    # How many entries are kept before each one: where the columns begin now.
    before = np.concatenate(([0], np.cumsum(kept)))
    return {
        "data": scores["data"][kept],
        "indices": indices[kept] - first,
        "indptr": before[scores["indptr"]].astype(scores["indptr"].dtype),
        "num_docs": end - first,
    }
