"""The door to retrieval: search for passages. Same query, same index, same answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from steper_ray.schema import Hit


class Retriever(Protocol):
    """Searches one index. Safe to call from several threads."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """The best `k` passages of each query, best first; fewer where the corpus is smaller.

        Ties are broken by the passages' order in the corpus. A query without a known word finds nothing.
        Raises RetrievalError.
        """
        ...


@runtime_checkable
class AsyncRetriever(Protocol):
    """The same door for an event loop: a retriever that is elsewhere is waited for, and the wait can be cancelled."""

    async def find(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.search`."""
        ...


@dataclass(frozen=True, slots=True)
class Threaded:
    """A retriever of this process, searched in a thread so that the event loop continues."""

    retriever: Retriever

    async def find(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return await asyncio.to_thread(self.retriever.search, queries, k)


def as_async(retriever: Retriever | AsyncRetriever) -> AsyncRetriever:
    return retriever if isinstance(retriever, AsyncRetriever) else Threaded(retriever)


def merge(parts: Sequence[list[list[Hit]]], k: int) -> list[list[Hit]]:
    """One search from the results of the same queries in each part of a corpus, the parts in the corpus' order.

    It is what the whole index finds: scores are of the whole, and of passages that tie the first one stands first.
    """
    return [
        sorted((hit for hits in found for hit in hits), key=lambda hit: -hit.score)[:k]
        for found in zip(*parts, strict=True)
    ]
