"""Request bodies: who may send one, how large, for how long, and how many unfinished ones there may be."""

import asyncio

import pytest
from local_endpoint import ABOUT, ASK, GREEDY, LIMITS, SECRET, LocalEngine, client, error_of, replies
from starlette.responses import PlainTextResponse

from steper_ray.serving import bodies
from steper_ray.serving.bodies import Bodies
from steper_ray.serving.web import WebSettings, make_app


class Upload:
    """One request whose body comes when the test sends it."""

    def __init__(self, app, client="10.0.0.1", path="/v1/reason", method="POST", headers=()):
        self.messages, self.sent = asyncio.Queue(), []
        self.scope = {
            "type": "http", "method": method, "path": path, "headers": list(headers), "client": (client, 1),
            "query_string": b"", "root_path": "", "scheme": "http", "server": ("127.0.0.1", 80),
        }  # fmt: skip
        self.read = 0
        self.task = asyncio.create_task(app(self.scope, self._receive, self._send))

    async def _receive(self):
        self.read += 1
        return await self.messages.get()

    async def _send(self, message):
        self.sent.append(message)

    def piece(self, body=b"{", more=True):
        self.messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def status(self):
        await self.task
        return self.sent[0]["status"] if self.sent else None


async def echo(scope, receive, send):
    message = await receive()
    await PlainTextResponse(message["body"])(scope, receive, send)


def limited(**settings):
    return Bodies(echo, frozenset(("/v1/reason",)), max_bytes=100, **settings)


async def pause():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_nothing_is_read_of_a_body_without_the_token():
    app = make_app(LocalEngine([]), WebSettings(LIMITS, ABOUT, (), 60.0, SECRET, GREEDY))
    for path in ("/", "/healthz", "/v1/reason", "/v1/models"):
        upload = Upload(app, path=path, headers=[(b"content-length", b"50")])
        assert (await upload.status(), upload.read) == (401, 0)


@pytest.mark.parametrize("header", [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")])
async def test_a_path_without_a_body_refuses_one_at_once(header):
    app = make_app(LocalEngine([]), WebSettings(LIMITS, ABOUT, (), 60.0, SECRET, GREEDY))
    token = (b"authorization", f"Bearer {SECRET}".encode())
    for method, path in (("GET", "/v1/reason"), ("GET", "/healthz"), ("POST", "/"), ("POST", "/v1/models")):
        upload = Upload(app, path=path, method=method, headers=[header, token])
        assert (await upload.status(), upload.read) == (413, 0)
    assert error_of(client(LocalEngine([])).request("GET", "/v1/models", json=ASK))[:2] == (
        413,
        "body_too_large",
    )


async def test_a_body_that_is_not_complete_in_time_is_given_up():
    upload = Upload(limited(timeout_s=0.05))
    upload.piece()
    assert await upload.status() == 408


async def test_a_whole_body_is_handed_on_in_one_message_and_one_that_ends_early_is_not():
    whole, left = Upload(limited()), Upload(limited())
    whole.piece(b'{"a"')
    whole.piece(b": 1}", more=False)
    assert await whole.status() == 200
    assert whole.sent[1]["body"] == b'{"a": 1}'
    left.piece()
    left.messages.put_nowait({"type": "http.disconnect"})
    assert await left.status() is None


async def test_one_more_unfinished_body_gives_up_the_clients_oldest_and_no_other_clients():
    app = limited()
    other = Upload(app, client="10.0.0.2")
    slow = [Upload(app) for _ in range(bodies.PER_CLIENT)]
    await pause()
    assert not any(upload.task.done() for upload in (other, *slow))
    asking = Upload(app)
    asking.piece(b"{}", more=False)
    assert await asking.status() == 200
    assert await slow[0].status() == 408
    assert not any(upload.task.done() for upload in (other, *slow[1:]))
    for upload in (other, *slow[1:]):
        upload.piece(b"{}", more=False)
        assert await upload.status() == 200


async def test_unfinished_bodies_of_all_clients_are_bounded(monkeypatch):
    monkeypatch.setattr(bodies, "TOTAL", 3)
    app = limited()
    slow = [Upload(app, client=f"10.0.0.{number}") for number in range(3)]
    await pause()
    last = Upload(app, client="10.0.0.9")
    assert await slow[0].status() == 408
    for upload in (*slow[1:], last):
        upload.piece(b"{}", more=False)
        assert await upload.status() == 200


def test_the_token_is_compared_whole():
    app = client(LocalEngine(replies()), token=SECRET)
    for shown in (SECRET[:-1], SECRET + "x", ""):
        reply = app.post("/v1/reason", json=ASK, headers={"authorization": f"Bearer {shown}".encode()})
        assert error_of(reply)[0] == 401
