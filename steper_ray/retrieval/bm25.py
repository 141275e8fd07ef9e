"""BM25 in this process: an index of title and text that is memory-mapped, the same on every machine.

- Scores are Lucene's BM25 (method 'lucene' of Kamphuis et al., 2020), with exact document lengths.
- It is built in parts, which Ray tasks may make side by side: parts that are there are not made again, and their number
  and order change nothing.
- A term is the hash of its text (64 bits): a search needs no vocabulary in memory.
- One copy a node: all processes map the same files. A part of the corpus is a range of documents of the same index, so
  opening one costs nothing.

Knows nothing of manifests and of how an index is checked.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from steper_ray.config import RetrievalConfig
from steper_ray.core.errors import DataError
from steper_ray.core.fingerprints import hash64
from steper_ray.core.progress import Bar
from steper_ray.core.tasks import in_order
from steper_ray.retrieval import analysis, parts, postings
from steper_ray.retrieval.analysis import Analyzer
from steper_ray.retrieval.rank import Ranking
from steper_ray.retrieval.store import BATCH_ROWS, PassageStore

#: Part of an index's identity, as the version of what builds it.
LIBRARY = f"steper_ray bm25 {analysis.VERSION}"
_ROWS = 24 * BATCH_ROWS  # passages of one part: some seconds, and 200 MB at most
_FILES = ("terms", "offsets", "documents", "scores", "bounds")
_UNKNOWN = -1
_KNOWN = 1 << 18  # terms whose numbers are kept at most


@lru_cache(maxsize=2)
def _analyzer(language: str, stop_words: tuple[str, ...] | None) -> Analyzer:
    """Kept in this process: it knows the words it has seen."""
    return Analyzer(language, stop_words)


class _TermNumbers(dict[str | bytes, int]):
    """A word's number among the terms of a part, new ones added to `numbers`; _UNKNOWN for a stop word."""

    def __init__(self, analyze: Analyzer, numbers: dict[str, int]) -> None:
        super().__init__()
        self._analyze, self._numbers = analyze, numbers

    def __missing__(self, word: str | bytes) -> int:
        term = self._analyze.term(word)
        self[word] = self._numbers.setdefault(term, len(self._numbers)) if term else _UNKNOWN
        return self[word]


class Part(NamedTuple):
    """Postings of consecutive passages, by ascending hash of the term."""

    terms: NDArray[np.uint64]
    offsets: postings.Int64
    documents: postings.Int32
    counts: postings.Int32
    lengths: postings.Int32


def build(passages: Path, aside: Path, folder: Path, config: RetrievalConfig) -> None:
    """Writes the index of the passages in an Arrow file into `folder`; `aside` keeps what can be used again.

    Raises DataError if no passage has a word, and StorageError.
    """
    total = len(PassageStore(passages))
    firsts = range(0, total, _ROWS)
    make = partial(_make_part, passages, aside, config, _ROWS)
    bar = Bar("index", "passages", total, shown=len(firsts) > 1)
    paths = []
    for path in in_order(make, firsts):
        paths.append(path)
        bar.show(len(paths) * _ROWS)
    bar.close()
    _join(paths, folder, config)


class Bm25Ranker:
    """Ranks by the index of `build`. Safe to call from several threads: its loops run without Python's lock."""

    together = 16

    def __init__(
        self, folder: Path, passages: int, config: RetrievalConfig, part: tuple[int, int] = (0, 1)
    ) -> None:
        """`part` (i, n): only the i-th of n parts of the corpus, from 0, with the scores of the whole.

        Raises OSError or ValueError for an index that is broken.
        """
        arrays = (np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _FILES)
        self._terms, *self._postings = arrays
        self._analyze = _analyzer(config.language, config.stop_words)
        self._numbers = _Numbers(self._terms)
        number, of = part
        self._range = number * passages // of, (number + 1) * passages // of

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """See `Ranker.rank`; scores are BM25's, above 0. A query without a known word finds nothing."""
        first, end = self._range
        known = [self._known(query) for query in queries]
        shape = len(queries), min(k, end - first)
        best, scores = np.empty(shape, np.int32), np.empty(shape, np.float32)
        postings.search_all(
            *self._postings,
            np.concatenate([terms for terms, _ in known]),
            np.concatenate([weights for _, weights in known]),
            np.cumsum([len(terms) for terms, _ in known]),
            first, end, best, scores,
        )  # fmt: skip
        found = (best != postings.NONE).sum(axis=1).tolist()
        return [
            list(zip(positions[:n], row[:n], strict=True))
            for positions, row, n in zip(best.tolist(), scores.tolist(), found, strict=True)
        ]

    def _known(self, query: str) -> tuple[postings.Int64, postings.Int64]:
        """The numbers of the query's terms in the index, and how often the query has each."""
        if len(self._numbers) > _KNOWN:
            self._numbers = _Numbers(self._terms)
        counts: dict[int, int] = {}
        for number in map(self._numbers.__getitem__, self._analyze(query)):
            counts[number] = counts.get(number, 0) + 1
        counts.pop(_UNKNOWN, None)
        return np.array(list(counts), np.int64), np.array(list(counts.values()), np.int64)


class _Numbers(dict[str, int]):
    """A term's number in the index, looked up once."""

    def __init__(self, terms: NDArray[np.uint64]) -> None:
        super().__init__()
        self._terms = terms

    def __missing__(self, term: str) -> int:
        wanted = np.uint64(hash64(term))
        number = int(np.searchsorted(self._terms, wanted))
        found = number < len(self._terms) and self._terms[number] == wanted
        self[term] = number if found else _UNKNOWN
        return self[term]


def _make_part(passages: Path, aside: Path, config: RetrievalConfig, rows: int, first: int) -> Path:
    """The file of the part of `rows` passages from `first`, made unless it is there whole."""
    path = aside / f"{first:010d}.npz"
    if parts.is_whole(path):
        return path
    analyze, numbers = _analyzer(config.language, config.stop_words), dict[str, int]()
    number_of = _TermNumbers(analyze, numbers).__getitem__
    found, ends = array("i"), array("q")
    for title, text in PassageStore(passages).texts(first, first + rows):
        found.extend([*map(number_of, analyze.words(title))] * config.title_weight)
        found.extend([*map(number_of, analyze.words(text))])
        ends.append(len(found))
    all_terms = np.frombuffer(found, np.int32)
    kept = all_terms != _UNKNOWN
    terms = all_terms[kept]
    stops = np.concatenate(([0], np.cumsum(kept)))[np.frombuffer(ends, np.int64)]
    lengths = np.diff(stops, prepend=0).astype(np.int32)
    hashes = np.fromiter(map(hash64, numbers), np.uint64, len(numbers))
    order = np.argsort(hashes)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    offsets, documents, counts = postings.invert(rank[terms], stops, len(numbers))
    parts.save(path, hashes[order], offsets, documents, counts, lengths)
    return path


def _join(paths: Sequence[Path], folder: Path, config: RetrievalConfig) -> None:
    """Two passes over the parts, of which one is in memory at a time: count the terms, then place the postings."""
    terms, lengths = np.empty(0, np.uint64), list[postings.Int32]()
    for path in paths:
        part = Part(*parts.load(path))
        terms = np.union1d(terms, part.terms)
        lengths.append(part.lengths)
    if not len(terms):
        raise DataError(
            "corpus: no passage has a word to search for (only stop words or signs): check the texts"
        )
    frequencies = np.zeros(len(terms), np.int64)
    for path in paths:
        part = Part(*parts.load(path))
        frequencies[np.searchsorted(terms, part.terms)] += np.diff(part.offsets)
    all_lengths = np.concatenate(lengths)
    idf = np.log1p((len(all_lengths) - frequencies + 0.5) / (frequencies + 0.5))
    norms = config.k1 * (1 - config.b + config.b * all_lengths / all_lengths.mean())
    offsets = np.concatenate(([0], np.cumsum(frequencies)))
    documents = open_memmap(folder / "documents.npy", "w+", np.int32, (int(offsets[-1]),))
    scores = open_memmap(folder / "scores.npy", "w+", np.float32, (int(offsets[-1]),))
    free, first = offsets[:-1].copy(), 0
    for path in paths:
        part = Part(*parts.load(path))
        end = first + len(part.lengths)
        postings.place(
            np.searchsorted(terms, part.terms), part.offsets, part.documents, part.counts, first,
            idf, norms[first:end], free, np.asarray(documents), np.asarray(scores),
        )  # fmt: skip
        first = end
    for name, values in (
        ("terms", terms),
        ("offsets", offsets),
        ("bounds", postings.largest(offsets, np.asarray(scores))),
    ):
        np.save(folder / f"{name}.npy", values)
    documents.flush()
    scores.flush()
