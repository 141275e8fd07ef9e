"""The endpoint with keys and limits, over an engine of scripted parts and a clock that stands still."""

import hashlib

from fastapi.testclient import TestClient
from local_endpoint import ABOUT, GREEDY, LIMITS, QUESTION

from steper_ray.config import CallerLimits, IdempotencyConfig
from steper_ray.serving.keys import KeyEntry
from steper_ray.serving.ledger import LocalLedger
from steper_ray.serving.web import WebSettings, make_app

ASK = {"question": QUESTION}
CHAT = {"model": "test", "messages": [{"role": "user", "content": QUESTION}]}
BODIES = [
    ("/v1/reason", ASK),
    ("/v1/reason", ASK | {"stream": True}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"stream": True}),
]


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def entry(name, key=None, **limits):
    return KeyEntry(
        name=name, sha256=hashlib.sha256((key or f"key-of-{name}").encode()).hexdigest(), **limits
    )


def bearer(name):
    return {"authorization": f"Bearer key-of-{name}"}


def guarded_app(engine, *keys, clock=None, token=None, ledger=None, store=None, keys_file=None, **limits):
    """`limits` are those of callers without their own."""
    store = IdempotencyConfig(**(store or {}))
    settings = WebSettings(
        LIMITS, ABOUT, (QUESTION,), 60.0, token, GREEDY, tuple(keys), keys_file, CallerLimits(**limits), store
    )
    return make_app(engine, settings, ledger or LocalLedger(80.0, store, clock or Clock()))


def guarded(engine, *keys, **options):
    app = guarded_app(engine, *keys, **options)
    return TestClient(
        app, base_url="http://127.0.0.1", client=("127.0.0.1", 5000), raise_server_exceptions=False
    )
