"""A question asked again under its Idempotency-Key gets its first answer, and is not reasoned twice."""

import asyncio
import json

import httpx
import pytest
from guarded import ASK, BODIES, CHAT, Clock, bearer, entry, guarded, guarded_app
from local_endpoint import QUESTION, LocalEngine, error_of, events_of, listening, replies

from steper_ray.client import Client
from steper_ray.config import IdempotencyConfig
from steper_ray.errors import GenerationError
from steper_ray.serving.asking import EngineUnavailableError
from steper_ray.serving.idempotency import Claim, IdempotencyStore, Reply
from steper_ray.serving.ledger import LocalLedger

KEY = {"idempotency-key": "order-17"}


def asks(app, body=ASK, path="/v1/reason", key="order-17", **headers):
    return app.post(path, json=body, headers={"idempotency-key": key} | headers)


# ---- the store


def store(clock=None, **config):
    return IdempotencyStore(IdempotencyConfig(**config), 80.0, clock or Clock())


def answer(text="answer"):
    return Reply("application/json", text.encode())


def test_the_first_answer_is_given_again_to_the_same_request_alone():
    kept = store()
    assert kept.begin("a", "k", b"one", "1") == Claim("new")
    assert kept.begin("a", "k", b"one", "2") == Claim("under_way")
    assert kept.begin("a", "k", b"two", "3") == Claim("mismatch")
    kept.finish("a", "k", "1", answer())
    assert kept.begin("a", "k", b"one", "4") == Claim("done", answer())
    assert kept.begin("a", "k", b"two", "5") == Claim("mismatch")
    assert kept.begin("b", "k", b"one", "6") == Claim("new")


def test_what_failed_frees_its_key_for_any_request():
    kept = store()
    kept.begin("a", "k", b"one", "1")
    kept.free("a", "k", "1")
    assert kept.begin("a", "k", b"two", "2") == Claim("new")


def test_an_attempt_that_lost_its_key_changes_nothing_any_more():
    clock = Clock()
    kept = store(clock)
    kept.begin("a", "k", b"one", "1")
    clock.now += 80  # its server has died, or so it seems
    assert kept.begin("a", "k", b"one", "2") == Claim("new")
    kept.finish("a", "k", "1", answer("late"))
    kept.free("a", "k", "1")
    assert kept.begin("a", "k", b"one", "3") == Claim("under_way")
    kept.finish("a", "k", "2", answer())
    kept.free("a", "k", "2")
    kept.finish("a", "k", "2", answer("twice"))
    assert kept.begin("a", "k", b"one", "4").reply == answer()


def test_an_answer_is_remembered_for_its_time():
    clock = Clock()
    kept = store(clock, ttl_s=100)
    kept.begin("a", "k", b"one", "1")
    clock.now += 50
    kept.finish("a", "k", "1", answer())
    clock.now += 99
    assert kept.begin("a", "k", b"one", "2").state == "done"
    clock.now += 1
    assert kept.begin("a", "k", b"two", "3") == Claim("new")


def test_answers_whose_time_is_over_are_gone_at_the_next_question():
    clock = Clock()
    kept = store(clock, ttl_s=100)
    for number in range(10):
        kept.begin("a", str(number), b"", "1")
        kept.finish("a", str(number), "1", answer())
        clock.now += 1
    clock.now += 95
    kept.begin("b", "other", b"", "1")
    assert (len(kept), kept._bytes) == (5, 4 * len("answer"))
    clock.now += 100
    kept.begin("b", "another", b"", "2")
    assert (len(kept), kept._bytes) == (1, 0)


def test_the_oldest_answer_makes_room_and_what_is_under_way_keeps_its_place():
    kept = store(entries=2)
    kept.begin("a", "busy", b"", "1")
    for number in range(5):
        kept.begin("a", f"k{number}", b"", str(number))
        kept.finish("a", f"k{number}", str(number), answer())
        assert len(kept) == 2
    assert kept.begin("a", "k4", b"", "x").state == "done"
    assert kept.begin("a", "busy", b"", "x").state == "under_way"
    assert kept.begin("a", "k3", b"", "x").state == "new"
    assert kept.begin("a", "one more", b"", "x") == Claim("unkept")


def test_the_size_of_all_answers_is_bounded():
    kept = store(max_bytes=100)
    for number in range(10):
        kept.begin("a", f"k{number}", b"", str(number))
        kept.finish("a", f"k{number}", str(number), answer("x" * 40))
    assert [kept.begin("a", f"k{n}", b"", "x").state for n in range(7, 10)] == ["new", "done", "done"]
    assert kept._bytes == 80
    kept.begin("a", "large", b"", "l")
    kept.finish("a", "large", "l", answer("x" * 101))
    assert kept.begin("a", "large", b"", "m").state == "new"


# ---- over HTTP


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_the_same_request_gets_the_same_answer_and_the_engine_is_asked_once(path, body):
    engine = LocalEngine(replies())
    app = guarded(engine)
    first, again = (asks(app, body, path) for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert first.content == again.content
    assert first.headers["content-type"] == again.headers["content-type"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["content-security-policy"]
    assert len(engine.asked) == 1
    if body.get("stream") and path == "/v1/reason":
        assert events_of(again)[-1][0] == "answer"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/reason", ASK | {"question": "Another one?"}),
        ("/v1/reason", ASK | {"stream": True}),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", ASK),
    ],
)
def test_another_request_under_the_key_is_refused(path, body):
    engine = LocalEngine(replies())
    app = guarded(engine)
    assert asks(app).is_success
    assert error_of(asks(app, body, path))[:2] == (422, "idempotency_mismatch")
    assert len(engine.asked) == 1


def test_callers_do_not_see_each_others_answers():
    engine = LocalEngine(replies() * 2)
    app = guarded(engine, entry("a"), entry("b"))
    assert asks(app, **bearer("a")).is_success
    other = asks(app, **bearer("b"))
    assert "idempotent-replayed" not in other.headers
    assert len(engine.asked) == 2
    assert error_of(asks(app))[0] == 401


async def test_a_second_request_waits_for_the_first_and_a_client_that_left_frees_the_key():
    engine = LocalEngine(["No full stop"] * 3, hang_at=0)
    transport = httpx.ASGITransport(app=guarded_app(engine), client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        one_step = ASK | {"max_steps": 1}
        first = asyncio.create_task(http.post("/v1/reason", json=one_step, headers=KEY))
        while not engine.generator.prompts:
            await asyncio.sleep(0)
        second = await http.post("/v1/reason", json=one_step, headers=KEY)
        assert error_of(second)[:2] == (409, "request_in_progress")
        assert second.headers["retry-after"] == "1"
        assert len(engine.asked) == 1
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        third = await http.post("/v1/reason", json=one_step, headers=KEY)
        assert third.is_success
        assert "idempotent-replayed" not in third.headers


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_failure_frees_the_key_also_within_a_stream(path, body):
    for failing in (
        LocalEngine([GenerationError("status 500"), *replies()]),
        LocalEngine(replies(), broken=EngineUnavailableError()),
    ):
        app = guarded(failing)
        failed = asks(app, body, path)
        assert "error" in failed.text
        failing.broken = None
        again = asks(app, body, path)
        assert again.status_code == 200
        assert "Cem" in again.text
        assert "idempotent-replayed" not in again.headers
        assert asks(app, body, path).headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_an_answer_that_a_failure_ended_is_not_kept_and_the_question_is_reasoned_again(path, body):
    engine = LocalEngine([replies()[0], GenerationError("status 500"), *replies()])
    app = guarded(engine)
    degraded, whole, again = (asks(app, body, path) for _ in range(3))
    assert degraded.status_code == whole.status_code == 200
    assert '"generator_failed"' in degraded.text
    assert '"answered"' in whole.text
    assert ["idempotent-replayed" in reply.headers for reply in (degraded, whole, again)] == [
        False,
        False,
        True,
    ]
    assert again.content == whole.content
    assert len(engine.asked) == 2


def test_an_answer_at_the_last_step_is_a_whole_one():
    engine = LocalEngine(replies())
    app = guarded(engine)
    assert asks(app, ASK | {"max_steps": 1}).json()["stop_reason"] == "step_limit"
    assert "idempotent-replayed" in asks(app, ASK | {"max_steps": 1}).headers


def test_nothing_is_kept_of_what_was_asked_without_a_key():
    ledger = LocalLedger(80.0)
    app = guarded(LocalEngine(replies() * 2), entry("a", concurrent=1), ledger=ledger)
    for path, body in BODIES[:2]:
        assert app.post(path, json=body, headers=bearer("a")).status_code == 200
    assert len(ledger._store) == 0
    assert not ledger._limiter._accounts["a"].places


def test_a_refused_request_frees_the_key():
    app = guarded(LocalEngine(replies()))
    assert asks(app, {"question": ""}).status_code == 422
    assert app.post("/v1/reason", content="{}", headers=KEY).status_code == 415
    assert asks(app, {"question": "x" * 50_000}).status_code == 413
    assert asks(app).status_code == 200


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "\u00e9", "\x7f"])
def test_a_key_that_is_none_is_refused(key):
    engine = LocalEngine([])
    reply = guarded(engine).post("/v1/reason", json=ASK, headers={"idempotency-key": key.encode()})
    assert error_of(reply)[:2] == (400, "invalid_request")
    assert reply.json()["error"]["param"] == "idempotency-key"
    two = [("idempotency-key", "a"), ("idempotency-key", "b")]
    assert guarded(engine).post("/v1/reason", json=ASK, headers=two).status_code == 400
    assert engine.asked == []


def test_a_key_of_any_printable_characters_will_do():
    engine = LocalEngine(replies())
    app = guarded(engine)
    key = "".join(map(chr, range(33, 127))) + " " + "x" * 160
    assert len(key) == 255
    assert asks(app, key=key).content == asks(app, key=key).content
    assert len(engine.asked) == 1


class Down(LocalLedger):
    """A ledger whose store cannot be reached: what LedgerClient then answers."""

    async def begin(self, caller, key, fingerprint, request):
        return Claim("unkept")


def test_without_the_ledger_questions_are_answered_all_the_same():
    engine = LocalEngine(replies() * 2)
    app = guarded(engine, ledger=Down(80.0))
    assert [asks(app).status_code for _ in range(2)] == [200, 200]
    assert len(engine.asked) == 2


# ---- the client


async def test_the_client_asks_again_under_the_same_key_and_each_question_has_its_own(monkeypatch):
    monkeypatch.setattr("steper_ray.client.sleep", lambda seconds: asyncio.sleep(0))
    seen, outcomes = [], [httpx.ReadError("lost"), httpx.Response(409, headers={"retry-after": "1"}), None]

    def handle(request):
        seen.append(request.headers["idempotency-key"])
        outcome = outcomes.pop(0) if outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome or httpx.Response(200, json=ANSWER)

    async with Client("http://test", transport=httpx.MockTransport(handle)) as client:
        await client.reason(QUESTION)
        await client.reason(QUESTION)
    assert len(seen) == 4
    assert len(set(seen[:3])) == 1
    assert seen[3] != seen[0]


USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 0}
ANSWER = {
    "id": "1", "question": "q", "answer": "a", "stop_reason": "answered", "steps": [], "model": "m",
    "usage": USAGE,
}  # fmt: skip


class LosesFirst(httpx.AsyncHTTPTransport):
    """The connection breaks after the server has answered, before the client reads it."""

    lost = False

    async def handle_async_request(self, request):
        reply = await super().handle_async_request(request)
        if not self.lost:
            self.lost = True
            await reply.aread()
            raise httpx.ReadError("lost")
        return reply


async def test_an_answer_that_was_lost_on_the_way_is_not_reasoned_twice(monkeypatch):
    monkeypatch.setattr("steper_ray.client.sleep", lambda seconds: asyncio.sleep(0))
    engine = LocalEngine(replies())
    with listening(engine) as url:
        async with Client(url, transport=LosesFirst()) as client:
            assert (await client.reason(QUESTION)).text == "Cem"
    assert len(engine.asked) == 1


def test_the_document_tells_of_keys_and_limits():
    document = guarded(LocalEngine([])).get("/openapi.json").json()
    for path in ("/v1/reason", "/v1/chat/completions"):
        operation = document["paths"][path]["post"]
        (header,) = operation["parameters"]
        assert (header["name"], header["in"], header["required"]) == ("Idempotency-Key", "header", False)
        assert "x-ratelimit-remaining-requests" in operation["responses"]["429"]["headers"]
        assert "idempotent-replayed" in operation["responses"]["200"]["headers"]
        assert "`degraded`" in header["description"]
        assert "409" in operation["responses"]
    codes = document["components"]["schemas"]["ErrorDetail"]["properties"]["code"]["enum"]
    assert {"rate_limited", "request_in_progress", "idempotency_mismatch"} <= set(codes)
    assert "Idempotency-Key" not in json.dumps(document["paths"]["/v1/models"])
