"""The endpoint without Ray: who is let in, the page, the OpenAPI document, questions side by side."""

import asyncio
from contextlib import aclosing

import httpx
import pytest
from local_endpoint import (
    ABOUT,
    LIMITS,
    QUESTION,
    SECRET,
    LocalEngine,
    client,
    error_of,
    replies,
)

from steper_ray.config import SamplingConfig
from steper_ray.reasoning import StepStarted
from steper_ray.serving.access import SECURITY_HEADERS, check_access
from steper_ray.serving.api import Problem
from steper_ray.serving.asking import EngineUnavailableError
from steper_ray.serving.engine import Ask
from steper_ray.serving.web import WebSettings, make_app


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
    check_access("GET", "/healthz", headers, client_address, None)
    if let_in:
        check_access("POST", "/v1/reason", headers, client_address, None)
        return
    for path in ("/v1/reason", "/", "/openapi.json"):
        with pytest.raises(Problem) as refused:
            check_access("GET", path, headers, client_address, None)
        assert (refused.value.status, refused.value.code) == (403, "loopback_only")


@pytest.mark.parametrize("token", [None, SECRET])
@pytest.mark.parametrize(
    ("target", "hosts"),
    [(b"/", (b"localhost", b"rebound.example")), (b"http://rebound.example/", (b"localhost",))],
)
async def test_a_request_that_leaves_its_host_to_a_guess_is_refused(token, target, hosts):
    app, sent = client(LocalEngine(replies()), token=token).app, []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": target.decode(),
        "raw_path": target,
        "query_string": b"",
        "headers": [(b"host", host) for host in hosts],
        "client": ("127.0.0.1", 1234),
    }
    await app(scope, None, send)
    assert sent[0]["status"] == 400


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
        "200", "400", "401", "403", "404", "408", "413", "415", "422", "429", "500", "503", "504"
    }  # fmt: skip
    assert reason["security"] == [{"token": []}]
    schemas = document["components"]["schemas"]
    assert set(reason["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    for status, reply in reason["responses"].items():
        if status != "200":
            assert reply["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")


def test_the_openapi_document_tells_what_a_chat_may_ask_for():
    document = client(LocalEngine([]), token="t").get("/openapi.json").json()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    fields = chat["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert fields["n"]["enum"] == [1, None]
    assert fields["temperature"]["enum"] == [0.0, None]
    assert fields["max_steps"]["anyOf"][0]["maximum"] == LIMITS.max_steps
    (message,) = references(fields["messages"])
    assert (
        document["components"]["schemas"][message.rpartition("/")[2]]["properties"]["role"]["const"] == "user"
    )
    whole, chunk = chat["responses"]["200"]["content"].values()
    assert whole["schema"]["$ref"].endswith("/ChatCompletion")
    assert next(iter(references(chunk))).endswith("/ChatChunk")
    assert set(chat["responses"]) == {
        "200", "400", "401", "403", "404", "408", "413", "415", "422", "429", "500", "503", "504"
    }  # fmt: skip
    assert set(document["paths"]["/v1/models/{model}"]["get"]["responses"]) == {
        "200",
        "401",
        "403",
        "404",
        "422",
    }
    for path in ("/v1/chat/completions", "/v1/models", "/v1/models/{model}"):
        (operation,) = document["paths"][path].values()
        assert operation["security"] == [{"token": []}]


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
    app = make_app(engine, WebSettings(LIMITS, ABOUT, (), 60.0, None, SamplingConfig()))
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
    async with aclosing(engine.events(Ask("a", QUESTION, asked_at=float("inf"), model="test"))) as events:
        assert await anext(events) == StepStarted(1, QUESTION)
