"""An OpenAI-compatible endpoint on loopback that answers as a script says, and the client for it."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from random import Random

from fake_time import FakeTime

from steper_ray.config import EngineConfig
from steper_ray.generation.endpoint.client import OpenAIGenerator

KEY = "sk-very-secret"
BREAK = object()  # in place of an event: the connection is lost


def piece(text, finish=None, **more):
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish, **more}]}


def said(content=None, finish=None, **more):
    """An event of the chat route."""
    return {"choices": [{"index": 0, "delta": {"content": content, **more}, "finish_reason": finish}]}


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
    """Scripted replies, each (status, events or one JSON body or a page's text, headers); notes what came.

    An event that is None holds the stream until the client leaves.
    """

    def __init__(self):
        self.replies, self.bodies, self.keys, self.paths = [], [], [], []
        self.hang_up = asyncio.Event()
        self.url = None

    async def reply(self):
        """The next reply; a subclass may take its time over it."""
        status, content, *headers = self.replies.pop(0)
        return status, content, headers[0] if headers else {}

    async def answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        self.bodies.append(json.loads(await reader.readexactly(int(fields["content-length"]))))
        self.keys.append(fields["authorization"])
        self.paths.append(head.split(" ")[1])
        status, content, headers = await self.reply()
        kind = {list: "text/event-stream", str: "text/html"}.get(type(content), "application/json")
        lines = {"content-type": kind, "connection": "close", **headers}
        writer.write(f"HTTP/1.1 {status} X\r\n".encode())
        writer.write("".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode())
        if isinstance(content, list):
            await self._events(reader, writer, content)
        else:
            body = (content if isinstance(content, str) else json.dumps(content)).encode()
            writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    async def _events(self, reader, writer, events):
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for event in events:
            if event is None:
                await writer.drain()
                await reader.read()  # waits for the client to leave
                self.hang_up.set()
                return
            if event is BREAK:
                return
            data = f"data: {json.dumps(event)}\n\n".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def url_of(listener):
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def unanswered():
    """A port of loopback where nobody listens yet, and nobody else can."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


@asynccontextmanager
async def serving(endpoint, listener=None):
    """The endpoint at its `url`."""
    listener = listener or unanswered()
    server = await asyncio.start_server(endpoint.answer, sock=listener)
    endpoint.url = url_of(listener)
    try:
        yield endpoint
    finally:
        server.close()


@asynccontextmanager
async def clients(url, time=FakeTime):
    """A function that opens generators for the endpoint, with further settings; all are closed at the end.

    Their waits take no time; `generator.time` notes them.
    """
    opened = []

    def open_it(**settings):
        settings = {"route": "completions", **settings}
        config = EngineConfig(kind="openai", model="tiny", url=url, api_key_env="ENDPOINT_KEY", **settings)
        fake = time()
        generator = OpenAIGenerator(config, clock=fake, sleep=fake.sleep, rng=Random(0))
        generator.time = fake
        opened.append(generator)
        return generator

    yield open_it
    for generator in opened:
        await generator.close()
