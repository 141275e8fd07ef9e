"""Bodies and texts at the edge of JSON and Unicode: refused in the one form, or answered; never a fault."""

import json
import re

import pytest
from local_endpoint import CHAT, LIMITS, QUESTION, LocalEngine, client, error_of, events_of

JSON = {"content-type": "application/json"}
ROUTES = [("/v1/reason", {"question": QUESTION}), ("/v1/chat/completions", CHAT)]


def sends(path, body, engine=None, **headers):
    app = client(engine or LocalEngine(["So the answer is: Cem."]))
    return app.post(path, content=body, headers=JSON | headers)


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize(
    "value",
    [
        "[" * 10_000,
        "[" * 150 + "]" * 150,
        '{"a":' * 150 + "1" + "}" * 150,
        "NaN",
        "-Infinity",
        "1e999",
        "9" * 4000,
        "1.0",
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\\u0000"',
        "tru",
    ],
)
def test_odd_values_are_refused_in_the_one_form(path, body, value):
    app = client(LocalEngine(["So the answer is: Cem."]))
    for field in ("max_steps", "question", "messages", "x\\ud800"):
        others = [f"{json.dumps(name)}: {json.dumps(known)}" for name, known in body.items() if name != field]
        text = "{" + ", ".join([*others, f'"{field}": {value}']) + "}"
        reply = app.post(path, content=text, headers=JSON)
        if (path, field, value) == ("/v1/reason", "question", '"\\u0000"'):
            assert reply.json()["question"] == "\x00"
            continue
        status, _, message = error_of(reply)
        assert status in (400, 413, 422)
        assert not re.search(r"Traceback|File \"|pydantic", message)
        assert value not in message


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_json_is_read_as_utf_8_alone(path, body, encoding):
    text = json.dumps(body).encode(encoding)
    assert error_of(sends(path, text))[:2] == (400, "malformed_json")
    latin = json.dumps(body).encode().replace(b"Alba", b"\xc4lba")
    assert error_of(sends(path, latin))[:2] == (400, "malformed_json")


def test_of_a_field_that_comes_twice_the_last_counts_and_is_checked():
    engine = LocalEngine(["So the answer is: Cem."])
    assert sends("/v1/reason", '{"question": 7, "question": "Who?"}', engine).json()["question"] == "Who?"
    reply = sends("/v1/reason", '{"question": "Who?", "question": 7}', engine)
    assert error_of(reply)[:2] == (422, "invalid_request")
    assert [ask.question for ask in engine.asked] == ["Who?"]


@pytest.mark.parametrize(
    "odd", ["\x00", "\x1b[2J", "\ufeff\u202e", "\uffff", "\U0010ffff", "\u2028\u2029\x85", "e\u0301" * 50]
)
def test_a_question_of_any_characters_is_answered_and_handed_back_as_it_came(odd):
    question = f"Alba?{odd}"
    for body in ({"question": question}, {"question": json.loads(json.dumps(question)), "stream": True}):
        reply = client(LocalEngine(["So the answer is: Cem."])).post("/v1/reason", json=body)
        answer = events_of(reply)[-1][1] if "stream" in body else reply.json()
        assert (answer["question"], answer["answer"]) == (question, "Cem")


def test_a_body_may_have_its_limit_and_not_a_byte_more():

    body = json.dumps({"question": QUESTION}).encode()
    room = LIMITS.max_body_bytes - len(body)
    assert sends("/v1/reason", body + b" " * room).status_code == 200
    assert error_of(sends("/v1/reason", body + b" " * (room + 1)))[:2] == (413, "body_too_large")
    pieces = (b" " * 1000 for _ in range(LIMITS.max_body_bytes))  # no length, and no end
    assert error_of(sends("/v1/reason", pieces))[:2] == (413, "body_too_large")


def test_the_longest_question_fits_however_it_is_escaped():

    question = "\U0001f600" * LIMITS.max_question_chars
    assert sends("/v1/reason", json.dumps({"question": question})).json()["question"] == question
    assert error_of(sends("/v1/reason", json.dumps({"question": question + "x"})))[:2] == (
        413,
        "question_too_long",
    )


@pytest.mark.parametrize("path", ["/v1/reason/", "/healthz/", "//v1/reason", "/v1/reason/about"])
def test_a_path_that_is_nearly_right_is_not_found_and_redirected_nowhere(path):
    reply = client(LocalEngine([])).post(path, follow_redirects=False)
    assert error_of(reply)[:2] == (404, "not_found")
    assert "location" not in reply.headers


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_no_answer_of_any_kind_opens_the_endpoint_to_other_origins(method):
    app = client(LocalEngine(["So the answer is: Cem."]))
    headers = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    for path in ("/", "/v1/reason", "/v1/about", "/healthz", "/nowhere"):
        reply = app.request(method, path, headers=headers, json={"question": QUESTION})
        assert not [name for name in reply.headers if name.startswith("access-control-")]
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
