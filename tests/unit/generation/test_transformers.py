"""The embedded engine: batches change nothing, rows end apart, errors stay with their request."""

import asyncio
import shutil
import threading
from contextlib import aclosing
from itertools import count
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.core.errors import GenerationError, ModelError, PromptTooLongError
from steper_ray.generation import generate, open_generator, slots
from steper_ray.generation.prefixes import PrefixStore
from steper_ray.generation.slots import SlotCache
from steper_ray.models import ASSETS, resolve_model

GREEDY = SamplingConfig(max_tokens=12)
PROMPTS = [list(range(10, 10 + size)) for size in (3, 30, 7, 90, 1, 55)]


@pytest.fixture(scope="module")
def engine():
    generator = open_generator(EngineConfig(model="miniature:base", max_model_len=128, max_batch=8))
    yield generator
    asyncio.run(generator.close())


async def test_a_batch_writes_what_each_request_gets_alone(engine):
    together = await asyncio.gather(*(generate(engine, prompt, GREEDY) for prompt in PROMPTS))
    alone = [await generate(engine, prompt, GREEDY) for prompt in PROMPTS]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.text for c in together] == [c.text for c in alone]


async def test_greedy_decoding_equals_the_models_own_generate(engine):
    model = AutoModelForCausalLM.from_pretrained(resolve_model("miniature:base"), dtype=torch.float32)
    with torch.inference_mode():
        wanted = model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=12, do_sample=False)[0, 30:]
    completion = await generate(engine, PROMPTS[1], GREEDY)
    assert list(completion.token_ids) == wanted.tolist()
    assert completion.mean_logprob < 0


async def test_an_aborted_row_leaves_the_others_intact(engine):
    wanted = await generate(engine, PROMPTS[3], GREEDY)

    async def leave():
        async with aclosing(engine.stream(PROMPTS[0], SamplingConfig(max_tokens=100))) as chunks:
            async for _ in chunks:
                return

    _, kept = await asyncio.gather(leave(), generate(engine, PROMPTS[3], GREEDY))
    assert kept.token_ids == wanted.token_ids


async def begun(engine, prompt):
    """The first chunk of a stream that is closed after it, as the loop does at the end of a sentence."""
    async with aclosing(engine.stream(prompt, GREEDY)) as chunks:
        return await anext(chunks)


async def test_a_prompt_that_begins_like_an_earlier_one_is_read_from_there_on_and_changes_nothing():
    config = EngineConfig(model="miniature:teacher", max_model_len=512, max_batch=4)
    generator, forgetful = open_generator(config), open_generator(config)
    forgetful._worker._batch._prefixes = PrefixStore(0)
    rng = Random(1)
    trunk = [rng.randrange(3, 1000) for _ in range(100)]
    prompts = [trunk + [rng.randrange(3, 1000) for _ in range(size)] for size in (9, 40, 1, 70)]
    assert (await begun(generator, prompts[3])).usage.cached_tokens == 0
    for prompt in prompts:
        found, wanted = await generate(generator, prompt, GREEDY), await generate(forgetful, prompt, GREEDY)
        assert (found.usage.cached_tokens >= 100, wanted.usage.cached_tokens) == (True, 0)
        assert found.token_ids == wanted.token_ids
        # Of the text alone a wrong position would hardly be seen.
        assert found.mean_logprob == pytest.approx(wanted.mean_logprob, abs=1e-4)
    together = await asyncio.gather(*(generate(generator, prompt, GREEDY) for prompt in prompts))
    alone = [await generate(forgetful, prompt, GREEDY) for prompt in prompts]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    other = await generate(generator, [0, *prompts[0]], GREEDY)  # another first token: nothing is shared
    assert other.usage.cached_tokens == 0
    await generator.close()
    await forgetful.close()


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
async def test_a_prompt_for_which_there_is_no_memory_is_forgotten_and_no_request_is_lost(
    engine, monkeypatch, error
):
    def full(*args):
        raise error

    wanted = await generate(engine, PROMPTS[3], GREEDY)
    monkeypatch.setattr(SlotCache, "states", full)
    asked = (generate(engine, prompt, GREEDY) for prompt in (PROMPTS[3], PROMPTS[5], PROMPTS[3]))
    first, _, last = await asyncio.gather(*asked)
    assert first.token_ids == last.token_ids == wanted.token_ids
    assert (await generate(engine, PROMPTS[3], GREEDY)).usage.cached_tokens == 0


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
async def test_a_prefill_without_memory_gets_that_of_the_kept_prompts_and_is_tried_once_more(
    monkeypatch, error
):
    config = EngineConfig(model="miniature:teacher", max_model_len=512, max_batch=4)
    generator = open_generator(config)
    batch = generator._worker._batch
    forward, failed = batch._forward, []

    def short_of_memory(ids, **kwargs):
        """Prefills fail while a prompt is kept, and those of token 9 always."""
        if ids.shape[1] > 1 and (batch._prefixes._kept or (ids == 9).any()):
            failed.append(ids.shape)
            raise error
        return forward(ids, **kwargs)

    trunk = [*range(20, 120)]
    prompts = [[*trunk, 5, 5, 5], [*trunk, 6, 6, 6]]
    wanted = [await generate(generator, prompt, GREEDY) for prompt in (*prompts, [8] * 80)]
    assert wanted[1].usage.cached_tokens == 100
    monkeypatch.setattr(batch, "_forward", short_of_memory)
    again = await generate(generator, prompts[0], GREEDY)  # would go on from a kept one's beginning
    assert (again.token_ids, again.usage.cached_tokens, len(failed)) == (wanted[0].token_ids, 0, 1)
    batch.release()
    asked = (*prompts, [9] * 103)
    found = await asyncio.gather(*(generate(generator, p, GREEDY) for p in asked), return_exceptions=True)
    assert [done.token_ids for done in found[:2]] == [done.token_ids for done in wanted[:2]]
    with pytest.raises(GenerationError, match=r"out of memory .*engine\.max_batch"):
        raise found[2]
    assert len(failed) <= 1 + 2  # with its group if it was in one, and alone: nothing more is to be freed
    await generator.close()


async def test_a_cache_that_cannot_grow_fails_the_new_prompt_alone(monkeypatch):
    """Memory ends in the middle of the layers: the running row and a later, shorter prompt go on."""
    generator = open_generator(EngineConfig(model="miniature:teacher", max_model_len=512, max_batch=8))
    wanted = [await generate(generator, prompt, GREEDY) for prompt in PROMPTS[1:3]]
    generator._worker._batch.release()
    zeros, made, step = slots._zeros, [], generator._worker._batch.step
    steps, come = count(1), threading.Event()

    def scarce(*args):
        made.append(args)
        if len(made) == 4:  # keys and values of the first layer grow, and not those of the next
            raise OUT_OF_MEMORY[1]
        return zeros(*args)

    def held():
        """The second step waits until the new prompts have come."""
        assert next(steps) != 2 or come.wait(60)
        return step()

    monkeypatch.setattr(generator._worker._batch, "step", held)
    async with aclosing(generator.stream(PROMPTS[1], GREEDY)) as running:
        tokens = (await anext(running)).token_ids
        monkeypatch.setattr(slots, "_zeros", scarce)
        new = [asyncio.create_task(generate(generator, p, GREEDY)) for p in ([5] * 300, PROMPTS[2])]
        await asyncio.sleep(0)
        come.set()
        with pytest.raises(GenerationError, match="out of memory"):
            await new[0]
        tokens += tuple([token async for chunk in running for token in chunk.token_ids])
    assert [tokens, (await new[1]).token_ids] == [done.token_ids for done in wanted]
    await generator.close()


@pytest.mark.parametrize(
    ("tokens", "shared"),
    [
        (range(200), 150),  # the longest of those that begin alike
        (range(120), 120),
        ([*range(90), 7, 7], 90),
        ([*range(63), 7], None),  # too little to be worth a pass
        ([5, *range(100)], None),
    ],
)
def test_the_prompt_that_shares_most_is_found(tokens, shared):
    store = PrefixStore(max_tokens=300)
    for size in (300, 80, 150, 70):
        store.put([*range(size)] if size < 300 else [9] * 300, [])
    found = store.take(list(tokens))
    assert (found and found[1]) == shared


def test_a_prefix_is_used_once_and_the_oldest_leave_first():
    store = PrefixStore(max_tokens=202)
    for first in (1, 2, 3):
        store.put([first, *range(100)], [])
    assert store.take([1, *range(100)]) is None
    assert store.take([3, *range(100)])[1] == 101
    assert store.take([3, *range(100)]) is None
    store.put([4, *range(100)], [])  # there is room for it again
    assert store.take([2, *range(100)])[1] == 101
    store.clear()
    for first in (5, 6):
        store.put([first, *range(100)], [])
    assert store.take([5, *range(100)])[1] == 101


def test_a_prompt_longer_than_all_the_room_is_not_kept():
    store = PrefixStore(max_tokens=80)
    store.put([*range(100)], [])
    assert store.take([*range(100)]) is None
    store.put([*range(80)], [])
    assert store.take([*range(80)])[1] == 80


async def test_the_wait_for_a_row_is_no_part_of_the_timeout(monkeypatch):
    """Each step takes a second of the loop's clock, and is taken when the token before it has been read."""
    config = EngineConfig(model="miniature:base", max_model_len=128, max_batch=1, timeout_s=20)
    generator = open_generator(config)
    loop, step, read = asyncio.get_running_loop(), generator._worker._batch.step, threading.Semaphore(1)
    offset, clock = [0.0], loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + offset[0])

    def slow():
        assert read.acquire(timeout=60)
        offset[0] += 1
        return step()

    async def tokens(prompt):
        async with aclosing(generator.stream(prompt, SamplingConfig(max_tokens=12, min_tokens=12))) as chunks:
            async for _ in chunks:
                read.release()

    monkeypatch.setattr(generator._worker._batch, "step", slow)
    await asyncio.gather(*(tokens(prompt) for prompt in PROMPTS))
    assert offset[0] == 12 * len(PROMPTS)
    await generator.close()


@pytest.mark.parametrize("at", [1, 4])
async def test_a_request_that_the_model_fails_on_in_a_step_fails_alone(engine, monkeypatch, at):
    alone = [await generate(engine, prompt, GREEDY) for prompt in PROMPTS]
    batch = engine._worker._batch
    step, company = batch.step, []

    def failing():
        """Fails from the poisoned prompt's n-th step on."""
        if any(row.prompt == PROMPTS[1] for row in batch.rows):
            company.append(len(batch.rows))
            if len(company) >= at:
                raise RuntimeError("no kernel for this shape")
        return step()

    monkeypatch.setattr(batch, "step", failing)
    found = await asyncio.gather(*(generate(engine, p, GREEDY) for p in PROMPTS), return_exceptions=True)
    assert company[at - 1 :] == [len(PROMPTS), 1]
    assert isinstance(found[1], GenerationError)
    assert "no kernel for this shape" in str(found[1])
    for n in (0, 2, 3, 4, 5):
        assert (found[n].text, found[n].token_ids) == (alone[n].text, alone[n].token_ids)
        assert found[n].mean_logprob == pytest.approx(alone[n].mean_logprob, abs=1e-4)
        assert found[n].usage.completion_tokens == alone[n].usage.completion_tokens


async def test_a_stop_string_ends_the_text_before_itself(engine):
    whole = (await generate(engine, PROMPTS[1], GREEDY)).text
    stop = whole[3:5]
    cut = await generate(engine, PROMPTS[1], GREEDY, [stop])
    assert cut.text == whole[: whole.find(stop)]
    assert cut.finish_reason == "stop"


async def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(engine):
    with pytest.raises(PromptTooLongError, match=r"128 tokens, the engine takes 128 .*engine\.max_model_len"):
        await generate(engine, [5] * 128, GREEDY)


async def test_a_completion_is_clipped_to_the_context(engine):
    completion = await generate(engine, [5] * 126, GREEDY)
    assert len(completion.token_ids) <= 2


async def test_sampling_is_reproducible_by_seed_in_any_company(engine):
    warm = SamplingConfig(temperature=1.5, max_tokens=12, seed=3)
    alone = await generate(engine, PROMPTS[2], warm)
    company = await asyncio.gather(
        generate(engine, PROMPTS[3], GREEDY),
        generate(engine, PROMPTS[2], warm),
        generate(engine, PROMPTS[2], warm.model_copy(update={"seed": 4})),
    )
    assert company[1].token_ids == alone.token_ids
    assert company[2].token_ids != alone.token_ids


async def test_a_streams_chunks_add_up_to_its_text(engine):
    chunks = [chunk async for chunk in engine.stream(PROMPTS[1], GREEDY)]
    completion = await generate(engine, PROMPTS[1], GREEDY)
    assert "".join(c.text for c in chunks) == completion.text
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage.prompt_tokens == 30


def test_a_model_folder_without_tokenizer_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="has no tokenizer"):
        open_generator(EngineConfig(model=str(tmp_path)))


@pytest.mark.parametrize("broken", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_folder_with_a_broken_file_is_a_model_error_that_names_it(broken, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "base", folder)
    (folder / broken).write_text("{}")
    with pytest.raises(ModelError, match=str(folder)):
        open_generator(EngineConfig(model=str(folder)))


async def test_a_step_says_something_before_it_may_end(tmp_path):
    """With the end of sequence as the likeliest token everywhere, min_tokens alone decides how much is written."""
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "base", folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=True)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[1], head.bias[7] = 2.0, 1.0  # </s>, then token 7
    generator = open_generator(EngineConfig(model=str(folder), max_model_len=128))
    generator.model.lm_head = head
    for least, wanted in ((0, (1,)), (1, (7, 1)), (3, (7, 7, 7, 1))):
        done = await generate(generator, PROMPTS[0], SamplingConfig(max_tokens=8, min_tokens=least))
        assert done.token_ids == wanted
    await generator.close()


async def test_the_likeliest_tokens_are_the_models_own(engine):
    opened = open_generator(EngineConfig(model="miniature:base", max_model_len=128), top_logprobs=3)
    async with aclosing(opened.stream(PROMPTS[1], GREEDY)) as chunks:
        found = [(chunk.token_ids, chunk.top) async for chunk in chunks]
    await opened.close()
    written = [token for ids, _ in found for token in ids]
    with torch.inference_mode():
        ids = torch.tensor([[*PROMPTS[1], *written]])
        at = engine.model(input_ids=ids).logits[0, len(PROMPTS[1]) - 1 : -1].log_softmax(-1).topk(3)
    assert [[token for token, _ in one] for _, (one,) in found] == at.indices.tolist()
    for (_, (one,)), wanted in zip(found, at.values.tolist(), strict=True):
        assert [value for _, value in one] == pytest.approx(wanted, abs=1e-4)
