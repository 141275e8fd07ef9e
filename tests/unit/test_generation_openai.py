"""The endpoint's client: what it sends, what it makes of answers, and whose fault an error is."""

import asyncio
from contextlib import aclosing

import pytest
from http_endpoint import ANSWER, KEY, Endpoint, clients, piece, refusal, serving
from openai.types import CompletionChoice

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.errors import EngineDeadError, GenerationError, PromptTooLongError
from steper_ray.generation import generate, open_generator
from steper_ray.generation.openai_http import _chunk
from steper_ray.schema import Usage

GREEDY = SamplingConfig(max_tokens=12)


@pytest.fixture
async def endpoint(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ENDPOINT_KEY", KEY)
    async with serving(Endpoint()) as endpoint:
        yield endpoint


@pytest.fixture
async def opened(endpoint):
    async with clients(endpoint.url) as opened:
        yield opened


async def test_text_goes_as_text_with_every_setting_and_the_key(endpoint, opened):
    endpoint.replies = [ANSWER]
    completion = await generate(opened(), "Q: Who?\nA:", GREEDY, ["\n"])
    assert completion.text == " Bo was"
    assert completion.finish_reason == "stop"
    assert completion.usage == Usage(7, 2, cached_tokens=4)
    [sent] = endpoint.bodies
    assert (sent["model"], sent["prompt"], sent["max_tokens"]) == ("tiny", "Q: Who?\nA:", 12)
    assert (sent["temperature"], sent["seed"], sent["stop"]) == (0, 0, ["\n"])
    assert endpoint.keys == [f"bearer {KEY}"]


async def test_with_a_tokenizer_ids_go_out_clipped_to_the_context_and_come_back(endpoint, opened):
    endpoint.replies = [
        (200, [piece(" Bo", "length", token_ids=[3, 4], logprobs={"token_logprobs": [-0.5, -1.5]})])
    ]
    generator = opened(tokenizer="miniature:base", max_model_len=10)
    completion = await generate(generator, [5] * 8, GREEDY)
    assert (endpoint.bodies[0]["prompt"], endpoint.bodies[0]["max_tokens"]) == ([5] * 8, 2)
    assert completion.token_ids == (3, 4)
    assert completion.mean_logprob == -1.0
    assert completion.usage == Usage(8, 2)
    with pytest.raises(PromptTooLongError, match="10 tokens"):
        await generate(generator, [5] * 10, GREEDY)


async def test_the_last_chunk_alone_has_the_finish_reason_and_the_usage(endpoint, opened):
    endpoint.replies = [ANSWER]
    chunks = [chunk async for chunk in opened().stream("Q", GREEDY)]
    assert [(c.text, c.finish_reason, c.usage is not None) for c in chunks] == [
        (" Bo", None, False),
        (" was", "stop", True),
    ]


async def test_an_endpoint_that_refuses_the_token_id_extension_is_asked_without_it(endpoint, opened):
    endpoint.replies = [(400, refusal("Unrecognized argument: return_token_ids")), ANSWER, ANSWER]
    generator = opened()
    assert [(await generate(generator, "Q", GREEDY)).text for _ in range(2)] == [" Bo was"] * 2
    assert ["return_token_ids" in body for body in endpoint.bodies] == [True, False, False]


@pytest.mark.parametrize(
    ("status", "error", "kind", "words"),
    [
        (400, refusal("too much", "context_length_exceeded"), PromptTooLongError, "max_passage_chars"),
        (400, refusal("This model's maximum context length is 8 tokens."), PromptTooLongError, "is 8 tokens"),
        (400, refusal("top_p is wrong"), GenerationError, "top_p is wrong"),
        (401, refusal(f"Incorrect API key {KEY}"), EngineDeadError, r"\$ENDPOINT_KEY"),
        (404, refusal("no such model"), EngineDeadError, "no model 'tiny'.*engine.model"),
    ],
)
async def test_a_refusal_names_its_cause_and_never_the_key(endpoint, opened, status, error, kind, words):
    endpoint.replies = [(status, error)]
    with pytest.raises(GenerationError, match=words) as raised:
        await generate(opened(), "Q", GREEDY)
    assert type(raised.value) is kind
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    "events",
    [
        [piece(" Bo"), refusal("the engine failed")],
        [piece(" Bo")],
        [piece(" Bo", "content_filter")],
    ],
)
async def test_half_a_completion_is_an_error_and_never_an_answer(endpoint, opened, events):
    endpoint.replies = [(200, events)]
    with pytest.raises(GenerationError, match=r"broke off|ended the"):
        await generate(opened(), "Q", GREEDY)


async def test_closing_the_stream_hangs_up(endpoint, opened):
    endpoint.replies = [(200, [piece(" Bo"), None])]
    async with aclosing(opened().stream("Q", GREEDY)) as chunks:
        assert (await anext(chunks)).text == " Bo"
    await asyncio.wait_for(endpoint.hang_up.wait(), 10)


async def test_an_endpoint_that_goes_silent_runs_into_the_timeout(endpoint, opened):
    endpoint.replies = [(200, [piece(" Bo"), None])]
    with pytest.raises(GenerationError, match=r"0\.2 s \(engine\.timeout_s\)"):
        await generate(opened(timeout_s=0.2), "Q", GREEDY)


async def test_a_refusal_as_the_only_event_of_a_stream_is_a_refusal(endpoint, opened):
    endpoint.replies = [(200, [refusal("the maximum context length is 8 tokens", 400)])]
    with pytest.raises(PromptTooLongError, match="is 8 tokens"):
        await generate(opened(), "Q", GREEDY)


async def test_a_closed_generator_is_dead_for_new_requests_and_for_those_in_the_line(endpoint):
    config = EngineConfig(kind="openai", model="tiny", url=endpoint.url, max_batch=1)
    generator = open_generator(config)
    with await generator.limiter.acquire():
        waiting = asyncio.create_task(generate(generator, "Q", GREEDY))
        await asyncio.sleep(0)
        await generator.close()
    for request in (waiting, generate(generator, "Q", GREEDY)):
        with pytest.raises(EngineDeadError, match="closed"):
            await request
    assert endpoint.bodies == []


def test_half_a_character_is_shown_as_a_mark_and_whole_ones_as_they_are():
    choice = CompletionChoice(finish_reason="stop", index=0, text="a\ud83d b \ud83d\ude00 \u00e9")
    assert _chunk(choice).text == "a\ufffd b \U0001f600 \u00e9"
