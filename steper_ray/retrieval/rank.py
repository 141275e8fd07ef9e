"""A ranker orders the passages of an index by their positions; a `Searcher` looks the best ones up.

Rankers know numbers and queries, no passages: bm25, dense, and what fuses several.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from steper_ray.retrieval.store import PassageStore
from steper_ray.schema import Hit

#: Position in the corpus and score, best first; ties by position.
Ranking = list[tuple[int, float]]


class Ranker(Protocol):
    """Safe to call from several threads. Same query, same index, same ranking."""

    @property
    def together(self) -> int:
        """How many queries are best ranked by one call."""
        ...

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """The best `k` of each query; `k` is at least 1."""
        ...


class Searcher:
    """The `Retriever` of a ranker over the passages it ranks. Many queries are spread over threads."""

    def __init__(self, ranker: Ranker, store: PassageStore) -> None:
        self._ranker, self._store = ranker, store
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="search")

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.search`."""
        if k < 1 or not queries:
            return [[] for _ in queries]
        size = self._ranker.together
        if len(queries) <= size:
            return self._search(queries, k)
        chunks = [queries[at : at + size] for at in range(0, len(queries), size)]
        return [hits for found in self._threads.map(partial(self._search, k=k), chunks) for hits in found]

    def _search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [
            [Hit(self._store[position], score) for position, score in found]
            for found in self._ranker.rank(queries, min(k, len(self._store)))
        ]


@dataclass(frozen=True, slots=True)
class Fused:
    """Several rankers as one, each with its weight, over the best `depth` of each."""

    rankers: Sequence[tuple[Ranker, float]]
    method: str
    """`minmax`: scores stretched to 0 to 1; `rrf`: 1 / (60 + place) (reciprocal ranks, Cormack et al., 2009)."""
    depth: int

    @property
    def together(self) -> int:
        return max(ranker.together for ranker, _ in self.rankers)

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        found = [(ranker.rank(queries, max(k, self.depth)), weight) for ranker, weight in self.rankers]
        return [
            self._fuse([(lists[number], weight) for lists, weight in found])[:k]
            for number in range(len(queries))
        ]

    def _fuse(self, lists: Sequence[tuple[Ranking, float]]) -> Ranking:
        total: dict[int, float] = {}
        shared = _places if self.method == "rrf" else stretched
        for ranking, weight in lists:
            for position, share in shared(ranking):
                total[position] = total.get(position, 0.0) + weight * share
        return sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))


def stretched(ranking: Ranking) -> Ranking:
    """Scores from 0 (the last) to 1; 1 throughout where all are the same."""
    if not ranking:
        return []
    most, least = ranking[0][1], ranking[-1][1]
    return [
        (position, (score - least) / (most - least) if most > least else 1.0) for position, score in ranking
    ]


def _places(ranking: Ranking) -> Ranking:
    return [(position, 1 / (60 + place)) for place, (position, _) in enumerate(ranking, start=1)]
