"""vLLM in this process, an engine of each test's own: what it refuses to load, and its death."""

import asyncio
import multiprocessing
import shutil
from contextlib import aclosing
from dataclasses import replace

import psutil
import pytest
import torch
from endless import LONG
from transformers import AutoModelForCausalLM

from steper_ray.config import EngineConfig, SamplingConfig, TrainConfig
from steper_ray.core.errors import EngineDeadError, EngineSetupError, ModelError
from steper_ray.core.probes import write_probes
from steper_ray.generation import generate, open_generator
from steper_ray.models import resolve_model
from steper_ray.training.exactness import probe
from steper_ray.training.forward import Forward
from steper_ray.training.packing import Branch, Tree

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


async def test_a_student_that_vllm_computes_otherwise_is_refused_at_its_first_request(tmp_path):
    folder = shutil.copytree(resolve_model(MODEL), tmp_path / "student")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    student = Forward(model, model, "blocks", torch.float32, torch.device("cpu"))
    tree = Tree(range(20, 40), (Branch(20, (41, 42), (43, 44, 45, 46), 0),))
    found = probe(student, [tree], TrainConfig())
    off = [replace(one, logprob=one.logprob - 0.5) for one in found.probes]
    write_probes(folder, replace(found, probes=tuple(off)))
    generator = open_generator(EngineConfig(kind="vllm", model=str(folder), max_model_len=LENGTH))
    try:
        for _ in range(2):  # half a nat and no more: what it computes by itself is the student's
            with pytest.raises(EngineSetupError, match=r"differ by 0\.5 on average"):
                await generate(generator, [5, 6, 7], GREEDY)
    finally:
        await generator.close()
