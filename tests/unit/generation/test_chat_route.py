"""The chat route: what is sent, how a reply is gone on with, and what providers refuse or add."""

import pytest
from http_endpoint import ANSWER, USAGE, Endpoint, clients, refusal, said, serving

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.core.chat import Conversation
from steper_ray.core.errors import EngineSetupError, GenerationError, RefusedError
from steper_ray.generation import generate
from steper_ray.schema import Usage

ASK = Conversation("Be brief.", "Q: Who?", "Alba was shot by Bo.", "Q: Who?\nA: Alba was shot by Bo.")
GREEDY = SamplingConfig(max_tokens=12)
ON = (200, [said("is"), said(".", "stop")])
OTHER_TURN = (200, [said("The capital of"), said(" France is Paris.", "stop")])
REPLY = (200, [said(" Bo"), said(" was", "stop"), USAGE])
NO_CHAT = (404, refusal("no such route"))


@pytest.fixture
async def endpoint(monkeypatch):
    monkeypatch.setenv("ENDPOINT_KEY", "k")
    async with serving(Endpoint()) as found:
        yield found


@pytest.fixture
async def opened(endpoint):
    async with clients(endpoint.url) as open_it:
        yield lambda **settings: open_it(**{"route": "chat", **settings})


def roles(body):
    return [message["role"] for message in body["messages"]]


@pytest.mark.parametrize(
    ("prefill", "last", "more"),
    [
        ("continue", {"role": "assistant"}, {"continue_final_message": True, "add_generation_prompt": False}),
        ("prefix", {"role": "assistant", "prefix": True}, {}),
        ("last", {"role": "assistant"}, {}),
    ],
)
async def test_the_chain_is_the_beginning_of_the_reply(endpoint, opened, prefill, last, more):
    endpoint.replies = [REPLY]
    completion = await generate(opened(prefill=prefill), ASK, GREEDY, ("\n",))
    (body,) = endpoint.bodies
    assert endpoint.paths == ["/v1/chat/completions"]
    assert roles(body) == ["system", "user", "assistant"]
    assert body["messages"][-1] == {**last, "content": ASK.reply}
    assert {name: body[name] for name in more} == more
    assert "continue_final_message" in body or prefill != "continue"
    assert not {"stop", "prompt", "seed", "top_p"} & set(body)
    assert (completion.text, completion.usage) == (" Bo was", Usage(7, 2, 4))


async def test_without_prefill_the_chain_stands_in_the_question_and_an_echo_is_dropped(endpoint, opened):
    endpoint.replies = [(200, [said("Alba was"), said(" shot by Bo. Bo was born"), said(" in Cem.", "stop")])]
    completion = await generate(opened(prefill="none"), ASK, GREEDY)
    (body,) = endpoint.bodies
    assert roles(body) == ["system", "user"]
    assert body["messages"][-1]["content"].startswith("Q: Who?\n\n")
    assert ASK.reply in body["messages"][-1]["content"]
    assert completion.text == " Bo was born in Cem."


@pytest.mark.parametrize(
    ("replies", "asked"),
    [
        ([ON], ["continue"]),
        ([OTHER_TURN, ON], ["continue", "prefix"]),
        (
            [(422, {"detail": "Unexpected fields: {'continue_final_message'}"}), (400, refusal("no")), ON],
            ["continue", "prefix", "last"],
        ),
        ([OTHER_TURN, OTHER_TURN, OTHER_TURN], ["continue", "prefix", "last", "none"]),
    ],
)
async def test_the_way_to_go_on_is_found_out_once(endpoint, opened, replies, asked):
    endpoint.replies = [*replies, REPLY, REPLY]
    generator = opened()
    for _ in range(2):
        assert (await generate(generator, ASK, GREEDY)).text == " Bo was"
    one, two = endpoint.bodies[len(replies) :]
    assert one == two
    way = "none" if roles(one)[-1] == "user" else "last"
    way = "continue" if "continue_final_message" in one else way
    way = "prefix" if "prefix" in one["messages"][-1] else way
    assert way == asked[-1]


async def test_an_endpoint_without_a_chat_route_is_sent_text(endpoint, opened):
    endpoint.replies = [NO_CHAT, ANSWER, ANSWER]
    generator = opened(route="auto")
    await generator.check()
    assert (await generate(generator, ASK, GREEDY, ("\n",))).text == " Bo was"
    assert endpoint.paths == ["/v1/chat/completions", "/v1/completions", "/v1/completions"]
    assert endpoint.bodies[-1]["prompt"] == ASK.text
    assert endpoint.bodies[-1]["stop"] == ["\n"]


async def test_a_prompt_as_text_is_one_turn_where_only_chats_are_taken(endpoint, opened):
    endpoint.replies = [REPLY]
    await generate(opened(prefill="none"), "Yes or no?", GREEDY)
    assert endpoint.bodies[0]["messages"] == [{"role": "user", "content": "Yes or no?"}]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_not_taken_for_a_missing_route(endpoint, opened, status):
    endpoint.replies = [(status, refusal("who are you"))]
    with pytest.raises(EngineSetupError, match=r"refused the key.*ENDPOINT_KEY"):
        await opened(route="auto").check()
    assert len(endpoint.paths) == 1


async def test_no_route_at_all_is_one_line_with_the_fix(endpoint, opened):
    endpoint.replies = [NO_CHAT, NO_CHAT]
    with pytest.raises(EngineSetupError, match=r"no model 'tiny'.*engine\.model.*engine\.url.*engine\.route"):
        await opened(route="auto").check()


async def test_what_a_provider_does_not_take_is_left_out_from_then_on(endpoint, opened, caplog):
    wrong = "Unsupported parameter: '{}' is not supported with this model."
    endpoint.replies = [
        (400, refusal(wrong.format("max_tokens") + " Use 'max_completion_tokens' instead.")),
        (
            400,
            refusal(
                "Unsupported value: 'temperature' does not support 0. Only the default (1) is supported."
            ),
        ),
        (400, refusal(wrong.format("logprobs"))),
        REPLY,
        REPLY,
    ]
    generator = opened(prefill="none")
    for _ in range(2):
        await generate(generator, ASK, GREEDY)
    assert len(endpoint.bodies) == 5
    for body in endpoint.bodies[-2:]:
        assert body["max_completion_tokens"] == 12
        assert not {"max_tokens", "temperature", "logprobs"} & set(body)
    assert [line for line in caplog.messages if "takes no" in line] == [
        "the endpoint of tiny takes no temperature: its answers are drawn without it"
    ]


async def test_a_refusal_that_names_no_parameter_is_the_questions(endpoint, opened):
    endpoint.replies = [(400, refusal("the temperature of this question is too hot"))]
    with pytest.raises(RefusedError):
        await generate(opened(prefill="none"), ASK, GREEDY)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (
            [said(refusal="I cannot"), said(None, "stop", refusal=" help.")],
            "the model refuses: I cannot help",
        ),
        ([said("Bo"), said(None, "content_filter")], "content_filter"),
    ],
)
async def test_a_model_that_refuses_refuses_this_question_alone(endpoint, opened, events, words):
    endpoint.replies = [(200, events)]
    with pytest.raises(RefusedError, match=words):
        await generate(opened(prefill="none"), ASK, GREEDY)


async def test_another_end_is_a_passing_failure(endpoint, opened):
    endpoint.replies = [(200, [said("Bo", "tool_calls")])]
    with pytest.raises(GenerationError, match="tool_calls") as raised:
        await generate(opened(prefill="none"), ASK, GREEDY)
    assert not isinstance(raised.value, RefusedError)


async def test_thinking_is_told_apart_and_usage_may_come_in_any_event(endpoint, opened):
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "prompt_cache_hit_tokens": 3,
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    events = [said(reasoning_content="hm"), {**said("Bo"), "usage": usage}, said("", "stop")]
    endpoint.replies = [(200, events)]
    stream = opened(prefill="none").stream(ASK, GREEDY)
    chunks = [chunk async for chunk in stream]
    assert [chunk.thinking for chunk in chunks] == [True, False, False]
    assert "".join(chunk.text for chunk in chunks) == "Bo"
    assert chunks[-1].usage == Usage(9, 5, 3, 4)


async def test_a_busy_provider_is_asked_again(endpoint, opened):
    busy = {"retry-after-ms": "1500"}
    endpoint.replies = [(429, refusal("slow down"), busy), (529, refusal("overloaded")), REPLY]
    generator = opened(prefill="none")
    assert (await generate(generator, ASK, GREEDY)).text == " Bo was"
    assert len(endpoint.bodies) == 3


async def test_sampling_and_template_arguments_are_sent_where_they_matter(endpoint, opened):
    endpoint.replies = [REPLY]
    ask = Conversation("", "Q", "", arguments={"enable_thinking": False})
    await generate(opened(prefill="none"), ask, SamplingConfig(temperature=0.5, top_p=0.9, seed=3))
    (body,) = endpoint.bodies
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.5, 0.9, 3)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert roles(body) == ["user"]


async def test_log_probabilities_come_with_their_chunk(endpoint, opened):
    event = said("Bo was", "stop")
    event["choices"][0]["logprobs"] = {
        "content": [{"token": t, "logprob": -0.5, "top_logprobs": []} for t in ("Bo", " was")]
    }
    endpoint.replies = [(200, [event])]
    completion = await generate(opened(prefill="none"), ASK, GREEDY)
    assert completion.mean_logprob == -0.5


def test_a_tokenizer_is_refused_where_only_messages_are_sent():
    with pytest.raises(ValueError, match="route 'chat' takes messages"):
        EngineConfig(kind="openai", url="http://x/v1", route="chat", tokenizer="org/model")


async def test_a_conversation_that_must_not_be_sent_as_text_names_the_settings_where_there_is_no_chat(
    endpoint, opened
):
    endpoint.replies = [NO_CHAT, ANSWER]
    with pytest.raises(
        EngineSetupError, match=r"engine\.tokenizer.*engine\.route=chat.*reasoning\.format=text"
    ):
        await generate(opened(route="auto"), Conversation("", "Q", ""), GREEDY)


async def test_a_server_that_knows_no_extension_and_no_usage_in_streams_is_asked_without(endpoint, opened):
    endpoint.replies = [
        (400, refusal("return_token_ids: invalid")),
        (422, refusal("stream_options is not permitted, min_tokens neither")),
        ANSWER,
    ]
    assert (await generate(opened(route="completions"), "Q", GREEDY)).text == " Bo was"
    assert not {"return_token_ids", "min_tokens", "stream_options"} & set(endpoint.bodies[-1])
