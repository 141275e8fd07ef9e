"""An S3-compatible server of this machine (moto's), which processes reach by the usual variables of the environment."""

import logging
import os
import random
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

BUSY = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"


@dataclass
class Weather:
    """What happens to requests: a `share` of them is refused, answered half, or done with its answer lost.

    At most `in_a_row` faults follow one another, so that five tries of a client are enough.
    """

    app: Callable[..., Iterable[bytes]]
    share: float = 0.0
    seed: int = 0
    in_a_row: int = 2
    faults: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _since: int = 0

    def begin(self, share: float, seed: int) -> None:
        self.share, self._rng, self.faults = share, random.Random(seed), {}

    def _drawn(self) -> str | None:
        with self._lock:
            if not self.share or self._since >= self.in_a_row or self._rng.random() >= self.share:
                self._since = 0
                return None
            self._since += 1
            kind = self._rng.choice(("refused", "half", "lost"))
            self.faults[kind] = self.faults.get(kind, 0) + 1
            return kind

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        kind = self._drawn()
        if kind is None:
            return self.app(environ, start)
        if kind == "refused":
            start("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(BUSY)))])
            return [BUSY]
        answered: list[Any] = []
        body = b"".join(self.app(environ, lambda status, headers, *_: answered.extend((status, headers))))
        if kind == "half" and len(body) > 1:
            start(*answered)  # with the length of the whole
            return [body[: len(body) // 2]]
        start("500 Internal Server Error", [("Content-Length", "0")])
        return []


@contextmanager
def object_store() -> Iterator[tuple[str, Weather]]:
    """Yields the URL of a bucket and its weather. One server a process: clients keep the address they began with."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    weather = Weather(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, weather, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    bucket = f"runs-{uuid.uuid4().hex[:8]}"
    httpx.put(f"{address}/{bucket}").raise_for_status()
    try:
        yield f"s3://{bucket}", weather
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        server.shutdown()
        thread.join()
