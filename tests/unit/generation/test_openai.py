"""The endpoint's client: what it sends, what it makes of answers, and whose fault an error is."""

import asyncio
from contextlib import aclosing

import pytest
from http_endpoint import (
    ANSWER,
    BREAK,
    KEY,
    Endpoint,
    clients,
    piece,
    refusal,
    serving,
    unanswered,
    url_of,
)
from openai.types import Completion, CompletionChoice

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.core.errors import (
    EngineDeadError,
    EngineSetupError,
    GenerationError,
    ModelError,
    PromptTooLongError,
    RefusedError,
)
from steper_ray.frameworks import FRAMEWORKS
from steper_ray.generation import generate, open_generator
from steper_ray.generation.endpoint.routes import Completions
from steper_ray.reasoning.draft import Draft
from steper_ray.schema import Usage

GREEDY = SamplingConfig(max_tokens=12)
CHAT = "This is a chat model\nand not supported in the v1/completions endpoint."
PAGE = "<html><body>Welcome</body></html>"


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
        (422, {"detail": "prompt is too long"}, PromptTooLongError, "is too long"),
        (400, refusal("top_p is wrong"), RefusedError, "top_p is wrong"),
        (413, refusal("too large"), RefusedError, "too large"),
        (422, {"detail": f"invalid prompt, {KEY}"}, RefusedError, r"invalid prompt, \$ENDPOINT_KEY"),
        (403, refusal("your input was flagged"), RefusedError, "flagged"),
        (401, refusal(f"Incorrect API key {KEY}"), EngineSetupError, r"key \(401\).*\$ENDPOINT_KEY"),
        (403, refusal(f"no access for {KEY}"), EngineSetupError, r"key \(403\).*\$ENDPOINT_KEY.*tiny"),
        (404, refusal(CHAT), EngineSetupError, r"no model 'tiny'.*chat model and not.*engine\.model"),
        (404, {"detail": "x" * 999}, EngineSetupError, r"x{200}\): set engine\.model"),
        (405, {"detail": "Method Not Allowed"}, EngineSetupError, r"405 \(Method Not.*engine\.url"),
        (404, PAGE, EngineSetupError, r"404 with a web page.*engine\.url"),
        (200, PAGE, EngineSetupError, r"200 with a web page.*engine\.url"),
        (300, PAGE, EngineSetupError, r"300 with a web page.*engine\.url"),
        (451, refusal("not here"), GenerationError, "not here"),
    ],
)
async def test_a_refusal_names_its_cause_in_one_line_and_never_the_key(
    endpoint, opened, status, error, kind, words
):
    endpoint.replies = [(status, error)]
    with pytest.raises(GenerationError, match=words) as raised:
        await generate(opened(), "Q", GREEDY)
    assert type(raised.value) is kind
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_a_check_asks_for_one_token_in_the_form_of_every_request(endpoint, opened):
    endpoint.replies = [ANSWER, ANSWER]
    generator = opened()
    await generator.check()
    await generate(generator, "Q", GREEDY)
    checked, asked = endpoint.bodies
    assert checked.keys() == asked.keys()
    assert (checked["model"], checked["max_tokens"]) == ("tiny", 1)
    assert generator.limiter.in_use == 0


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((400, refusal("prompt is unknown")), r"one token of engine\.model=tiny \(prompt is unknown\)"),
        ((200, [refusal("no prompt ids", 400)]), r"\(no prompt ids\)"),
        ((401, refusal("who?")), r"\$ENDPOINT_KEY"),
        ((402, refusal("pay")), "quota"),
        ((429, refusal("pay", "insufficient_quota")), "quota"),
        ((403, refusal("no")), r"\$ENDPOINT_KEY"),
        ((404, refusal(CHAT)), "chat model"),
        ((405, refusal("no")), r"engine\.url"),
        ((422, {"detail": "no"}), r"\(no\)"),
        ((200, PAGE), "web page"),
    ],
)
async def test_a_check_finds_what_fails_every_request(endpoint, opened, reply, words):
    endpoint.replies = [reply]
    with pytest.raises(EngineSetupError, match=words) as raised:
        await opened().check()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "reply",
    [
        (429, refusal("later")),
        (500, refusal("broken")),
        (503, PAGE),
        (408, refusal("slow")),
        (200, [BREAK]),
        (200, []),
        (200, [None]),
    ],
)
async def test_a_check_lets_a_busy_or_failing_endpoint_pass_at_once(endpoint, opened, reply):
    endpoint.replies = [reply]
    generator = opened(timeout_s=0.2)
    await generator.check()
    assert (len(endpoint.bodies), generator.time.pauses) == (1, [])


@pytest.mark.usefixtures("endpoint")
async def test_a_check_of_an_address_where_nobody_listens_names_it():
    with unanswered() as listener:
        async with clients(url_of(listener)) as opened:
            with pytest.raises(EngineSetupError, match=rf"cannot reach {url_of(listener)} \(.+\): start the"):
                await opened().check()


async def test_a_check_of_a_closed_generator_is_the_closed_generators_error(opened):
    generator = opened()
    await generator.close()
    with pytest.raises(EngineDeadError, match="closed") as raised:
        await generator.check()
    assert type(raised.value) is EngineDeadError


def test_a_key_that_no_header_takes_is_refused_and_not_repeated(monkeypatch):
    monkeypatch.setenv("ENDPOINT_KEY", "secret\nvalue")
    config = EngineConfig(kind="openai", model="tiny", url="http://localhost/v1", api_key_env="ENDPOINT_KEY")
    with pytest.raises(ModelError, match=r"\$ENDPOINT_KEY") as raised:
        open_generator(config)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([piece(" Bo"), refusal("the engine failed")], GenerationError),
        ([piece(" Bo")], GenerationError),
        ([piece(" Bo", "abort")], GenerationError),
        ([piece(" Bo", "content_filter")], RefusedError),
    ],
)
async def test_half_a_completion_is_an_error_and_never_an_answer(endpoint, opened, events, kind):
    endpoint.replies = [(200, events)]
    with pytest.raises(GenerationError, match=r"broke off|ended the") as raised:
        await generate(opened(), "Q", GREEDY)
    assert type(raised.value) is kind


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
    choice = {"finish_reason": "stop", "index": 0, "text": "a\ud83d b \ud83d\ude00 \u00e9"}
    event = Completion.construct(choices=[CompletionChoice.construct(**choice)], usage=None)
    assert Completions().reader("").chunk(event).text == "a\ufffd b \U0001f600 \u00e9"


async def test_the_likeliest_tokens_come_by_their_ids(endpoint):
    listed = [{"token_id:3": -0.5, "token_id:9": -1.0, "token_id:8": -2.0}, {"token_id:4": -0.1}]
    said = {"token_logprobs": [-0.5, -0.1], "top_logprobs": listed}
    endpoint.replies = [(200, [piece(" Bo", "length", token_ids=[3, 4], logprobs=said)])]
    config = EngineConfig(kind="openai", model="tiny", url=endpoint.url, tokenizer="miniature:base")
    generator = open_generator(config, top_logprobs=2)
    chunks = [chunk async for chunk in generator.stream([5], GREEDY)]
    draft = Draft(FRAMEWORKS["ircot"], "chain", generator.tokenizer, chat=False)
    for chunk in chunks:
        draft.add(chunk)
    assert draft.top_logprobs.ids == (3, 4)  # as many of each token
    assert (endpoint.bodies[0]["logprobs"], endpoint.bodies[0]["return_tokens_as_token_ids"]) == (2, True)
    assert [one for chunk in chunks for one in chunk.top] == [((3, -0.5), (9, -1.0)), ((4, -0.1),)]
    await generator.close()


@pytest.mark.parametrize(
    "logprobs",
    [None, {"token_logprobs": [-0.5], "top_logprobs": [{" Bo": -0.5}]}, {"token_logprobs": [-0.5]}],
)
async def test_an_endpoint_without_log_probabilities_by_ids_ends_the_run_with_those_that_have_them(
    endpoint, logprobs
):
    endpoint.replies = [(200, [piece(" Bo", "length", token_ids=[3], logprobs=logprobs)])] * 2
    config = EngineConfig(kind="openai", model="tiny", url=endpoint.url, tokenizer="miniature:base")
    generator = open_generator(config, top_logprobs=2)
    with pytest.raises(EngineSetupError, match=r"build\.logits=2: .*a server of vLLM does"):
        await generator.check()
    with pytest.raises(EngineSetupError, match=r"build\.logits=0"):
        await generate(generator, [5], GREEDY)
    await generator.close()
