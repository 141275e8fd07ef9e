"""The endpoint in this process: a real engine and application over scripted parts."""

import json
import socket
import threading
from contextlib import aclosing, contextmanager

import uvicorn
from fastapi.testclient import TestClient
from scripted import KeywordRetriever, ScriptedGenerator

from steper_ray.config import ReasoningConfig, SamplingConfig, ServeConfig
from steper_ray.schema import Passage
from steper_ray.serving.api import Limits
from steper_ray.serving.engine import ReasonEngine
from steper_ray.serving.web import WebSettings, make_app
from steper_ray.serving.wire import About

PASSAGES = [Passage("1", "Alba", "Alba was shot by Bo."), Passage("2", "Bo", "Bo was born in Cem.")]
CHAIN = ["The director of Alba is Bo.", "Bo was born in Cem.", "So the answer is: Cem."]
#: The chain's sentences as they are sent, with the ids of their passages.
GROUNDED = [
    {"text": text, "grounded_by": ids, "ungrounded": []}
    for text, ids in zip(CHAIN, [["1"], ["2"], ["2"]], strict=True)
]
QUESTION = "Where was the director of Alba born?"
#: A second student, who answers at once.
OTHER, OTHERS_ANSWER = "some/other", "So the answer is: Dan."
LIMITS = Limits(max_steps=5, max_question_chars=200)
ABOUT = About(
    model="test",
    models=["test", OTHER],
    framework="ircot",
    unit="sentence",
    stop="confident",
    max_steps=5,
    max_question_chars=200,
    passages=2,
)
GREEDY = SamplingConfig()
SECRET = "s3cret-Pässword"
ASK = {"question": QUESTION}
CHAT = {"model": "test", "messages": [{"role": "user", "content": QUESTION}]}
#: Every way to ask: path and body.
BODIES = [
    ("/v1/reason", ASK),
    ("/v1/reason", ASK | {"stream": True}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"stream": True}),
]


def replies():
    return [" ".join(CHAIN[i:]) for i in range(3)]


class LocalEngine(ReasonEngine):
    """A real engine over scripted parts, in this process: two students. `broken` is raised by every call."""

    def __init__(self, answers, retriever=None, broken=None, hang_at=None, **serve):
        self.generator = ScriptedGenerator(answers, hang_at=hang_at)
        self.other = ScriptedGenerator([OTHERS_ANSWER])
        retriever = retriever or KeywordRetriever(PASSAGES)
        super().__init__(
            retriever,
            {"test": self.generator, OTHER: self.other},
            ReasoningConfig(),
            SamplingConfig(),
            ServeConfig(**serve),
        )
        self.broken, self.asked = broken, []

    async def events(self, ask):
        self.asked.append(ask)
        if self.broken is not None:
            raise self.broken
        async with aclosing(super().events(ask)) as events:
            async for event in events:
                yield event

    async def ready(self):
        return self.broken is None


def client(engine, token=None, address="127.0.0.1", timeout_s=60.0, sampling=GREEDY):
    app = make_app(engine, WebSettings(LIMITS, ABOUT, (QUESTION,), timeout_s, token, sampling))
    return TestClient(app, base_url="http://127.0.0.1", client=(address, 5000), raise_server_exceptions=False)


@contextmanager
def listening(engine, token=None, about=ABOUT):
    """The endpoint on a real HTTP server, in a thread; its base URL."""
    app = make_app(engine, WebSettings(LIMITS, about, (QUESTION,), 60.0, token, GREEDY))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    # It listens before the thread runs: a client that comes early waits for its turn.
    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=60)


def error_of(reply):
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "type", "param"}
    assert reply.headers["content-security-policy"]
    return reply.status_code, body["error"]["code"], body["error"]["message"]


def events_of(reply):
    assert reply.headers["content-type"].startswith("text/event-stream")
    frames = [frame.split("\n") for frame in reply.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]
