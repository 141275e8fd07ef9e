"""The passages of one trajectory: in the order they came, near-duplicates dropped, capped. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from steper_ray.answers import comparable
from steper_ray.schema import Hit, Passage


class PassagePool:
    """Accumulates the hits of a trajectory's steps (IRCoT: new passages are appended at the end)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._passages: list[Passage] = []
        self._seen: set[tuple[str, str]] = set()

    @property
    def passages(self) -> tuple[Passage, ...]:
        return tuple(self._passages)

    def add(self, hits: Sequence[Hit]) -> tuple[Hit, ...]:
        """The hits that are new, in their order; those beyond the limit are dropped.

        Two passages are near-duplicates when title and text are equal after normalisation.
        """
        fresh = []
        for hit in hits:
            key = comparable(hit.passage.title), comparable(hit.passage.text)
            if key in self._seen or len(self._passages) >= self._limit:
                continue
            self._seen.add(key)
            self._passages.append(hit.passage)
            fresh.append(hit)
        return tuple(fresh)
