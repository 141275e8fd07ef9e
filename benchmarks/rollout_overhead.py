"""What Ray Data costs a build by itself: the annotation teacher over the same shards, in a Ray actor and without Ray.

The teacher needs no engine, so what is left is retrieval, the commits of the shards, and Ray.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import tempfile
import time
from pathlib import Path

import ray
from steper_ray.distillation.engine_log import EngineLog
from steper_ray.distillation.pipeline import _committed
from steper_ray.distillation.rollout_actor import Job, RolloutActor, shard_row
from steper_ray.distillation.shards import Shard, ShardStore, cut

from steper_ray import stages
from steper_ray.config import Config
from steper_ray.corpora import open_corpus
from steper_ray.retrieval.index import index_folder


def overhead(worlds: int) -> dict[str, float]:
    """Seconds with and without Ray, the first of which hold what is paid once: starting the actor."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {
                "run_dir": Path(folder),
                "corpus": {"miniature": {"worlds": worlds, "seed": 78}},
                "build": {"teacher": "annotation", "shard_size": 16},
            }
        )
        corpus = open_corpus(config.corpus)
        questions, fingerprint = list(corpus.questions()), corpus.fingerprint()
        stages.index(config)

        def job(name: str) -> Job:
            made = Path(folder) / name
            ShardStore(made, "").clean()
            index = index_folder(config.retrieval, Path(folder), fingerprint)
            return Job(config, "annotation", index, fingerprint, made, "", EngineLog(made / "engines", 9))

        shards = cut(questions, config.build.shard_size, "")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            started = time.perf_counter()
            first = rest = 0.0
            for number, _ in enumerate(_committed(job("ray"), shards)):
                if not number:
                    first = time.perf_counter() - started
            rest = time.perf_counter() - started - first
        finally:
            ray.shutdown()
        started = time.perf_counter()
        asyncio.run(_alone(job("alone"), shards))
        alone = time.perf_counter() - started
    thousand = 1000 / len(questions)
    return {
        "seconds_to_the_first_shard": first,
        "seconds_per_1000_questions": rest * thousand,
        "seconds_per_1000_questions_without_ray": alone * thousand,
    }


async def _alone(job: Job, shards: list[Shard]) -> None:
    """As many shards at a time as Ray Data gives an actor."""
    actor, at_once = RolloutActor(dataclasses.replace(job)), asyncio.Semaphore(5)

    async def one(shard: Shard) -> None:
        async with at_once:
            await actor(shard_row(shard))

    await asyncio.gather(*map(one, shards))


if __name__ == "__main__":
    print(overhead(128))
