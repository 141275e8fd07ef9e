"""The endpoint without Ray, over a scripted engine: answers, streams and refused requests."""

import json

import pytest
from local_endpoint import (
    CHAIN,
    GROUNDED,
    OTHER,
    QUESTION,
    LocalEngine,
    client,
    error_of,
    events_of,
    replies,
)

from steper_ray.schema import Question, Step, StopReason, Trajectory
from steper_ray.serving.api import response, sse
from steper_ray.serving.wire import EVENTS, ReasonResponse

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
    assert [step["sentences"] for step in body["steps"]] == [[sentence] for sentence in GROUNDED]
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


def test_the_student_who_is_named_answers_and_one_who_is_not_there_is_a_404():
    one = client(LocalEngine(replies()))
    reply = one.post("/v1/reason", json={"question": QUESTION, "model": OTHER}).json()
    assert (reply["model"], reply["answer"]) == (OTHER, "Dan")
    missing = one.post("/v1/reason", json={"question": QUESTION, "model": "gpt"})
    assert error_of(missing)[:2] == (404, "model_not_found")
    assert one.get("/v1/about").json()["models"] == ["test", OTHER]


def test_a_step_tells_what_was_taken_back_and_how_sure_the_model_was():
    answer = response(
        Trajectory(
            Question("1", QUESTION, ()),
            "ircot",
            (
                Step(1, QUESTION, (), CHAIN[0], taken_back="Bo was born in Ulm.", confidence=0.25),
                Step(2, "Bo was born in Ulm.", (), CHAIN[2]),
            ),
            "Cem",
            StopReason.UNSURE,
        ),
        "test",
    )
    assert [(step.taken_back, step.confidence) for step in answer.steps] == [
        ("Bo was born in Ulm.", 0.25),
        ("", None),
    ]
    assert [sentence.text for step in answer.steps for sentence in step.sentences] == [CHAIN[0], CHAIN[2]]
    assert not answer.degraded


def timeless(value):
    """Without what differs between two runs of one question."""
    if isinstance(value, dict):
        return {
            k: timeless(v) for k, v in value.items() if k != "id" or ("text" in value and "title" in value)
        } | {k: 0 for k in value if k.endswith("_seconds")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def test_a_sentence_that_no_passage_holds_says_what_is_in_none():
    made_up = "The director of Alba is Zog."
    body = (
        client(LocalEngine([made_up])).post("/v1/reason", json={"question": QUESTION, "max_steps": 1}).json()
    )
    assert body["steps"][0]["sentences"] == [{"text": made_up, "grounded_by": ["1"], "ungrounded": ["Zog"]}]


def test_unit_and_max_steps_of_the_request_hold():
    engine = LocalEngine([" ".join(CHAIN)])
    body = client(engine).post("/v1/reason", json={"question": QUESTION, "unit": "chain"}).json()
    assert [step["reasoning"] for step in body["steps"]] == [" ".join(CHAIN)]
    assert [s["text"] for s in body["steps"][0]["sentences"]] == CHAIN
    body = (
        client(LocalEngine(replies())).post("/v1/reason", json={"question": QUESTION, "max_steps": 2}).json()
    )
    assert (len(body["steps"]), body["stop_reason"]) == (2, "step_limit")


DOUBTED = "Bo was born in Ulm."


@pytest.mark.parametrize(
    ("stop", "answer", "taken_back"),
    [
        ("fixed", "Ulm", ["", ""]),
        ("confident", "Ulm", [DOUBTED, ""]),
        (None, "Ulm", [DOUBTED, ""]),
        ("stable", "Cem", ["", "So the answer is: Ulm.", "So the answer is: Cem.", ""]),
    ],
)
def test_a_request_chooses_when_an_answer_counts(stop, answer, taken_back):
    engine = LocalEngine(
        [f"{DOUBTED} And", *(f"So the answer is: {name}." for name in ("Ulm", "Cem", "Cem"))]
    )
    engine.generator._doubted = [DOUBTED]
    body = {"question": QUESTION} | ({} if stop is None else {"stop": stop})
    reply = client(engine).post("/v1/reason", json=body).json()
    assert (reply["answer"], reply["stop_reason"]) == (answer, "answered")
    assert [step["taken_back"] for step in reply["steps"]] == taken_back


def test_whatever_stops_it_the_most_steps_are_the_requests():
    engine = LocalEngine([f"So the answer is: {name}." for name in ("Ulm", "Cem")])
    body = {"question": QUESTION, "stop": "stable", "max_steps": 2}
    reply = client(engine).post("/v1/reason", json=body).json()
    assert (len(reply["steps"]), reply["stop_reason"]) == (2, "unsure")


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
        (
            '{"question": "Who?", "stop": "early"}',
            422,
            "invalid_request",
            "stop: must be 'fixed', 'confident'",
        ),
        (
            '{"question": "Who?", "stop": ["\\n"]}',
            422,
            "invalid_request",
            "stop: must be 'fixed', 'confident'",
        ),
        ('{"question": "Who?", "max_steps": 0}', 422, "invalid_request", "max_steps"),
        ('{"question": "Who?", "max_steps": 6}', 422, "invalid_request", "less than or equal to 5"),
        ('{"question": "Who?", "k": 3}', 422, "invalid_request", "the fields are: question, model, stream"),
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
