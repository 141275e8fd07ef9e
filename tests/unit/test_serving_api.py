"""The endpoint without Ray: models, access, errors, events and the page, over a scripted engine."""

import asyncio
import json
from contextlib import aclosing

import httpx
import pytest
from fastapi.testclient import TestClient
from scripted import KeywordRetriever, ScriptedGenerator

from steper_ray.config import ReasoningConfig, SamplingConfig, ServeConfig
from steper_ray.errors import EngineDeadError, GenerationError, PromptTooLongError, RetrievalError
from steper_ray.reasoning import ReasoningDelta, StepStarted
from steper_ray.schema import Passage, StopReason
from steper_ray.serving.access import SECURITY_HEADERS, check_access
from steper_ray.serving.api import EVENTS, About, Limits, Problem, ReasonResponse, sse
from steper_ray.serving.engine import Ask, ReasonEngine
from steper_ray.serving.web import EngineUnavailableError, OverloadedError, WebSettings, make_app

PASSAGES = [Passage("1", "Alba", "Alba was shot by Bo."), Passage("2", "Bo", "Bo was born in Cem.")]
CHAIN = ["The director of Alba is Bo.", "Bo was born in Cem.", "So the answer is: Cem."]
QUESTION = "Where was the director of Alba born?"
LIMITS = Limits(max_steps=5, max_question_chars=200)
ABOUT = About(
    model="test", framework="ircot", unit="sentence", max_steps=5, max_question_chars=200, passages=2
)
SECRET = "s3cret-Pässword"


def replies():
    return [" ".join(CHAIN[i:]) for i in range(3)]


class LocalEngine(ReasonEngine):
    """A real engine over scripted parts, in this process. `broken` is raised by every call."""

    def __init__(self, answers, retriever=None, broken=None, hang_at=None, **serve):
        self.generator = ScriptedGenerator(answers, hang_at=hang_at)
        retriever = retriever or KeywordRetriever(PASSAGES)
        super().__init__(
            retriever, self.generator, ReasoningConfig(), SamplingConfig(), ServeConfig(**serve), "test"
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


def client(engine, token=None, address="127.0.0.1", timeout_s=60.0):
    app = make_app(engine, WebSettings(LIMITS, ABOUT, (QUESTION,), timeout_s, token))
    return TestClient(app, base_url="http://127.0.0.1", client=(address, 5000), raise_server_exceptions=False)


def error_of(reply):
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}
    assert reply.headers["content-security-policy"]
    return reply.status_code, body["error"]["code"], body["error"]["message"]


def events_of(reply):
    assert reply.headers["content-type"].startswith("text/event-stream")
    frames = [frame.split("\n") for frame in reply.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


# ---- answers


def test_the_answer_tells_every_step_and_sums_the_usage():
    reply = client(LocalEngine(replies())).post("/v1/reason", json={"question": QUESTION})
    assert reply.status_code == 200
    body = reply.json()
    assert ReasonResponse.model_validate_json(reply.content)
    assert (body["answer"], body["stop_reason"], body["question"], body["model"]) == (
        "Cem",
        StopReason.ANSWERED,
        QUESTION,
        "test",
    )
    assert [step["reasoning"] for step in body["steps"]] == CHAIN
    assert [[p["id"] for p in step["passages"]] for step in body["steps"]] == [["1"], ["2"], []]
    tokens = [step["usage"]["completion_tokens"] for step in body["steps"]]
    assert body["usage"]["completion_tokens"] == sum(tokens) > 0


def test_a_stream_tells_the_steps_in_order_and_ends_with_the_whole_answer():
    whole = client(LocalEngine(replies())).post("/v1/reason", json={"question": QUESTION}).json()
    reply = client(LocalEngine(replies())).post("/v1/reason", json={"question": QUESTION, "stream": True})
    events = events_of(reply)
    assert [name for name, _ in events if name != "delta"] == [
        "step_started",
        "passages",
        "step_done",
    ] * 3 + ["answer"]
    for name, data in events:
        EVENTS[name].model_validate_json(json.dumps(data))
    assert timeless(events[-1][1]) == timeless(whole)
    assert [timeless(data) for name, data in events if name == "step_done"] == timeless(whole)["steps"]


def timeless(value):
    """Without what differs between two runs of one question."""
    if isinstance(value, dict):
        return {
            k: timeless(v) for k, v in value.items() if k != "id" or ("text" in value and "title" in value)
        } | {k: 0 for k in value if k.endswith("_seconds")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def test_unit_and_max_steps_of_the_request_hold():
    engine = LocalEngine([" ".join(CHAIN)])
    body = client(engine).post("/v1/reason", json={"question": QUESTION, "unit": "chain"}).json()
    assert [step["reasoning"] for step in body["steps"]] == [" ".join(CHAIN)]
    body = (
        client(LocalEngine(replies())).post("/v1/reason", json={"question": QUESTION, "max_steps": 2}).json()
    )
    assert (len(body["steps"]), body["stop_reason"]) == (2, "step_limit")


def test_a_frame_is_one_event_whatever_the_text_holds():
    data = EVENTS["delta"](index=1, text="a\n\nevent: answer\ndata: {}\r\u2028")
    frame = sse("delta", data).decode()
    assert frame.startswith("event: delta\ndata: ")
    assert frame.count("\n") == 3
    assert json.loads(frame.split("data: ", 1)[1])["text"] == data.text


# ---- refusals


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ("{", 400, "malformed_json", "not valid JSON"),
        ("[" * 150, 400, "malformed_json", "not valid JSON"),
        (b"\xff\xfe", 400, "malformed_json", "not valid JSON"),
        ("", 400, "malformed_json", "not valid JSON"),
        ("[]", 422, "invalid_request", "body"),
        ("{}", 422, "invalid_request", "question"),
        ('{"question": ""}', 422, "invalid_request", "question"),
        ('{"question": " \\n"}', 422, "invalid_request", "question: must not be empty"),
        ('{"question": 7}', 422, "invalid_request", "question"),
        ('{"question": "\\ud800"}', 400, "malformed_json", "not valid JSON"),
        ('{"question": "Who?", "stream": "yes"}', 422, "invalid_request", "stream"),
        ('{"question": "Who?", "unit": "word"}', 422, "invalid_request", "unit"),
        ('{"question": "Who?", "max_steps": 0}', 422, "invalid_request", "max_steps"),
        ('{"question": "Who?", "max_steps": 6}', 422, "invalid_request", "less than or equal to 5"),
        ('{"question": "Who?", "k": 3}', 422, "invalid_request", "the fields are: question, stream"),
        (json.dumps({"question": "x" * 201}), 413, "question_too_long", "200"),
        (json.dumps({"question": "x" * 50_000}), 413, "body_too_large", "bytes"),
    ],
)
def test_what_is_wrong_with_a_request_is_told_and_never_repeated(body, status, code, says):
    engine = LocalEngine([])
    reply = client(engine).post("/v1/reason", content=body, headers={"content-type": "application/json"})
    assert error_of(reply)[:2] == (status, code)
    assert says in error_of(reply)[2]
    assert "Who?" not in reply.text
    assert engine.asked == []


def test_a_body_without_a_length_is_cut_off_when_it_grows_too_large():
    def endless():
        for _ in range(100):
            yield b" " * 1000

    headers = {"content-type": "application/json"}
    reply = client(LocalEngine([])).post("/v1/reason", content=endless(), headers=headers)
    assert error_of(reply)[:2] == (413, "body_too_large")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_read_so_a_foreign_page_cannot_post_without_asking_first(kind):
    body = json.dumps({"question": QUESTION})
    reply = client(LocalEngine([])).post("/v1/reason", content=body, headers={"content-type": kind})
    assert error_of(reply)[:2] == (415, "unsupported_media_type")


def test_unknown_paths_and_methods_are_typed_too():
    app = client(LocalEngine([]))
    assert error_of(app.get("/v2/reason"))[:2] == (404, "not_found")
    assert error_of(app.get("/static/..%2fapp.py"))[:2] == (404, "not_found")
    reply = app.get("/v1/reason")
    assert error_of(reply)[:2] == (405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"


# ---- failures


FAILURES = [
    (OverloadedError(), 429, "overloaded"),
    (EngineUnavailableError(), 503, "engine_unavailable"),
    (EngineDeadError("gone"), 503, "engine_unavailable"),
    (PromptTooLongError("2000 tokens"), 413, "question_too_long"),
    (ValueError("the question was: private"), 500, "internal_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("broken", "status", "code"), FAILURES)
def test_an_engine_that_cannot_answer_is_a_typed_error_before_any_event(broken, status, code, stream, caplog):
    body = {"question": QUESTION, "stream": stream}
    reply = client(LocalEngine([], broken=broken)).post("/v1/reason", json=body)
    assert error_of(reply)[:2] == (status, code)
    assert ("retry-after" in reply.headers) == (status in (429, 503))
    assert "private" not in reply.text + caplog.text
    assert QUESTION not in caplog.text


def test_a_failure_before_the_first_step_is_an_error_and_after_it_an_answer_with_its_reason():
    lost = LocalEngine([], KeywordRetriever([], RetrievalError("/secret/path is gone")))
    reply = client(lost).post("/v1/reason", json={"question": QUESTION})
    assert error_of(reply)[:2] == (503, "retriever_failed")
    assert "secret" not in reply.text
    half = LocalEngine([replies()[0], GenerationError("status 500")])
    body = client(half).post("/v1/reason", json={"question": QUESTION}).json()
    assert (body["stop_reason"], body["answer"]) == ("generator_failed", CHAIN[0])


def test_a_failure_within_a_stream_is_its_last_event():
    engine = LocalEngine([GenerationError("status 500")])
    events = events_of(client(engine).post("/v1/reason", json={"question": QUESTION, "stream": True}))
    assert [name for name, _ in events] == ["step_started", "passages", "error"]
    assert events[-1][1]["error"]["code"] == "generator_failed"
    engine = LocalEngine([EngineDeadError("gone")])
    events = events_of(client(engine).post("/v1/reason", json={"question": QUESTION, "stream": True}))
    assert events[-1][1]["error"]["code"] == "engine_unavailable"


def test_a_prompt_that_does_not_fit_is_the_questions_fault():
    engine = LocalEngine([PromptTooLongError("3000 of 2048 tokens")])
    reply = client(engine).post("/v1/reason", json={"question": QUESTION})
    assert error_of(reply)[:2] == (413, "question_too_long")


def test_the_deadline_returns_the_steps_that_were_done():
    engine = LocalEngine(replies(), hang_at=1, request_timeout_s=0.3)
    engine.generator._replies[1] = "No full stop"
    body = client(engine).post("/v1/reason", json={"question": QUESTION}).json()
    assert (body["stop_reason"], body["answer"]) == ("deadline", CHAIN[0])


def test_an_engine_that_hangs_beyond_its_deadline_is_a_typed_error(monkeypatch):
    monkeypatch.setattr("steper_ray.serving.web.GRACE_SECONDS", 0.0)
    engine = LocalEngine(["No full stop"], hang_at=0)
    reply = client(engine, timeout_s=0.2).post("/v1/reason", json={"question": QUESTION})
    assert error_of(reply)[:2] == (504, "deadline")
    assert engine._generator.stats.aborted == 1


# ---- the engine


async def test_time_in_the_queue_counts_against_the_deadline():
    engine = LocalEngine(["No full stop"], hang_at=0)
    trajectory = await engine.answer(Ask("a", QUESTION, asked_at=0.0))
    assert trajectory.stop_reason is StopReason.DEADLINE


async def test_closing_the_events_aborts_the_generator_and_counts_it():
    engine = LocalEngine(["No full stop"], hang_at=0)
    async with aclosing(engine.events(Ask("a", QUESTION, asked_at=float("inf")))) as events:
        async for event in events:
            if isinstance(event, ReasoningDelta):
                break
    stats = await engine.stats()
    assert (stats.running, stats.aborted, stats.done) == (0, 1, 0)
    assert engine.generator.aborted == 1


async def test_cancelling_an_answer_aborts_the_generator():
    engine = LocalEngine(["No full stop"], hang_at=0)
    task = asyncio.create_task(engine.answer(Ask("a", QUESTION, asked_at=float("inf"))))
    while not (await engine.stats()).running:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.generator.aborted == 1


async def test_an_engine_whose_generator_died_stays_unhealthy():
    engine = LocalEngine([EngineDeadError("gone")])
    engine.check_health()
    with pytest.raises(EngineDeadError):
        await engine.answer(Ask("a", QUESTION, asked_at=float("inf")))
    with pytest.raises(EngineDeadError):
        engine.check_health()
    with pytest.raises(EngineDeadError, match="gone"):
        await engine.answer(Ask("b", QUESTION, asked_at=float("inf")))
    assert len(engine.generator.prompts) == 1


async def test_a_client_that_leaves_a_stream_aborts_the_generator():
    engine = LocalEngine(["No full stop"], hang_at=0)
    app = make_app(engine, WebSettings(LIMITS, ABOUT, (), 60.0, None))
    body = json.dumps({"question": QUESTION, "stream": True}).encode()
    left = asyncio.Event()
    requests = iter([{"type": "http.request", "body": body}])

    async def receive():
        message = next(requests, None)
        if message is None:
            await left.wait()
            return {"type": "http.disconnect"}
        return message

    async def send(message):
        if b"event: delta" in message.get("body", b""):
            left.set()

    await app(
        {
            "type": "http",
            "method": "POST",
            "path": "/v1/reason",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "asgi": {"version": "3.0"},
        },
        receive,
        send,
    )
    stats = await engine.stats()
    assert (stats.running, stats.aborted) == (0, 1)


# ---- who is let in


def test_with_a_token_nothing_but_the_page_and_the_probes_is_open():
    engine = LocalEngine(replies())
    app = client(engine, token=SECRET, address="203.0.113.9")
    ask = {"question": QUESTION}
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {SECRET}".encode()}):
        reply = app.post("/v1/reason", json=ask, headers=header)
        assert error_of(reply)[:2] == (401, "unauthorized")
        assert reply.headers["www-authenticate"] == "Bearer"
    assert error_of(app.get("/v1/examples"))[0] == 401
    assert engine.asked == []
    right = {"authorization": f"Bearer {SECRET}".encode()}
    assert app.post("/v1/reason", json=ask, headers=right).json()["answer"] == "Cem"
    for path in ("/", "/static/app.js", "/openapi.json", "/healthz", "/readyz"):
        assert app.get(path).status_code == 200


@pytest.mark.parametrize(
    ("client_address", "headers", "let_in"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:8000"}, True),
        ("127.8.9.1", {"host": "localhost"}, True),
        ("::1", {"host": "[::1]:8000"}, True),
        ("::ffff:127.0.0.1", {"host": "localhost:8000"}, True),
        ("192.168.1.7", {"host": "localhost"}, False),
        (None, {"host": "localhost"}, False),
        ("127.0.0.1", {"host": "localhost", "x-forwarded-for": "127.0.0.1"}, False),
        ("127.0.0.1", {"host": "rebound.example:8000"}, False),
        ("127.0.0.1", {}, False),
    ],
)
def test_without_a_token_only_this_machine_is_served(client_address, headers, let_in):
    check_access("/healthz", headers, client_address, None)
    if let_in:
        check_access("/v1/reason", headers, client_address, None)
        return
    for path in ("/v1/reason", "/", "/openapi.json"):
        with pytest.raises(Problem) as refused:
            check_access(path, headers, client_address, None)
        assert (refused.value.status, refused.value.code) == (403, "loopback_only")


def test_readiness_is_apart_from_liveness():
    app = client(LocalEngine([], broken=EngineUnavailableError()))
    assert app.get("/healthz").json() == {"status": "ok"}
    assert error_of(app.get("/readyz"))[:2] == (503, "engine_unavailable")
    assert client(LocalEngine([])).get("/readyz").json() == {"status": "ready"}


# ---- the page and the OpenAPI document


def test_the_page_needs_nothing_from_outside_and_no_inline_script():
    app = client(LocalEngine([]))
    page = app.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for name, value in SECURITY_HEADERS.items():
        assert page.headers[name] == value
    assert "access-control-allow-origin" not in page.headers
    assert " style=" not in page.text
    assert " onclick" not in page.text
    for asset in ("app.js", "style.css", "icon.svg"):
        assert f"static/{asset}" in page.text
        text = app.get(f"/static/{asset}").text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text


def test_a_preflight_of_another_origin_gets_no_leave():
    headers = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    reply = client(LocalEngine([])).options("/v1/reason", headers=headers)
    assert reply.status_code == 405
    assert "access-control-allow-origin" not in reply.headers


def test_the_openapi_document_is_true_to_the_server():
    document = client(LocalEngine([]), token="t").get("/openapi.json").json()
    reason = document["paths"]["/v1/reason"]["post"]
    request = reason["requestBody"]["content"]["application/json"]["schema"]
    assert request["properties"]["question"]["maxLength"] == LIMITS.max_question_chars
    assert request["additionalProperties"] is False
    assert request["properties"]["max_steps"]["anyOf"][0]["maximum"] == LIMITS.max_steps
    assert set(reason["responses"]) == {
        "200", "400", "401", "403", "413", "415", "422", "429", "500", "503", "504"
    }  # fmt: skip
    assert reason["security"] == [{"token": []}]
    schemas = document["components"]["schemas"]
    assert set(reason["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    for status, reply in reason["responses"].items():
        if status != "200":
            assert reply["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")


def references(value):
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield item
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


async def test_requests_are_answered_side_by_side():
    """Two questions whose generations each wait for the other to be asked."""
    engine = LocalEngine(["No full stop"] * 2, hang_at=0)
    app = make_app(engine, WebSettings(LIMITS, ABOUT, (), 60.0, None))
    transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        first = asyncio.create_task(http.post("/v1/reason", json={"question": QUESTION}))
        while not engine.generator.prompts:
            await asyncio.sleep(0)
        second = await http.post("/v1/reason", json={"question": QUESTION, "max_steps": 1})
        assert second.json()["stop_reason"] == "step_limit"
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_the_first_event_comes_before_the_reasoning_is_done():
    engine = LocalEngine(["No full stop"], hang_at=0)
    async with aclosing(engine.events(Ask("a", QUESTION, asked_at=float("inf")))) as events:
        assert await anext(events) == StepStarted(1, QUESTION)
