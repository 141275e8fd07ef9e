"""Compiled loops over BM25 postings: inverting a part of the corpus, placing it in the whole, and searching.

- A term's postings are its documents in ascending order, each with the term's whole BM25 score there (eager scoring,
  as in BM25S, Lù 2024), so that a search only adds.
- Sums are of float32 scores in float64, which is exact at these sizes: their order does not matter. A document's score
  is the sum rounded to float32, as Lucene rounds it. Ties go to the smaller document.
- The search is MaxScore (Turtle and Flood, 1995) over windows of documents: terms whose largest scores together do not
  reach the k-th best score found so far bring no candidates, and are added only for those that others brought.

Knows numbers alone: no texts, no files.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

Int32: TypeAlias = NDArray[np.int32]
Int64: TypeAlias = NDArray[np.int64]
Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]

WINDOW = 4096  # documents: their sums stay in the first cache
_FEW = 8  # candidates: so few are looked up one by one
NONE = np.iinfo(np.int32).max  # the document of an empty place


def _compiled(function: Any) -> Any:
    """Compiled at the first call, once a machine; without a folder that can be written, once a process."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


@_compiled
def invert(terms: Int32, ends: Int64, n_terms: int) -> tuple[Int64, Int32, Int32]:
    """Postings of documents that are the slices of `terms` up to each of `ends`.

    Returns (n_terms + 1) offsets, and by them each term's documents and its counts there.
    """
    offsets = np.zeros(n_terms + 1, np.int64)
    last = np.full(n_terms, -1, np.int32)
    at = 0
    for document in range(len(ends)):
        while at < ends[document]:
            term = terms[at]
            if last[term] != document:
                last[term] = document
                offsets[term + 1] += 1
            at += 1
    offsets = np.cumsum(offsets)
    documents, counts = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int32)
    free = offsets[:-1].copy()
    last[:] = -1
    at = 0
    for document in range(len(ends)):
        while at < ends[document]:
            term = terms[at]
            if last[term] != document:
                last[term] = document
                documents[free[term]] = document
                counts[free[term]] = 0
                free[term] += 1
            counts[free[term] - 1] += 1
            at += 1
    return offsets, documents, counts


@_compiled
def place(
    numbers: Int64, offsets: Int64, documents: Int32, counts: Int32, first: int,
    idf: Float64, norms: Float64, free: Int64, all_documents: Int32, scores: Float32,
) -> None:  # fmt: skip
    """Writes a part's postings into those of the whole, with their scores idf * count / (count + norm).

    The part's i-th term is term `numbers[i]` of the whole, its documents begin at `first` there. `free` holds each
    term's next free place, and is moved on. `norms` are of the part's documents.
    """
    for term in range(len(numbers)):
        number = numbers[term]
        at = free[number]
        for posting in range(offsets[term], offsets[term + 1]):
            document, count = documents[posting], counts[posting]
            all_documents[at] = first + document
            scores[at] = idf[number] * count / (count + norms[document])
            at += 1
        free[number] = at


@_compiled
def largest(offsets: Int64, scores: Float32) -> Float32:
    """Each term's largest score."""
    found = np.zeros(len(offsets) - 1, np.float32)
    for term in range(len(found)):
        for at in range(offsets[term], offsets[term + 1]):
            found[term] = max(found[term], scores[at])
    return found


@_compiled
def _seek(documents: Int32, at: int, end: int, wanted: int) -> int:
    """The first place from `at` to before `end` whose document is not below `wanted`; `end` if there is none."""
    if at >= end or documents[at] >= wanted:
        return at
    step = 1
    while at + step < end and documents[at + step] < wanted:
        at += step
        step *= 2
    low, high = at + 1, min(end, at + step)
    while low < high:
        middle = (low + high) >> 1
        if documents[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@_compiled
def search(
    offsets: Int64, documents: Int32, scores: Float32, bounds: Float32,
    terms: Int64, weights: Int64, first: int, end: int,
    best: Int32, best_scores: Float32,
) -> None:  # fmt: skip
    """The best documents from `first` to before `end` for one query; `best` and `best_scores` take them, best first.

    The query's `terms` differ, each counts `weights` times. Places without a document are NONE.
    """
    n, k = len(terms), len(best)
    best[:], best_scores[:] = NONE, -1
    order = np.argsort(bounds[terms] * weights)
    terms, weights = terms[order], weights[order]
    at, ends = np.empty(n, np.int64), np.empty(n, np.int64)
    reach = np.zeros(n + 1, np.float64)  # reach[i]: what the first i terms add at most
    for i in range(n):
        ends[i] = offsets[terms[i] + 1]
        at[i] = _seek(documents, offsets[terms[i]], ends[i], first)
        reach[i + 1] = reach[i] + np.float64(bounds[terms[i]]) * weights[i]
    sums = np.zeros(WINDOW, np.float64)
    # Places are written before it is known whether they count: without branches, which would be mispredicted.
    candidates = np.empty(WINDOW + 1, np.int32)
    split = 0  # terms from here on bring candidates
    while True:
        base = end
        for i in range(split, n):
            if at[i] < ends[i]:
                base = min(base, documents[at[i]])
        if base >= end:
            return
        stop = min(base + WINDOW, end)
        found = 0
        for i in range(split, n):
            here, weight = at[i], np.float64(weights[i])
            while here < ends[i] and documents[here] < stop:
                place = documents[here] - base
                candidates[found] = place
                found += sums[place] == 0
                sums[place] += np.float64(scores[here]) * weight
                here += 1
            at[i] = here
        for i in range(split - 1, -2, -1):
            # Less than half a unit in the last place of float32 below what would tie with the k-th best.
            least = np.float64(best_scores[k - 1]) * (1 - 1e-7) - reach[i + 1]
            kept = 0
            for candidate in range(found):
                place = candidates[candidate]
                candidates[kept] = place
                kept += sums[place] >= least
            found = kept
            if found == 0 or i < 0:
                break
            here, weight = _seek(documents, at[i], ends[i], base), np.float64(weights[i])
            if found <= _FEW:
                for candidate in range(found):
                    wanted = base + candidates[candidate]
                    there = _seek(documents, here, ends[i], wanted)
                    if there < ends[i] and documents[there] == wanted:
                        sums[candidates[candidate]] += np.float64(scores[there]) * weight
            else:
                while here < ends[i] and documents[here] < stop:
                    sums[documents[here] - base] += np.float64(scores[here]) * weight
                    here += 1
            at[i] = here
        for candidate in range(found):
            _insert(best, best_scores, base + candidates[candidate], np.float32(sums[candidates[candidate]]))
        sums[:] = 0
        while split < n and np.float32(reach[split + 1]) < best_scores[k - 1]:
            split += 1


@_compiled
def _insert(best: Int32, best_scores: Float32, document: int, score: np.float32) -> None:
    """Puts a document at its place among the best, if it has one."""
    at = len(best)
    while at > 0 and (
        score > best_scores[at - 1] or (score == best_scores[at - 1] and document < best[at - 1])
    ):
        if at < len(best):
            best[at], best_scores[at] = best[at - 1], best_scores[at - 1]
        at -= 1
    if at < len(best):
        best[at], best_scores[at] = document, score


@_compiled
def search_all(
    offsets: Int64, documents: Int32, scores: Float32, bounds: Float32,
    terms: Int64, weights: Int64, query_ends: Int64, first: int, end: int,
    best: Int32, best_scores: Float32,
) -> None:  # fmt: skip
    """`search` for each query: its terms are the slice of `terms` up to its place in `query_ends`."""
    begin = 0
    for query in range(len(query_ends)):
        stop = query_ends[query]
        if stop > begin:
            search(
                offsets, documents, scores, bounds, terms[begin:stop], weights[begin:stop], first, end,
                best[query], best_scores[query],
            )  # fmt: skip
        else:
            best[query, :] = NONE
        begin = stop
