"""Trajectories with and without the embedded engine's memory of prompts: the same chains, how much sooner.

The miniature teacher reasons over questions of made-up worlds, all in flight at once, as a build's actor has them.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from paired import ratios, tell

from steper_ray import stages
from steper_ray.config import Config, EngineConfig
from steper_ray.corpora import open_corpus
from steper_ray.generation.prefixes import PrefixStore
from steper_ray.generation.transformers_engine import TransformersGenerator
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval.base import Retriever
from steper_ray.retrieval.index import open_index
from steper_ray.schema import Trajectory

WORLDS, ROUNDS = 8, 3


class Way:
    """One engine; `remembers` prompts or not."""

    def __init__(self, config: Config, retriever: Retriever, *, remembers: bool) -> None:
        self._remembers = remembers
        self.engine = TransformersGenerator(EngineConfig(model="miniature:teacher"))
        self._reasoner = Reasoner(retriever, self.engine, config.reasoning, config.sampling)
        self._questions = list(open_corpus(config.corpus).questions())
        self.found: list[Trajectory] = []

    def run(self) -> None:
        async def all_of_them() -> list[Trajectory]:
            return list(await asyncio.gather(*(self._reasoner.run(q) for q in self._questions)))

        batch = self.engine._worker._batch  # each round starts with nothing remembered
        batch._prefixes = PrefixStore(batch.max_rows * batch._max_model_len if self._remembers else 0)
        self.found = asyncio.run(all_of_them())

    def cached(self, step: int) -> float:
        """Share of the prompt tokens of a step (from 1) that were not computed again."""
        usages = [t.steps[step - 1].usage for t in self.found if len(t.steps) >= step]
        return sum(u.cached_tokens for u in usages) / sum(u.prompt_tokens for u in usages)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {"run_dir": Path(folder), "corpus": {"miniature": {"worlds": WORLDS, "seed": 78}}}
        )
        corpus = open_corpus(config.corpus)
        retriever = open_index(stages.index(config), config.retrieval, corpus.fingerprint())
        with_memory = Way(config, retriever, remembers=True)
        without = Way(config, retriever, remembers=False)
        found = ratios(with_memory.run, without.run, ROUNDS)
    pairs = zip(with_memory.found, without.found, strict=True)
    same = sum(a.chain == b.chain for a, b in pairs)
    shares = ", ".join(f"{with_memory.cached(step):.2f}" for step in range(1, 6))
    print(
        f"{len(with_memory.found)} questions, {same} with the same chain; cached share at steps 1 to 5: {shares}"
    )
    tell("time without memory over time with it", found)
    for way in (with_memory, without):
        asyncio.run(way.engine.close())


if __name__ == "__main__":
    main()
