"""The engines, real ones: transformers and vLLM in this process, vLLM's server and Ray Serve LLM behind the client."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path

import httpx
import pytest
import ray
import torch
from endless import LONG
from engine_servers import exported, merged, vllm_server, write_adapter
from ray import serve
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from serving_apps import serving
from waiting import answers, wait_until

from steper_ray.config import EngineConfig, ReasoningConfig, RetrievalConfig, SamplingConfig
from steper_ray.core.answers import is_right
from steper_ray.core.chat import Conversation
from steper_ray.core.errors import (
    EngineDeadError,
    EngineSetupError,
    GenerationError,
    PromptTooLongError,
    RefusedError,
)
from steper_ray.corpora.miniature import make_corpus
from steper_ray.frameworks import FRAMEWORKS
from steper_ray.generation import generate, open_generator, open_students
from steper_ray.models import resolve_model
from steper_ray.pretrained import load_tokenizer
from steper_ray.prompts import PromptEncoder
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval.index import ensure_index
from steper_ray.serving.teacher import build, served_name

# An engine belongs to one event loop: all tests share the module's.
pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]

MODEL, LENGTH = "miniature:teacher", 1024
GREEDY = SamplingConfig(max_tokens=24)
KINDS = ["transformers", "vllm", "openai", "teacher"]
LIKELIEST = 3  # log-probabilities at each token
START_S = 240
TRIES = 5


def make_prompts():
    """The prompts of first steps: gold passages of one question each, a chain begun in every second one."""
    passages, questions = make_corpus(seed=5, worlds=2, questions_per_world=4, split="test")
    by_id = {passage.id: passage for passage in passages}
    encoder = PromptEncoder(load_tokenizer(resolve_model(MODEL)), FRAMEWORKS["ircot"].layout)
    for number, question in enumerate(questions):
        gold = [by_id[id] for id in question.gold_ids]
        chain = [f"The answer to the first part is {question.decomposition[0].answer}."][: number % 2]
        yield encoder.prompt(question.text, gold, chain)


@pytest.fixture(scope="module")
def prompts():
    return list(make_prompts())


@pytest.fixture(scope="module")
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return exported(MODEL, tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def adapters(student, tmp_path_factory):
    """Folders of two LoRA adapters over the student, of other ranks and layers."""
    folder = tmp_path_factory.mktemp("adapters")
    made = {"adapter-1": (4, ["q_proj", "down_proj"]), "adapter-2": (3, ["v_proj", "up_proj"])}
    return {name: write_adapter(student, folder / name, *how) for name, how in made.items()}


@pytest.fixture(scope="module")
def server(student, tmp_path_factory, free_port):
    """vLLM's server on its way up, and its log. It loads while the other engines do."""
    log = tmp_path_factory.mktemp("vllm") / "serve.log"
    with vllm_server(student, free_port, LENGTH, log) as process:
        yield process, log


@pytest.fixture(scope="module")
def teacher(ray_cluster):
    """The shared teacher on Ray Serve on its way up, as a future, and its base URL. It loads beside the others."""
    overrides = f"engine.kind=vllm engine.max_model_len={LENGTH} engine.max_batch=16"
    args = {"overrides": overrides, "model": MODEL}
    with serving() as url, ThreadPoolExecutor(1) as loading:
        # As `serve run` calls it.
        app = call_user_app_builder_with_args_if_necessary(build, args)
        yield loading.submit(serve.run, app, name="teacher"), url


@pytest.fixture(scope="module")
async def engines(student, server, free_port, teacher, adapters):
    """The engines by kind, all with the same weights; vLLM's in this process has two adapters beside them."""
    process, log = server
    common = {"model": student, "max_model_len": LENGTH, "max_batch": 16, "timeout_s": 60}
    base = f"http://127.0.0.1:{free_port}"
    remote = common | {"kind": "openai", "tokenizer": MODEL}
    settings = {
        "transformers": common | {"kind": "transformers"},
        "vllm": common | {"kind": "vllm"},
        "openai": remote | {"model": "tiny", "url": f"{base}/v1"},
        "teacher": remote | {"model": served_name(MODEL), "url": f"{teacher[1]}/v1"},
    }

    def ended():
        return process.poll() is not None and f"it ended: {log.read_text()[-4000:]}"

    async with AsyncExitStack() as stack:
        opened = {}
        for kind in KINDS:
            config = EngineConfig(**settings[kind])
            if kind == "vllm":
                opened |= open_students(config, {kind: None} | adapters)
                opened[
                    kind
                ]._top_logprobs = LIKELIEST  # a build opens the engine for them, and has no adapters
            else:
                opened[kind] = open_generator(config, LIKELIEST)
            stack.push_async_callback(opened[kind].close)
        up = partial(wait_until, lambda: answers(f"{base}/health"), "vLLM's server", in_vain=ended)
        await asyncio.to_thread(up, seconds=START_S)
        await asyncio.wait_for(asyncio.wrap_future(teacher[0]), START_S)
        yield opened


@pytest.fixture(scope="module")
async def wanted(engines, prompts):
    return [await generate(engines["transformers"], prompt, GREEDY) for prompt in prompts]


@pytest.mark.parametrize("kind", KINDS)
async def test_engines_write_the_same_text_from_the_same_tokens(engines, prompts, wanted, kind):
    got = await asyncio.gather(*(generate(engines[kind], prompt, GREEDY) for prompt in prompts))
    assert [c.text for c in got] == [c.text for c in wanted]
    assert [c.token_ids for c in got] == [c.token_ids for c in wanted]
    assert [c.finish_reason for c in got] == [c.finish_reason for c in wanted]
    assert [c.mean_logprob for c in got] == pytest.approx([c.mean_logprob for c in wanted], abs=1e-3)
    for usages in zip([c.usage for c in got], [c.usage for c in wanted], strict=True):
        assert len({(usage.prompt_tokens, usage.completion_tokens) for usage in usages}) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_every_engine_gives_the_likeliest_tokens_of_the_model(engines, prompts, kind):
    async with aclosing(engines[kind].stream(prompts[0], GREEDY)) as chunks:
        found = [one async for chunk in chunks for one in zip(chunk.token_ids, chunk.top, strict=True)]
    ids = torch.tensor([[*prompts[0], *(token for token, _ in found)]])
    with torch.inference_mode():
        logits = engines["transformers"].model(input_ids=ids).logits[0, len(prompts[0]) - 1 : -1]
    wanted = logits.log_softmax(-1).topk(LIKELIEST)
    assert [[token for token, _ in top] for _, top in found] == wanted.indices.tolist()
    values = [value for _, top in found for _, value in top]
    assert values == pytest.approx(wanted.values.flatten().tolist(), abs=1e-3)


@pytest.fixture(scope="module")
async def reasoned(engines, tmp_path_factory):
    """By kind of engine, what it makes of the same questions over several steps."""
    passages, questions = make_corpus(seed=6, worlds=1, questions_per_world=6, split="test")
    retriever = ensure_index(passages, RetrievalConfig(), tmp_path_factory.mktemp("index") / "bm25")
    found = {}
    for kind in KINDS:
        engine = engines[kind]
        reasoner = Reasoner(retriever, engine, ReasoningConfig(), SamplingConfig(max_tokens=48))
        found[kind] = await asyncio.gather(*map(reasoner.run, questions))
    return found


@pytest.mark.parametrize("kind", KINDS)
async def test_an_exported_student_reasons_alike_in_every_engine(reasoned, kind):
    ours, wanted = reasoned[kind], reasoned["transformers"]
    assert [(t.chain, t.answer, t.stop_reason) for t in ours] == [
        (t.chain, t.answer, t.stop_reason) for t in wanted
    ]
    assert sum(is_right(t.answer, t.question.answers, "exact") for t in ours) >= len(ours) / 2
    assert max(len(t.steps) for t in ours) > 2


async def test_students_that_share_an_engine_write_side_by_side_what_each_writes_alone(
    engines, prompts, wanted, adapters, student, tmp_path
):
    names = ["adapter-1", "vllm", "adapter-2"]
    mixed = await asyncio.gather(*(generate(engines[name], prompts[0], GREEDY) for name in names))
    for name, got in zip(names, mixed, strict=True):
        if name == "vllm":
            assert got.text == wanted[0].text
            continue
        alone = open_generator(EngineConfig(model=merged(student, adapters[name], tmp_path / name)))
        assert got.token_ids == (await generate(alone, prompts[0], GREEDY)).token_ids
        await alone.close()
    assert len({got.token_ids for got in mixed}) == 3


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stop_string_ends_the_text_before_itself(engines, prompts, wanted, kind):
    whole = wanted[0].text
    stop = whole[4:7]
    cut = await generate(engines[kind], prompts[0], GREEDY, [stop])
    assert cut.text == whole[: whole.find(stop)]
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_seed_gives_the_same_text_again(engines, kind):
    warm = SamplingConfig(temperature=2.0, top_p=0.95, max_tokens=16, seed=3)
    other = warm.model_copy(update={"seed": 4})
    first, again, different = [await generate(engines[kind], [5, 6, 7], s) for s in (warm, warm, other)]
    assert first.token_ids == again.token_ids != different.token_ids


@pytest.mark.parametrize("kind", KINDS)
async def test_a_completion_is_clipped_to_the_context(engines, kind):
    completion = await generate(engines[kind], [5] * (LENGTH - 2), GREEDY)
    assert 1 <= len(completion.token_ids) <= 2


@pytest.mark.parametrize("kind", KINDS)
async def test_a_prompt_that_is_too_long_is_refused(engines, kind):
    with pytest.raises(PromptTooLongError, match=rf"{LENGTH} tokens"):
        await generate(engines[kind], [5] * LENGTH, GREEDY)


async def test_text_prompts_are_the_endpoints_to_tokenise_and_its_own_limit_is_told(engines, free_port):
    config = EngineConfig(kind="openai", model="tiny", url=f"http://127.0.0.1:{free_port}/v1")
    generator, local = open_generator(config), engines["transformers"]
    prompt = "Title: Bo\nBo was born in Alba.\n\nQ: Where?\nA:"
    completion = await generate(generator, prompt, GREEDY)
    assert completion.text == (await generate(local, local.tokenizer.encode(prompt), GREEDY)).text
    with pytest.raises(PromptTooLongError, match="context"):
        await generate(generator, "Bo was born. " * LENGTH, GREEDY)
    await generator.close()


async def test_a_chat_goes_on_with_its_reply_as_the_same_text_is_completed(engines, free_port):
    url, local = f"http://127.0.0.1:{free_port}/v1", engines["transformers"]
    generator = open_generator(EngineConfig(kind="openai", model="tiny", url=url, prefill="continue"))
    chat = Conversation("", "Title: Bo\nBo was born in Alba.\n\nQ: Where?", "A: Bo was born")
    ids = local.tokenizer.encode(f"{chat.user}\n{chat.reply}", add_special_tokens=False)
    wanted, got = await generate(local, ids, GREEDY), await generate(generator, chat, GREEDY)
    assert generator.way == "messages, through the chat route (engine.prefill=continue)"
    assert (got.text, got.usage.prompt_tokens) == (wanted.text, len(ids))
    assert got.mean_logprob == pytest.approx(wanted.mean_logprob, abs=0.2)  # without the end of sequence
    await generator.close()


@pytest.mark.parametrize("kind", ["vllm", "openai", "teacher"])
async def test_token_ids_outside_of_the_vocabulary_fail_the_request_alone(engines, prompts, wanted, kind):
    with pytest.raises(GenerationError) as raised:
        await generate(engines[kind], [5, 10**6], GREEDY)
    assert type(raised.value) is RefusedError
    assert (await generate(engines[kind], prompts[0], GREEDY)).text == wanted[0].text


@pytest.mark.parametrize("kind", [*KINDS, "adapter-1"])
async def test_a_check_of_an_engine_that_answers_passes(engines, kind):
    await engines[kind].check()


@pytest.mark.parametrize("kind", ["openai", "teacher"])
@pytest.mark.parametrize(
    ("wrong", "words"), [({"model": "absent"}, "no model 'absent'"), ({"url": "/v2"}, r"engine\.url")]
)
async def test_a_check_names_the_setting_that_a_server_answers_nobody_with(engines, kind, wrong, words):
    settings = engines[kind]._config.model_dump()
    if "url" in wrong:
        wrong = {"url": settings["url"].removesuffix("/v1") + wrong["url"]}
    generator = open_generator(EngineConfig(**settings | wrong))
    with pytest.raises(EngineSetupError, match=words):
        await generator.check()
    await generator.close()


@pytest.mark.usefixtures("endless")
async def test_closing_a_stream_aborts_the_request_and_leaves_the_others(engines, prompts, wanted):
    engine = engines["vllm"]

    async def leave():
        async with aclosing(engine.stream([5, 6, 7], LONG)) as chunks:
            await anext(chunks)
            assert engine.active >= 1

    _, kept = await asyncio.gather(leave(), generate(engine, prompts[0], GREEDY))
    assert kept.text == wanted[0].text
    assert engine.active == 0


@pytest.mark.usefixtures("endless")
async def test_closing_a_stream_aborts_the_request_at_the_endpoint(engines, free_port):
    def ran_to_the_end():
        lines = httpx.get(f"http://127.0.0.1:{free_port}/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("vllm:request_success_total{")]
        return sum(float(line.split()[-1]) for line in found if 'finished_reason="length"' in line)

    async def is_aborted():
        before = await asyncio.to_thread(ran_to_the_end)
        async with aclosing(engines["openai"].stream([5, 6, 7], LONG)) as chunks:
            await anext(chunks)
        # The engine advances all its requests together: were the first one still running, it would end before this one.
        second = await generate(engines["openai"], [5, 6, 7], LONG)
        assert len(second.token_ids) == LONG.max_tokens
        await asyncio.to_thread(wait_until, lambda: ran_to_the_end() > before, "the request in the metrics")
        return await asyncio.to_thread(ran_to_the_end) == before + 1

    # A starved server may see that its reader is gone only after the last token.
    for _ in range(TRIES):
        if await is_aborted():
            return
    raise AssertionError(f"each of {TRIES} requests ran to its end")


async def test_the_shared_teacher_tells_what_its_cache_saved_and_logs_no_prompt(engines):
    prompt = [5, 6, 7] * 200  # several blocks of the cache
    first, again = [await generate(engines["teacher"], prompt, GREEDY) for _ in range(2)]
    assert again.token_ids == first.token_ids
    assert (first.usage.cached_tokens, 0 < again.usage.cached_tokens < len(prompt)) == (0, True)
    words = "Zanzibarian quokkas"
    text = EngineConfig(**engines["teacher"]._config.model_dump() | {"tokenizer": None})
    generator = open_generator(text)
    assert (await generate(generator, f"Who saw the {words}?", GREEDY)).usage.prompt_tokens > 0
    await generator.close()
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    ours = [file for file in (logs / "serve").iterdir() if "teacher" in file.name]
    assert [file for file in ours if "POST /v1/completions" in file.read_text()]
    assert [
        file for file in logs.rglob("*") if file.is_file() and words in file.read_text(errors="ignore")
    ] == []


@pytest.mark.usefixtures("endless")
async def test_a_timeout_aborts_the_request(engines, monkeypatch):
    monkeypatch.setattr(engines["vllm"], "_timeout_s", 0.05)
    with pytest.raises(GenerationError, match=r"0\.05 s"):
        await generate(engines["vllm"], [5, 6, 7], LONG)
    assert engines["vllm"].active == 0


@pytest.mark.usefixtures("endless")
async def test_a_closed_engine_is_dead_for_open_streams_and_new_ones(engines):
    engine = engines["vllm"]
    async with aclosing(engine.stream([5, 6, 7], LONG)) as chunks:
        await anext(chunks)
        await engine.close()
        with pytest.raises(EngineDeadError, match="closed"):
            [chunk async for chunk in chunks]
    with pytest.raises(EngineDeadError, match="closed"):
        await generate(engine, [5, 6, 7], GREEDY)
    with pytest.raises(EngineDeadError, match="closed"):
        await engine.check()
