"""What observers are told of each question, and the traces that are made of it. No Ray."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from local_endpoint import ABOUT, CHAIN, LIMITS, QUESTION, SECRET, LocalEngine, replies
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.testclient import TestClient

from steper_ray.config import SamplingConfig
from steper_ray.core.errors import GenerationError
from steper_ray.serving.asking import OverloadedError
from steper_ray.serving.engine import Ask
from steper_ray.serving.observing import Outcome, Watch
from steper_ray.serving.traces import Traces
from steper_ray.serving.web import WebSettings, make_app

BODY = {"question": QUESTION}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Told:
    """Remembers what it is told."""

    def __init__(self):
        self.under_way, self.ended_as = 0, []

    def began(self, ask):
        self.under_way += 1

    def ended(self, ask, outcome):
        self.under_way -= 1
        self.ended_as.append((ask, outcome))


class Broken:
    def began(self, ask):
        raise RuntimeError(SECRET)

    ended = began


def app_of(engine, *observers):
    settings = WebSettings(LIMITS, ABOUT, (), 60.0, None, SamplingConfig(), observers=observers)
    return make_app(engine, settings)


def post(app, path="/v1/reason", **body):
    client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 5000))
    return client.post(path, json=BODY | body, headers={"traceparent": PARENT})


def test_observers_are_told_once_of_each_question_what_it_came_to():
    told = Told()
    assert post(app_of(LocalEngine(replies()), told)).status_code == 200
    assert post(app_of(LocalEngine(replies()), told), stream=True).text.count("event: answer") == 1
    post(app_of(LocalEngine([], broken=OverloadedError()), told))
    post(app_of(LocalEngine([replies()[0], GenerationError("x")]), told), stream=True)
    post(app_of(LocalEngine([GenerationError("x")]), told), stream=True)
    post(app_of(LocalEngine([], broken=RuntimeError("x")), told))
    outcomes = [outcome for _, outcome in told.ended_as]
    assert [outcome.name for outcome in outcomes] == [
        "answered", "answered", "overloaded", "generator_failed", "generator_failed", "internal_error"
    ]  # fmt: skip
    assert told.under_way == 0
    whole, streamed, refused, degraded, *_ = outcomes
    assert whole.trajectory.chain == streamed.trajectory.chain == tuple(CHAIN)
    assert whole.first_token_s is None
    assert 0 < streamed.first_token_s <= streamed.seconds
    assert refused.trajectory is None
    assert len(degraded.trajectory.steps) == 1
    assert {ask.trace for ask, _ in told.ended_as} == {PARENT}


async def test_a_client_that_leaves_is_told_as_such_even_before_the_first_byte():
    told = Told()
    app = app_of(LocalEngine(["No full stop"], hang_at=0), told)
    body = json.dumps(BODY | {"stream": True}).encode()
    messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        pass

    scope = {
        "type": "http", "method": "POST", "path": "/v1/reason", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 80), "scheme": "http",
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), 30)
    assert [outcome.name for _, outcome in told.ended_as] == ["client_left"]
    assert told.under_way == 0


def test_an_observer_that_fails_costs_no_answer_and_logs_no_text(caplog):
    told = Told()
    reply = post(app_of(LocalEngine(replies()), Broken(), told))
    assert reply.status_code == 200
    assert [outcome.name for _, outcome in told.ended_as] == ["answered"]
    assert "RuntimeError" in caplog.text
    assert SECRET not in caplog.text


@pytest.fixture
def collector():
    """An OTLP/HTTP collector; the spans that it was sent."""
    spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            spans.extend(
                span
                for resource in sent.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_question_becomes_a_trace_of_its_steps_under_its_clients_span_without_a_text(collector):
    url, spans = collector
    traces = Traces(url)
    post(app_of(LocalEngine(replies()), traces))
    post(app_of(LocalEngine([], broken=OverloadedError()), traces))
    traces.close()
    (refused,) = [s for s in spans if s.status.code == s.status.STATUS_CODE_ERROR]
    assert refused.status.message == "overloaded"
    (root,) = [s for s in spans if s.name == "steper.reason" and s is not refused]
    assert root.trace_id.hex() == PARENT.split("-")[1]
    assert root.parent_span_id.hex() == PARENT.split("-")[2]
    parts = sorted(
        (s for s in spans if s.parent_span_id == root.span_id), key=lambda s: s.start_time_unix_nano
    )
    assert [s.name for s in parts] == ["steper.retrieve", "steper.generate"] * 3
    assert root.start_time_unix_nano <= parts[0].start_time_unix_nano
    assert parts[-1].end_time_unix_nano <= root.end_time_unix_nano
    text = "".join(map(str, spans))
    assert not [word for word in (QUESTION, *CHAIN, "Alba", "Cem") if word in text]


def test_steps_that_took_longer_than_the_request_are_put_within_it(collector):
    """Two machines' clocks measure them."""
    url, spans = collector
    traces, told = Traces(url), Told()
    post(app_of(LocalEngine(replies()), told))
    ((ask, outcome),) = told.ended_as
    traces.ended(ask, Outcome(outcome.name, 0.0, None, outcome.trajectory))
    traces.close()
    root = next(s for s in spans if s.name == "steper.reason")
    assert min(s.start_time_unix_nano for s in spans) >= root.start_time_unix_nano


def test_a_fault_of_ours_is_no_client_that_left():
    told = Told()
    with pytest.raises(ZeroDivisionError), Watch([told], Ask("a", "?", 0.0, "test")):
        raise ZeroDivisionError
    assert [outcome.name for _, outcome in told.ended_as] == ["internal_error"]
