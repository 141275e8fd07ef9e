"""The door to retrieval: search for passages. Same query, same index, same answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from steper_ray.schema import Hit


class Retriever(Protocol):
    """Searches one index. Safe to call from several threads."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """The best `k` passages of each query, best first; fewer where the corpus is smaller.

        Ties are broken by the passages' order in the corpus. A query without a known word finds nothing.
        Raises RetrievalError.
        """
        ...
