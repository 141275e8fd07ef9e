"""vLLM in this process, an engine of each test's own: what it refuses to load, and its death."""

import asyncio
import multiprocessing
from contextlib import aclosing

import psutil
import pytest
from endless import LONG

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.errors import EngineDeadError, ModelError
from steper_ray.generation import generate, open_generator

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio]

MODEL, LENGTH = "miniature:teacher", 1024
GREEDY = SamplingConfig(max_tokens=24)


async def test_a_context_longer_than_the_model_cannot_be_loaded_by_vllm():
    with pytest.raises(ModelError, match=r"cannot load model .*max_model_len \(1000000\)"):
        open_generator(EngineConfig(kind="vllm", model=MODEL, max_model_len=10**6))


@pytest.mark.usefixtures("endless")
async def test_an_engine_made_before_its_loop_answers_in_one_process_and_its_death_is_told():
    def without_a_loop():
        generator = open_generator(EngineConfig(kind="vllm", model=MODEL, max_model_len=LENGTH))
        asyncio.run(use(generator))

    async def use(generator):
        assert (await generate(generator, [5, 6, 7], GREEDY)).token_ids
        [core] = [child for child in multiprocessing.active_children() if child.name == "EngineCore"]
        assert not psutil.Process(core.pid).children()  # vLLM's workers would all bind to the same cores
        async with aclosing(generator.stream([5, 6, 7], LONG)) as chunks:
            await anext(chunks)
            core.kill()
            with pytest.raises(EngineDeadError, match="died"):
                [chunk async for chunk in chunks]
        with pytest.raises(EngineDeadError, match="died"):
            await generate(generator, [5, 6, 7], GREEDY)
        with pytest.raises(EngineDeadError, match="died"):
            await generator.check()
        await generator.close()

    await asyncio.to_thread(without_a_loop)
