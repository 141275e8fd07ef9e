"""Limits of callers: requests a minute, questions at once, characters of a question."""

import asyncio

import httpx
import pytest
from fastapi.testclient import TestClient
from guarded import ASK, BODIES, CHAT, Clock, bearer, entry, guarded, guarded_app
from local_endpoint import QUESTION, SECRET, LocalEngine, error_of, replies

from steper_ray.config import CallerLimits
from steper_ray.serving.asking import OverloadedError
from steper_ray.serving.limits import RateLimiter

PER_MINUTE = CallerLimits(requests_per_minute=6)


def left(reply):
    return [reply.headers[f"x-ratelimit-{what}-requests"] for what in ("limit", "remaining", "reset")]


# ---- the bucket


def test_a_minutes_requests_may_come_at_once_and_the_next_when_the_wait_is_over():
    clock = Clock()
    limiter = RateLimiter(60.0, clock)
    assert [limiter.admit("a", PER_MINUTE, str(i)).remaining for i in range(6)] == [5, 4, 3, 2, 1, 0]
    refused = limiter.admit("a", PER_MINUTE, "7")
    assert (refused.over, refused.retry_s, refused.reset_s) == ("requests", 10.0, 60.0)
    clock.now += 9.99
    assert limiter.admit("a", PER_MINUTE, "8").over == "requests"
    clock.now += 0.01
    assert limiter.admit("a", PER_MINUTE, "9").over is None
    assert limiter.admit("b", PER_MINUTE, "10").over is None  # another caller has his own


@pytest.mark.parametrize("rate", [1, 7, 13, 59, 61, 997])
def test_the_told_wait_is_enough_and_no_longer_than_needed(rate):
    clock = Clock()
    limits = CallerLimits(requests_per_minute=rate)
    limiter = RateLimiter(60.0, clock)
    for _ in range(rate):
        limiter.admit("a", limits, "p")
    for _ in range(200):
        refused = limiter.admit("a", limits, "p")
        assert refused.over == "requests"
        clock.now += refused.retry_s * 0.99
        assert limiter.admit("a", limits, "p").over == "requests"
        clock.now += refused.retry_s * 0.01
        assert limiter.admit("a", limits, "p").over is None


def test_a_rest_does_not_save_up_more_than_a_minute():
    clock = Clock()
    limiter = RateLimiter(60.0, clock)
    limiter.admit("a", PER_MINUTE, "1")
    clock.now += 1e6
    assert [limiter.admit("a", PER_MINUTE, str(i)).over for i in range(7)] == [None] * 6 + ["requests"]


def test_a_place_comes_free_when_it_is_given_back_or_its_time_is_over():
    clock = Clock()
    limiter = RateLimiter(80.0, clock)
    two = CallerLimits(concurrent=2)
    assert limiter.admit("a", two, "1").over is None
    assert limiter.admit("a", two, "2").over is None
    assert limiter.admit("a", two, "3").over == "concurrent"
    limiter.release("a", "3")  # was never given out
    limiter.release("b", "1")
    assert limiter.admit("a", two, "4").over == "concurrent"
    limiter.release("a", "1")
    assert limiter.admit("a", two, "5").over is None
    clock.now += 80  # the server of both has died
    assert limiter.admit("a", two, "6").over is None
    assert limiter.admit("a", two, "7").over is None


def answered(limiter, clock, caller, *seconds):
    """Questions one after another, each of which took so long."""
    for number, took in enumerate(seconds):
        assert limiter.admit(caller, CallerLimits(concurrent=2), f"answered-{number}").over is None
        clock.now += took
        limiter.release(caller, f"answered-{number}")


def test_the_wait_for_a_place_is_what_the_oldest_question_has_left_of_the_usual_time():
    clock = Clock()
    limiter, two = RateLimiter(80.0, clock), CallerLimits(concurrent=2)
    answered(limiter, clock, "a", 9.0, 9.0, 70.0)  # one that hung is not the usual time
    limiter.admit("a", two, "1")
    clock.now += 4
    limiter.admit("a", two, "2")
    assert limiter.admit("a", two, "3").retry_s == pytest.approx(5)
    clock.now += 3
    assert limiter.admit("a", two, "3").retry_s == pytest.approx(2)
    clock.now += 20  # overdue: it may be any moment
    assert limiter.admit("a", two, "3").retry_s == 1
    limiter.release("a", "1")
    limiter.admit("a", two, "3")
    assert limiter.admit("a", two, "4").retry_s == 1  # now the second is the oldest


def test_a_callers_own_questions_tell_his_wait_and_all_others_where_he_has_none():
    clock = Clock()
    limiter, one = RateLimiter(80.0, clock), CallerLimits(concurrent=1)
    limiter.admit("first", one, "1")
    assert limiter.admit("first", one, "2").retry_s == 1  # nothing is known
    answered(limiter, clock, "slow", *[30.0] * 5)
    limiter.admit("new", one, "3")
    assert limiter.admit("new", one, "4").retry_s == pytest.approx(30)
    limiter.release("new", "3")  # at once: a bad request, perhaps
    answered(limiter, clock, "new", 6.0, 6.0)
    limiter.admit("new", one, "5")
    assert limiter.admit("new", one, "6").retry_s == pytest.approx(6)


def test_only_the_last_questions_count_for_the_wait():
    clock = Clock()
    limiter, one = RateLimiter(80.0, clock), CallerLimits(concurrent=1)
    answered(limiter, clock, "a", *[60.0] * 100)
    answered(limiter, clock, "a", *[3.0] * 32)
    limiter.admit("a", one, "1")
    assert limiter.admit("a", one, "2").retry_s == pytest.approx(3)


def test_a_request_without_a_place_costs_no_token():
    limiter = RateLimiter(80.0, Clock())
    both = CallerLimits(requests_per_minute=3, concurrent=1)
    limiter.admit("a", both, "1")
    assert limiter.admit("a", both, "2").remaining == 2
    limiter.release("a", "1")
    assert limiter.admit("a", both, "3").remaining == 1


# ---- over HTTP


def test_what_is_left_is_told_and_what_is_over_refused_until_its_time():
    clock, engine = Clock(), LocalEngine(replies() * 3)
    app = guarded(engine, entry("a", requests_per_minute=2), entry("b"), clock=clock)

    def ask(name="a"):
        return app.post("/v1/reason", json=ASK, headers=bearer(name))

    assert left(ask()) == ["2", "1", "30s"]
    assert left(ask()) == ["2", "0", "1m0s"]
    refused = ask()
    assert error_of(refused)[:2] == (429, "rate_limited")
    assert "ask again in 30 s" in error_of(refused)[2]
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers["retry-after"] == "30"
    assert left(refused) == ["2", "0", "1m0s"]
    assert "x-ratelimit-limit-requests" not in ask("b").headers
    assert len(engine.asked) == 3
    clock.now += 30
    assert left(ask()) == ["2", "0", "1m0s"]


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_every_way_to_ask_counts_and_bad_questions_too(path, body):
    app = guarded(LocalEngine(replies()), requests_per_minute=2)
    assert app.post(path, json=body).status_code == 200
    assert app.post(path, content="{").status_code in (400, 415)
    assert (
        error_of(app.post("/v1/reason%0A", json=ASK))[1] == "rate_limited"
    )  # a router takes it for /v1/reason


def test_the_default_limits_hold_for_the_token_and_for_this_machine():
    for token in (None, SECRET):
        app = guarded(LocalEngine(replies()), token=token, requests_per_minute=1)
        header = {"authorization": f"Bearer {SECRET}".encode()}
        assert app.post("/v1/reason", json=ASK, headers=header).status_code == 200
        assert error_of(app.post("/v1/reason", json=ASK, headers=header))[1] == "rate_limited"


def test_the_page_the_probes_and_what_only_reads_are_never_limited():
    app = guarded(LocalEngine(replies()), requests_per_minute=1)
    app.post("/v1/reason", json=ASK)
    for _ in range(3):
        for path in (
            "/",
            "/static/app.js",
            "/healthz",
            "/readyz",
            "/openapi.json",
            "/v1/about",
            "/v1/models",
        ):
            assert app.get(path).status_code == 200


def test_unknown_keys_leave_nothing_behind():
    engine = LocalEngine([])
    app = guarded_app(engine, entry("a", requests_per_minute=1, concurrent=1))
    ledger = next(m.kwargs["ledger"] for m in app.user_middleware if m.cls.__name__ == "Quotas")
    http = TestClient(app)
    for number in range(50):
        headers = {"authorization": f"Bearer guess-{number}", "idempotency-key": str(number)}
        assert http.post("/v1/reason", json=ASK, headers=headers).status_code == 401
    assert len(ledger._limiter._accounts) == len(ledger._store) == 0


async def test_questions_at_once_are_counted_until_they_end_or_their_client_leaves():
    engine = LocalEngine(["No full stop"] * 3, hang_at=0)
    app = guarded_app(engine, entry("a", concurrent=1), entry("b", concurrent=1))
    transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        first = asyncio.create_task(http.post("/v1/reason", json=ASK, headers=bearer("a")))
        while not engine.generator.prompts:
            await asyncio.sleep(0)
        refused = await http.post("/v1/reason", json=ASK, headers=bearer("a"))
        assert error_of(refused)[:2] == (429, "rate_limited")
        assert refused.headers["retry-after"] == "1"
        assert (await http.post("/v1/reason", json=ASK | {"max_steps": 1}, headers=bearer("b"))).is_success
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        again = await http.post("/v1/reason", json=ASK | {"max_steps": 1}, headers=bearer("a"))
        assert again.is_success


def test_a_failed_question_gives_its_place_back():
    engine = LocalEngine([], broken=OverloadedError())
    app = guarded(engine, concurrent=1)
    for _ in range(3):
        assert error_of(app.post("/v1/reason", json=ASK))[1] == "overloaded"


def test_a_question_longer_than_its_caller_may_ask_is_refused_in_the_words_of_the_route():
    engine = LocalEngine(replies())
    most = len(QUESTION) - 1
    app = guarded(engine, entry("short", max_question_chars=most), entry("long"))
    refused = app.post("/v1/reason", json=ASK, headers=bearer("short"))
    assert error_of(refused)[:2] == (413, "question_too_long")
    assert f"{most} characters" in error_of(refused)[2]
    refused = app.post("/v1/chat/completions", json=CHAT, headers=bearer("short"))
    assert error_of(refused)[:2] == (400, "context_length_exceeded")
    assert engine.asked == []
    assert app.post("/v1/reason", json=ASK, headers=bearer("long")).status_code == 200


def test_a_refusal_is_logged_by_name_and_never_with_the_key(caplog):
    caplog.set_level("INFO")
    app = guarded(LocalEngine(replies()), entry("a", requests_per_minute=1))
    for _ in range(2):
        app.post("/v1/reason", json=ASK, headers=bearer("a"))
    assert "refused a question of a: over its limit" in caplog.text
    assert "key-of-a" not in caplog.text
    assert QUESTION not in caplog.text
