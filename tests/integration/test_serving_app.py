"""The endpoint on a real Ray Serve: the miniature teacher at the root, an engine that hangs beside it."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
import ray
from httpx_sse import EventSource
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from serving_apps import REST, deploy, free_port, hanging, serving, small_config
from waiting import answers, wait_until

from steper_ray.config.file import load_config
from steper_ray.corpora import open_corpus
from steper_ray.serving import bodies
from steper_ray.serving.access import SECURITY_HEADERS
from steper_ray.serving.app import build

TOKEN = "a-token-for-tests"


@pytest.fixture(scope="module")
def service(ray_cluster, tmp_path_factory):
    """`url` of the app that answers, `hanging` of the one that does not, with its engine's `handle`."""
    folder = tmp_path_factory.mktemp("run")
    config = small_config(folder)
    config.save(folder)
    with serving() as url:
        # As `serve run` and the manifests call it: a file and overrides.
        args = {"config": str(folder / "config.yaml"), "overrides": {"reasoning": {"k": 3}}}
        deploy(call_user_app_builder_with_args_if_necessary(build, args))
        one_place = ["serve.max_ongoing_requests=1", "serve.max_queued_requests=1"]
        # No deadline ends a test's question: its client has to leave.
        stuck = small_config(folder, *one_place, "serve.request_timeout_s=600")
        handle = deploy(hanging(stuck), "hanging")
        question = next(iter(open_corpus(config.corpus).questions())).text
        yield SimpleNamespace(url=url, hanging=f"{url}/hanging", handle=handle, question=question)


def post(url, content, **headers):
    headers = {"content-type": "application/json"} | headers
    return httpx.post(f"{url}/v1/reason", content=content, headers=headers, timeout=60)


def ask(url, question, **fields):
    return post(url, json.dumps({"question": question} | fields))


def stream(url, question):
    return httpx.stream("POST", f"{url}/v1/reason", json={"question": question, "stream": True}, timeout=60)


def dashboard_metrics():
    """The names in the dashboard's queries."""
    text = (Path(__file__).parents[2] / "cluster/grafana/reasoner.json").read_text()
    return set(re.findall(r"\bray_[a-z_]+", "".join(re.findall(r'"expr": (".*")', text))))


def events(reply):
    """The events of a stream as they come: (name, data)."""
    for frame in EventSource(reply).iter_sse():
        if frame.data:
            yield frame.event, json.loads(frame.data)


def code_of(reply):
    body = json.loads(reply.read())
    assert set(body) == {"error"}
    assert body["error"]["message"]
    return reply.status_code, body["error"]["code"]


# ---- connections that send half a body


@contextmanager
def half_bodies(url, count):
    """Connections that each sent the head of a question and a part of its body, and now wait."""
    where = httpx.URL(url)
    head = (
        f"Host: {where.host}:{where.port}\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{{"
    )
    opened = []
    with ExitStack() as stack:
        for number in range(count):
            path = ("/v1/reason", "/v1/chat/completions", "/", "/healthz")[number % 4]
            connection = stack.enter_context(socket.create_connection((where.host, where.port), timeout=60))
            connection.sendall(f"POST {path} HTTP/1.1\r\n{head}".encode())
            opened.append(connection)
        yield opened


def test_a_thousand_half_sent_bodies_keep_no_health_check_and_no_question_waiting(service):
    with half_bodies(service.url, 1000) as opened:
        for attempt in range(3):
            assert httpx.get(f"{service.url}/healthz", timeout=60).status_code == 200
            assert ask(service.url, service.question).status_code == 200
            if (
                not attempt
            ):  # the others were refused at once, and did not just run out of time before this answer
                poll = select.poll()
                for connection in opened:
                    poll.register(connection, select.POLLIN)
                assert len(opened) - len(poll.poll(0)) <= 2 * bodies.PER_CLIENT


# ---- the main path, on the real engine


def test_a_question_is_answered_with_every_step_that_led_there(service):
    reply = ask(service.url, service.question)
    assert reply.status_code == 200
    answer = reply.json()
    assert answer["question"] == service.question
    assert answer["stop_reason"] in ("answered", "step_limit")
    assert [step["index"] for step in answer["steps"]] == list(range(1, len(answer["steps"]) + 1))
    first = answer["steps"][0]
    assert first["query"] == service.question
    assert len(first["passages"]) == 3  # the override's k
    assert first["reasoning"]
    assert first["usage"]["completion_tokens"] > 0


def test_a_stream_grows_step_by_step_into_the_same_answer(service):
    with stream(service.url, service.question) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        told = list(events(reply))
    names = [name for name, _ in told]
    assert names[:3] == ["step_started", "passages", "delta"]
    assert names[-2:] == ["step_done", "answer"]
    answer = told[-1][1]
    assert [data for name, data in told if name == "step_done"] == answer["steps"]
    whole = ask(service.url, service.question).json()
    assert [step["reasoning"] for step in answer["steps"]] == [step["reasoning"] for step in whole["steps"]]
    assert answer["answer"] == whole["answer"]


def test_max_steps_of_the_request_holds(service):
    steps = ask(service.url, service.question, max_steps=1).json()["steps"]
    assert len(steps) == 1


def test_openais_client_gets_the_same_answer_whole_and_streamed(service):
    told = ask(service.url, service.question).json()
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
        (served,) = client.models.list()
        request = {"model": served.id, "messages": [{"role": "user", "content": service.question}]}
        whole = client.chat.completions.create(**request).choices[0]
        with client.chat.completions.stream(**request) as stream:
            streamed = stream.get_final_completion().choices[0]
    assert served.id == told["model"]
    for choice in (whole, streamed):
        assert choice.message.content == told["answer"]
        assert choice.message.reasoning_content == "\n".join(step["reasoning"] for step in told["steps"])
        passages = [passage["id"] for step in told["steps"] for passage in step["passages"]]
        assert [passage["id"] for passage in choice.message.passages] == passages
        assert choice.message.stop_reason == told["stop_reason"]


def test_prometheus_gets_every_metric_that_the_dashboard_shows(service):
    with stream(service.url, service.question) as reply:
        list(events(reply))
    with stream(service.hanging, "Who shot Alba?") as reply:
        read_until_it_hangs(events(reply))
    port = ray.nodes()[0]["MetricsExportPort"]
    shown = dashboard_metrics()
    assert len(shown) > 10

    def missing():
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        return sorted(name for name in shown if f"\n{name}{{" not in text)

    wait_until(lambda: not missing(), "the metrics", seconds=90, every=1.0)


# ---- refusals, through Serve's own proxy


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ('{"question": ', 400, "malformed_json"),
        ('{"question": "  "}', 422, "invalid_request"),
        ('{"question": "Who?", "max_steps": 99}', 422, "invalid_request"),
        (json.dumps({"question": "x" * 4001}), 413, "question_too_long"),
        (json.dumps({"question": "x" * 50_000}), 413, "question_too_long"),
        (json.dumps({"question": "x" * 60_000}), 413, "body_too_large"),
    ],
)
def test_a_bad_request_is_a_typed_error(service, body, status, code):
    assert code_of(post(service.url, body)) == (status, code)


def test_a_body_that_comes_in_pieces_is_cut_off_too(service):
    pieces = (b"x" * 10_000 for _ in range(20))
    assert code_of(post(service.url, pieces)) == (413, "body_too_large")


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"x-forwarded-for": "192.0.2.1"}])
def test_without_a_token_only_clients_of_this_machine_are_served(service, headers):
    assert code_of(post(service.url, '{"question": "Who?"}', **headers)) == (403, "loopback_only")


def test_every_answer_has_the_security_headers_and_no_leave_for_other_origins(service):
    for path, origin in (
        ("/", "null"),
        ("/v1/about", "http://evil.example"),
        ("/nowhere", "http://a.example"),
    ):
        reply = httpx.get(service.url + path, headers={"origin": origin})
        assert {name: reply.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert "access-control-allow-origin" not in reply.headers


def test_the_probes_answer(service):
    assert httpx.get(f"{service.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{service.url}/readyz").json() == {"status": "ready"}


# ---- an engine that is busy


def stats(service):
    return service.handle.stats.remote().result(timeout_s=60)


def read_until_it_hangs(told):
    """The caller keeps `told`: with it the connection would be closed."""
    for name, data in told:
        if name == "delta" and data["text"] == REST:
            return
    raise AssertionError("the stream ended")


def test_a_client_that_leaves_aborts_the_engines_request(service):
    before = stats(service).aborted
    with stream(service.hanging, "Who shot Alba?") as reply:
        told = events(reply)
        read_until_it_hangs(told)
    wait_until(lambda: not stats(service).running, "the end of the request", seconds=60)
    assert stats(service).aborted == before + 1


def test_a_client_that_gives_up_waiting_for_a_whole_answer_aborts_the_engines_request(service):
    before = stats(service).aborted

    def gave_up():
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{service.hanging}/v1/reason", json={"question": "Who shot Alba?"}, timeout=1)
        return stats(service).aborted > before  # waits for the engine's only place to be free

    wait_until(gave_up, "a request that began before its client left", seconds=60)


def test_beyond_a_full_queue_a_question_is_refused_and_those_that_wait_are_answered(service):
    def one_of_many():
        with stream(service.hanging, "Who shot Alba?") as reply:
            if reply.status_code != 200:
                return (*code_of(reply), reply.headers["retry-after"])
            return next(events(reply))[0]

    with ThreadPoolExecutor(3) as pool:
        with stream(service.hanging, "Who shot Alba?") as reply:
            told = events(reply)
            read_until_it_hangs(told)
            waiting = {pool.submit(one_of_many) for _ in range(3)}
            refused = set()
            while len(refused) < 2:
                done, waiting = wait(waiting, timeout=60, return_when=FIRST_COMPLETED)
                assert done
                refused |= done
            assert [one.result() for one in refused] == [(429, "overloaded", "2")] * 2
            assert httpx.get(f"{service.hanging}/readyz", timeout=10).status_code == 200  # busy is not dead
        assert [one.result(timeout=60) for one in waiting] == ["step_started"]


# ---- the command


@contextmanager
def command(folder, port, **environ):
    """`steper serve` with these variables, until the block's end: its base URL and the file of its log."""
    config = small_config(folder / "run", f"serve.port={port}")
    config.save(folder)
    assert load_config(folder / "config.yaml") == config
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    call = [sys.executable, "-m", "steper_ray.cli.main", "serve", "--config", str(folder / "config.yaml")]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(call, stdout=out, stderr=subprocess.STDOUT, env=kept | environ)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(
            lambda: answers(f"{url}/readyz"),
            "the service",
            in_vain=lambda: None if process.poll() is None else log.read_text(),
            every=0.2,
        )
        yield url, log
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=120)
    assert code == 0, log.read_text()
    assert "stopping" in log.read_text()


QUESTION = '{"question": "Where does Zyxwvut live?", "max_steps": 1}'


def test_the_command_serves_behind_its_token_logs_no_question_and_ends_orderly(tmp_path):
    with command(tmp_path, free_port(), STEPER_API_TOKEN=TOKEN) as (url, log):
        for shown in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer ünïcode".encode()):
            assert code_of(post(url, QUESTION, authorization=shown)) == (401, "unauthorized")
        assert post(url, QUESTION, authorization=f"Bearer {TOKEN}").status_code == 200
    text = log.read_text()
    assert "Zyxwvut" not in text
    assert TOKEN not in text


def test_the_command_serves_behind_haproxy_too_where_only_this_machine_reaches_it(tmp_path):
    # Ports of its own for what HAProxy tells of itself: their usual ones may be taken on this machine.
    settings = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}
    # Else a replica waits half a minute before it ends.
    settings["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "1"
    with command(tmp_path, free_port(), RAY_SERVE_ENABLE_HA_PROXY="1", **settings) as (url, log):
        assert answers(
            f"http://127.0.0.1:{settings['RAY_SERVE_HAPROXY_METRICS_PORT']}/metrics"
        )  # it is HAProxy
        assert post(url, QUESTION).json()["steps"][0]["reasoning"]
        with httpx.stream("POST", f"{url}/v1/reason", json=json.loads(QUESTION) | {"stream": True}) as reply:
            assert [name for name, _ in events(reply)][-1] == "answer"
    assert "Zyxwvut" not in log.read_text()
