"""The endpoint against made-up requests: those its own OpenAPI document allows and forbids, and plain noise.

Every answer has a status, a type and a form that the document knows, and no request is a fault of the server.
"""

import asyncio
import os
from collections import Counter

import hypothesis.configuration
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from local_endpoint import ABOUT, GREEDY, LIMITS, QUESTION, LocalEngine
from malformed import malformed, put
from schemathesis import Config, GenerationMode

from steper_ray.serving.web import WebSettings, make_app
from steper_ray.serving.wire import ErrorBody

SETTINGS = settings(
    max_examples=25, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
OPERATIONS = [
    ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/v1/about"), ("GET", "/v1/examples"),
    ("GET", "/v1/models"), ("GET", "/v1/models/{model}"), ("POST", "/v1/reason"),
    ("POST", "/v1/chat/completions"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def no_files(tmp_path_factory):
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


#: Beyond the usual refusals: a question that is too long; in a chat, what no schema can tell (fields that exclude each
#: other, an empty question).
CHECKS = {
    "checks": {
        "negative_data_rejection": {"expected-statuses": ["400", "401", "403", "404", "413", "415", "422"]},
        "positive_data_acceptance": {"expected-statuses": ["200", "400", "404"]},
    }
}


def has_whole_float(value):
    """JSON Schema takes 1.0 for an integer; the endpoint converts nothing."""
    if isinstance(value, dict | list):
        return any(map(has_whole_float, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and value.is_integer()


class Always(list):
    def __getitem__(self, number):
        return "So the answer is: Cem."


def endpoint(token=None):
    """The app, asked from this machine whatever its client calls itself."""
    engine = LocalEngine([])
    engine.generator._replies = engine.other._replies = Always()
    app = make_app(engine, WebSettings(LIMITS, ABOUT, (QUESTION,), 60.0, token, GREEDY))

    async def local(scope, receive, send):
        if scope["type"] == "http":
            headers = [(b"host", b"localhost"), *(h for h in scope["headers"] if h[0] != b"host")]
            scope = {**scope, "client": ("127.0.0.1", 5000), "headers": headers}
        await app(scope, receive, send)

    return app, local


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [(*operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
    + [("POST", path, GenerationMode.NEGATIVE) for path in ("/v1/reason", "/v1/chat/completions")],
)
@pytest.mark.parametrize("guarded", [False, True])
def test_answers_are_what_the_document_says(guarded, method, path, mode):
    app, local = endpoint("token-a" if guarded else None)
    schema = schemathesis.openapi.from_dict(app.openapi(), config=Config.from_dict(CHECKS))
    schema.app = local
    assert {(o.ok().method.upper(), o.ok().path) for o in schema.get_all_operations()} == set(OPERATIONS)
    operation = schema[path][method]
    headers = {"Authorization": "Bearer token-a"} if guarded else {}

    @SETTINGS
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        hypothesis.assume(not has_whole_float(case.body))
        case.call_and_validate(headers=headers)

    check()


@pytest.mark.parametrize("guarded", [False, True])
async def test_noise_is_refused_in_the_one_form_and_is_never_a_fault(guarded, caplog):
    """STEPER_FUZZ is how many requests each of the two apps gets."""
    count = int(os.environ.get("STEPER_FUZZ", "5000"))
    app, _ = endpoint("token-a" if guarded else None)
    seen = Counter()
    for number, sent in enumerate(malformed(17 + guarded, count)):
        async with asyncio.timeout(20):
            status, headers, body = await put(app, sent) or (None, {}, b"")
        seen[status] += 1
        where = f"request {number}: {sent!r:.2000} got {status} {body[:500]!r}"
        if status is None:
            assert sent.leaves, where
            continue
        assert status == 200 or 400 <= status < 500, where
        assert headers["content-security-policy"], where
        assert headers["x-content-type-options"] == "nosniff", where
        if status != 200 and sent.method != "HEAD":
            assert headers["content-type"] == "application/json", where
            assert ErrorBody.model_validate_json(body), where
            assert b"Traceback" not in body, where
    wanted = {200, 400, 404, 405, 413, 415, 422} | ({401} if guarded else {403})
    assert wanted <= set(seen), seen
    assert "a request failed" not in caplog.text
