"""The OpenAI-compatible routes, asked by OpenAI's own client over a real HTTP server, on scripted parts."""

import json

import openai
import pytest
from local_endpoint import (
    CHAIN,
    GROUNDED,
    LIMITS,
    OTHER,
    PASSAGES,
    QUESTION,
    SECRET,
    LocalEngine,
    client,
    error_of,
    listening,
    replies,
)
from waiting import wait_until

from steper_ray.config import SamplingConfig
from steper_ray.core.errors import EngineDeadError, GenerationError, PromptTooLongError
from steper_ray.serving.asking import EngineUnavailableError, OverloadedError
from steper_ray.serving.chat_wire import ChatChunk, ChatCompletion

ASK = {"model": "test", "messages": [{"role": "user", "content": QUESTION}]}
FOUND = [(p.id, p.title, p.text, step) for step, p in enumerate(PASSAGES, 1)]


@pytest.fixture
def chat():
    """A client of an engine, or of one that answers QUESTION; its errors are not asked again."""
    opened = []

    def open_one(engine=None, key="none", **server):
        door = listening(engine or LocalEngine(replies()), **server)
        one = openai.OpenAI(base_url=f"{door.__enter__()}/v1", api_key=key, max_retries=0)
        opened.append((door, one))
        return one

    yield open_one
    for door, one in opened:
        one.close()
        door.__exit__(None, None, None)


SENTENCES = [{**sentence, "index": n, "step": n + 1} for n, sentence in enumerate(GROUNDED)]


def ask(one, **fields):
    return one.chat.completions.create(**ASK | fields)


def found(passages):
    assert [passage["index"] for passage in passages] == list(range(len(passages)))
    return [(p["id"], p["title"], p["text"], p["step"]) for p in passages]


# ---- answers


def test_the_client_gets_answer_chain_passages_and_usage(chat):
    whole = ask(chat())
    assert whole.object == "chat.completion"
    assert whole.model == "test"
    (choice,) = whole.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Cem", "stop")
    assert choice.message.reasoning_content == "\n".join(CHAIN)
    assert found(choice.message.passages) == FOUND
    assert choice.message.sentences == SENTENCES
    assert choice.message.stop_reason == "answered"
    steps = client(LocalEngine(replies())).post("/v1/reason", json={"question": QUESTION}).json()["usage"]
    usage = whole.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        steps["prompt_tokens"],
        steps["completion_tokens"],
    )
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    assert usage.prompt_tokens_details.cached_tokens == steps["cached_tokens"]


def test_a_stream_tells_passages_and_sentences_as_they_come_then_the_answer(chat):
    chunks = list(ask(chat(), stream=True, stream_options={"include_usage": True}))
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    news = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks[:-1]]
    assert news[0] == {"role": "assistant"}
    reasoning = ["reasoning_content", "sentences"]
    assert [sorted(delta) for delta in news[1:]] == [
        ["passages"], reasoning, ["passages"], reasoning, reasoning, ["content"], ["stop_reason"],
    ]  # fmt: skip
    # Only what counts is sent, although each generation ran on beyond its sentence.
    assert "".join(delta.get("reasoning_content", "") for delta in news) == "\n".join(CHAIN)
    assert found([p for delta in news for p in delta.get("passages", [])]) == FOUND
    assert [s for delta in news for s in delta.get("sentences", [])] == SENTENCES
    assert news[-2]["content"] == "Cem"
    ends = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert ends == [None] * (len(ends) - 1) + ["stop"]
    assert news[-1]["stop_reason"] == "answered"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == ask(chat()).usage
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * len(news)


def test_the_clients_own_collector_of_streams_comes_to_the_whole_completion(chat):
    with chat().chat.completions.stream(**ASK) as stream:
        collected = stream.get_final_completion()
    whole = ask(chat())
    (one,), (other,) = collected.choices, whole.choices
    assert (one.message.content, one.finish_reason) == (other.message.content, other.finish_reason)
    assert one.message.stop_reason == "answered"
    assert one.message.reasoning_content == other.message.reasoning_content
    assert found(one.message.passages) == FOUND
    assert one.message.sentences == SENTENCES
    assert collected.usage is None  # it was not asked for


def test_a_stream_is_typed_data_and_ends_in_done():
    reply = client(LocalEngine(replies())).post("/v1/chat/completions", json=ASK | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, done = reply.text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    for chunk in chunks:
        assert ChatChunk.model_validate_json(chunk.removeprefix("data: "))
        assert "usage" not in json.loads(chunk.removeprefix("data: "))
    whole = client(LocalEngine(replies())).post("/v1/chat/completions", json=ASK)
    assert ChatCompletion.model_validate_json(whole.content)


def test_an_answer_that_was_not_stated_ends_in_length_and_tells_why(chat):
    cut = ask(chat(), extra_body={"max_steps": 2}).choices[0]
    assert (cut.message.content, cut.finish_reason, cut.message.stop_reason) == (
        CHAIN[1],
        "length",
        "step_limit",
    )
    lost = LocalEngine([replies()[0], GenerationError("status 500")])
    last = list(ask(chat(lost), stream=True))[-1].choices[0]
    assert (last.finish_reason, last.delta.stop_reason) == ("length", "generator_failed")
    late = LocalEngine(["No full stop"], hang_at=0, request_timeout_s=0.2)
    with pytest.raises(openai.InternalServerError) as nothing:
        ask(chat(late))
    assert (nothing.value.status_code, nothing.value.code) == (504, "deadline")


def test_unit_stopping_policy_and_parts_of_a_message_are_read(chat):
    engine = LocalEngine([" ".join(CHAIN)])
    parts = [{"type": "text", "text": "Where was the director"}, {"type": "text", "text": "of Alba born?"}]
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": parts, "name": "Ann"}]
    whole = ask(chat(engine), messages=messages, extra_body={"unit": "chain", "stop_when": "fixed"})
    assert whole.choices[0].message.reasoning_content == " ".join(CHAIN)
    asked = engine.asked[0]
    assert (asked.question, asked.unit, asked.stop) == (
        "Where was the director\nof Alba born?",
        "chain",
        "fixed",
    )


# ---- models


def test_the_models_are_the_students_that_are_served_and_each_answers_for_itself(chat):
    one = chat()
    listed = list(one.models.list())
    assert [(m.id, m.object, m.owned_by) for m in listed] == [
        (name, "model", "steper_ray") for name in ("test", OTHER)
    ]
    assert one.models.retrieve(OTHER) == listed[1]
    answers = {name: ask(one, model=name) for name in ("test", OTHER)}
    assert {name: answer.model for name, answer in answers.items()} == {"test": "test", OTHER: OTHER}
    assert [answer.choices[0].message.content for answer in answers.values()] == ["Cem", "Dan"]
    for call in (lambda: one.models.retrieve("gpt"), lambda: ask(one, model="gpt")):
        with pytest.raises(openai.NotFoundError) as missing:
            call()
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


# ---- errors


def test_a_missing_token_is_the_clients_authentication_error(chat):
    with pytest.raises(openai.AuthenticationError) as refused:
        ask(chat(token=SECRET, key="wrong"))
    assert refused.value.type == "authentication_error"
    with pytest.raises(openai.AuthenticationError):
        chat(token=SECRET, key="wrong").models.list()
    assert ask(chat(token="right", key="right")).choices[0].message.content == "Cem"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("broken", "error", "code", "kind"),
    [
        (OverloadedError(), openai.RateLimitError, "overloaded", "rate_limit_error"),
        (EngineUnavailableError(), openai.InternalServerError, "engine_unavailable", "server_error"),
        (
            PromptTooLongError("2000 tokens"),
            openai.BadRequestError,
            "context_length_exceeded",
            "invalid_request_error",
        ),
        (ValueError("private"), openai.InternalServerError, "internal_error", "server_error"),
    ],
)
def test_an_engine_that_cannot_answer_is_the_clients_error_of_that_kind(
    chat, broken, error, code, kind, stream
):
    with pytest.raises(error) as failed:
        ask(chat(LocalEngine([], broken=broken)), stream=stream)
    assert (failed.value.code, failed.value.type) == (code, kind)
    assert "private" not in str(failed.value)
    waits = failed.value.response.headers.get("retry-after")
    assert waits == ("2" if failed.value.status_code in (429, 503) else None)


def test_a_failure_within_a_stream_is_raised_by_the_client(chat):
    stream = ask(chat(LocalEngine([replies()[0], EngineDeadError("gone")])), stream=True)
    told = []
    with pytest.raises(openai.APIError) as failed:
        told.extend(chunk.choices[0].delta for chunk in stream)
    assert failed.value.code == "engine_unavailable"
    stream = ask(chat(LocalEngine([GenerationError("status 500")])), stream=True)
    with pytest.raises(openai.APIError) as failed:
        list(stream)
    assert failed.value.code == "generator_failed"


def test_a_client_that_closes_its_stream_aborts_the_generator(chat):
    engine = LocalEngine(["No full stop"], hang_at=0)
    with ask(chat(engine), stream=True) as stream:
        next(stream)
    wait_until(lambda: engine.generator.aborted, "the end of the request", seconds=60)


# ---- what cannot be served


def user(content):
    return [{"role": "user", "content": content}]


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/who.png"}}
TOOL = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": []}, "messages", "no user message"),
        ({"messages": [{"role": "assistant", "content": "Cem."}]}, "messages", "no user message"),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, *user("Who?")]},
            "messages",
            "instructions",
        ),
        ({"messages": [{"role": "developer", "content": "x"}, *user("Who?")]}, "messages", "instructions"),
        ({"messages": user("Who?") + user("And then?")}, "messages", "earlier turns"),
        (
            {"messages": [*user("Who?"), {"role": "assistant", "content": "Bo"}, *user("Why?")]},
            "messages",
            "earlier turns",
        ),
        ({"messages": user(" \n")}, "messages", "empty"),
        ({"messages": user([])}, "messages", "empty"),
        ({"messages": user([{"type": "text", "text": "Who?"}, IMAGE])}, "messages", "no images"),
        ({"messages": user(7)}, "messages", "messages"),
        ({"messages": "Who?"}, "messages", "messages"),
        ({"messages": user("x" * 201)}, "messages", "200"),
        ({"model": None}, "model", "model"),
        ({"n": 2}, "n", "must be 1, or left out"),
        ({"tools": [TOOL]}, "tools", "tools"),
        ({"tool_choice": "required"}, "tool_choice", "'none' or 'auto'"),
        ({"response_format": {"type": "json_object"}}, "response_format", "text"),
        ({"temperature": 0.7}, "temperature", "must be 0.0"),
        ({"stop": ["."]}, "stop", "stop"),
        ({"logprobs": True}, "logprobs", "False"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "0"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "leave it out"),
        ({"max_tokens": 0}, "max_tokens", "1"),
        ({"max_steps": LIMITS.max_steps + 1}, "max_steps", "max_steps"),
        ({"unit": "word"}, "unit", "unit"),
        ({"stop_when": "tired"}, "stop_when", "stop_when"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream is true"),
        ({"top_k": 5}, "top_k", "unknown field; the fields are: model, messages"),
    ],
)
def test_what_cannot_be_served_is_refused_and_named(fields, param, says):
    engine = LocalEngine([])
    reply = client(engine).post("/v1/chat/completions", json=ASK | fields)
    status, _, message = error_of(reply)
    told = reply.json()["error"]
    assert (status, told["type"]) == (400, "invalid_request_error")
    assert told["param"].split(".")[0] == param
    assert says in message
    assert "Who?" not in reply.text
    assert engine.asked == []


def test_what_asks_for_nothing_else_is_taken():
    harmless = {
        "n": 1, "temperature": 0, "top_p": 0.3, "seed": 7, "stop": None, "tools": [], "tool_choice": "none",
        "response_format": {"type": "text"}, "modalities": ["text"], "logit_bias": {}, "logprobs": False,
        "frequency_penalty": 0.0, "presence_penalty": 0, "max_tokens": 256, "max_steps": 2, "user": "ann",
        "metadata": {"run": "7"}, "store": False, "service_tier": "auto", "stream": False, "prediction": None,
    }  # fmt: skip
    reply = client(LocalEngine(replies())).post("/v1/chat/completions", json=ASK | harmless)
    assert reply.json()["choices"][0]["message"]["stop_reason"] == "step_limit"


@pytest.mark.parametrize(
    ("fields", "most"),
    [({}, None), ({"max_tokens": 7}, 7), ({"max_tokens": 9, "max_completion_tokens": 8}, 8)],
)
def test_a_lower_limit_of_tokens_is_served_up_to_it(fields, most):
    engine = LocalEngine(replies())
    assert client(engine).post("/v1/chat/completions", json=ASK | fields).status_code == 200
    assert [ask.max_tokens for ask in engine.asked] == [most]


def test_a_server_that_samples_takes_its_own_sampling_and_no_seed():
    sampled = SamplingConfig(temperature=0.7, top_p=0.9)

    def status(**fields):
        server = client(LocalEngine(replies()), sampling=sampled)
        return server.post("/v1/chat/completions", json=ASK | fields).status_code

    assert [status(temperature=0.7, top_p=0.9), status(temperature=0), status(top_p=1), status(seed=1)] == [
        200, 400, 400, 400,
    ]  # fmt: skip
