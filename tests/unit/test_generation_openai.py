"""The endpoint's client: what it sends, what it makes of answers, and whose fault an error is."""

import asyncio
import json
from contextlib import aclosing

import pytest

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.errors import EngineDeadError, GenerationError, PromptTooLongError
from steper_ray.generation import generate, open_generator
from steper_ray.schema import Usage

GREEDY = SamplingConfig(max_tokens=12)
KEY = "sk-very-secret"


def piece(text, finish=None, **more):
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish, **more}]}


USAGE = {
    "choices": [],
    "usage": {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
}
ANSWER = (200, [piece(" Bo"), piece(" was", "stop"), USAGE])


def refusal(message, code=None):
    return {"error": {"message": message, "code": code, "type": "error"}}


class Endpoint:
    """A server on loopback with scripted replies, each (status, events or one JSON body); notes what came."""

    def __init__(self):
        self.replies, self.bodies, self.keys = [], [], []
        self.hang_up = asyncio.Event()

    async def answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        self.bodies.append(json.loads(await reader.readexactly(int(fields["content-length"]))))
        self.keys.append(fields["authorization"])
        status, content = self.replies.pop(0)
        kind = "text/event-stream" if isinstance(content, list) else "application/json"
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n".encode())
        writer.write(b"retry-after-ms: 1\r\nconnection: close\r\n")
        if isinstance(content, list):
            writer.write(b"transfer-encoding: chunked\r\n\r\n")
            for event in content:
                if event is None:
                    await writer.drain()
                    await reader.read()  # waits for the client to leave
                    self.hang_up.set()
                    break
                data = f"data: {json.dumps(event)}\n\n".encode()
                writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            else:
                writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        else:
            body = json.dumps(content).encode()
            writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()


@pytest.fixture
async def endpoint(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ENDPOINT_KEY", KEY)
    endpoint = Endpoint()
    server = await asyncio.start_server(endpoint.answer, "127.0.0.1", 0)
    endpoint.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    yield endpoint
    server.close()


@pytest.fixture
async def opened(endpoint):
    """Opens a generator for the endpoint, with further settings."""
    generators = []

    def open_it(**settings):
        config = EngineConfig(
            kind="openai", model="tiny", url=endpoint.url, api_key_env="ENDPOINT_KEY", **settings
        )
        generators.append(open_generator(config))
        return generators[-1]

    yield open_it
    for generator in generators:
        await generator.close()


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
        (400, refusal("too much", "context_length_exceeded"), PromptTooLongError, "fewer passages"),
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


async def test_an_endpoint_that_is_busy_for_a_moment_is_asked_again(endpoint, opened):
    endpoint.replies = [(429, refusal("slow down")), (503, refusal("starting")), ANSWER]
    assert (await generate(opened(), "Q", GREEDY)).text == " Bo was"


async def test_an_endpoint_that_stays_broken_fails_the_request_alone(endpoint, opened):
    endpoint.replies = [(500, refusal("out of memory"))] * 9
    with pytest.raises(GenerationError, match="out of memory") as raised:
        await generate(opened(), "Q", GREEDY)
    assert type(raised.value) is GenerationError


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


async def test_nobody_at_the_url_is_a_dead_engine(monkeypatch):
    monkeypatch.setattr("steper_ray.generation.openai_http._RETRIES", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    server.close()
    generator = open_generator(EngineConfig(kind="openai", model="tiny", url=url))
    with pytest.raises(EngineDeadError, match=rf"cannot reach {url} .*engine\.url"):
        await generate(generator, "Q", GREEDY)
    await generator.close()
    with pytest.raises(EngineDeadError, match="closed"):
        await generate(generator, "Q", GREEDY)
