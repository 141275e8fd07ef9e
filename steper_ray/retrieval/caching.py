"""A retriever that remembers its latest searches, up to a number: the same query finds the same."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from steper_ray.config import RetrievalConfig
from steper_ray.retrieval.base import Retriever
from steper_ray.retrieval.index import open_index
from steper_ray.schema import Hit


def open_cached(
    folder: Path, config: RetrievalConfig, fingerprint: str | None = None, part: tuple[int, int] = (0, 1)
) -> CachedSearches:
    """The retriever of `open_index` behind a cache of `config.cache_queries`. Raises RetrievalError."""
    return CachedSearches(open_index(folder, config, fingerprint, part), config.cache_queries)


class CachedSearches:
    """Searches `retriever` for what is not among the latest `size` queries. Safe to call from several threads."""

    def __init__(self, retriever: Retriever, size: int) -> None:
        self._retriever, self._size = retriever, size
        self._found: OrderedDict[tuple[str, int], tuple[Hit, ...]] = OrderedDict()
        self._lock = threading.Lock()
        self._asked = self._cached = 0

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.search`."""
        found: dict[str, tuple[Hit, ...]] = {}
        with self._lock:
            for query in dict.fromkeys(queries):
                if (hits := self._found.get((query, k))) is not None:
                    self._found.move_to_end((query, k))
                    found[query] = hits
            missing = [query for query in dict.fromkeys(queries) if query not in found]
            self._asked += len(queries)
            self._cached += len(queries) - len(missing)
        if missing:
            new = dict(zip(missing, map(tuple, self._retriever.search(missing, k)), strict=True))
            found |= new
            with self._lock:
                self._found.update({(query, k): hits for query, hits in new.items()})
                while len(self._found) > self._size:
                    self._found.popitem(last=False)
        return [list(found[query]) for query in queries]

    def take_counts(self) -> tuple[int, int]:
        """Queries since the last call, and those among them that needed no search."""
        with self._lock:
            counts = self._asked, self._cached
            self._asked = self._cached = 0
        return counts
