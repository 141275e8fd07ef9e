"""A retriever of your own: one method. Here passages are ranked by the share of the query's words in their title.

python examples/new_retriever.py "Who directed Alba?"
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from steper_ray.config import EngineConfig, ReasoningConfig, SamplingConfig
from steper_ray.generation import open_generator
from steper_ray.reasoning import Reasoner
from steper_ray.schema import Hit, Passage, Question, Trajectory

PASSAGES = [Passage("1", "Alba", "Alba was directed by Bo."), Passage("2", "Bo", "Bo was born in Cem.")]


class TitleRetriever:
    """Ranks passages by title. Same query, same hits, best first."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [self._one(set(query.lower().strip("?.").split()), k) for query in queries]

    def _one(self, words: set[str], k: int) -> list[Hit]:
        scored = [Hit(p, float(len(words & set(p.title.lower().split())))) for p in self._passages]
        return sorted(scored, key=lambda hit: (-hit.score, hit.passage.id))[:k]


async def answer(question: str) -> Trajectory:
    engine = open_generator(EngineConfig(model="miniature:teacher"))
    try:
        reasoner = Reasoner(TitleRetriever(PASSAGES), engine, ReasoningConfig(k=1), SamplingConfig())
        return await reasoner.run(Question("1", question, ()))
    finally:
        await engine.close()


if __name__ == "__main__":
    for step in asyncio.run(answer(sys.argv[1])).steps:
        print(step.query, [hit.passage.title for hit in step.hits], step.reasoning, sep=" | ")
