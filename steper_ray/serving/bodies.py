"""Reads request bodies within limits of size, time and number: ASGI middleware behind `Access`. No Ray.

- A path that takes no body refuses one at once, unread.
- A body that is too large, by its declared length or by what came, is refused (413); one that is not complete after
  `timeout_s` seconds is given up (408).
- A client has at most PER_CLIENT unfinished bodies, all clients together TOTAL: one more gives up the oldest, so that
  slow bodies never keep a complete request waiting.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steper_ray.serving.access import path_of, problem_response
from steper_ray.serving.api import Problem

TIMEOUT_S = 10.0
PER_CLIENT = 64
TOTAL = 1024


class Bodies:
    """Hands the application complete bodies of at most `max_bytes`; `paths` are those that take one."""

    def __init__(
        self, app: ASGIApp, paths: frozenset[str], max_bytes: int, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._app, self._paths, self._max, self._timeout_s = app, paths, max_bytes, timeout_s
        self._unfinished: list[tuple[str, asyncio.Timeout]] = []  # the oldest first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            declared = headers.get("content-length", "0")
            if scope["method"] != "POST" or path_of(scope) not in self._paths:
                if declared != "0" or "transfer-encoding" in headers:
                    raise Problem(413, "body_too_large", "this path takes no body")
                body: bytes | None = b""
            else:
                self._check_size(declared)
                body = await self._read(scope, receive)
        except Problem as problem:
            await problem_response(problem)(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _again(body, receive), send)

    def _check_size(self, declared: str) -> None:
        # 12 digits: Python refuses to read a number of thousands of them.
        if not declared.isdecimal() or len(declared) > 12 or int(declared) > self._max:
            raise Problem(413, "body_too_large", f"the body may have at most {self._max} bytes")

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client left before its end. Raises Problem."""
        client = scope["client"][0] if scope.get("client") else ""
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                reading = (client, limit)
                self._make_room(client)
                self._unfinished.append(reading)
                try:
                    return await self._whole(receive)
                finally:
                    if reading in self._unfinished:
                        self._unfinished.remove(reading)
        except TimeoutError:
            message = f"the body was not complete after {self._timeout_s:g} s, or others were waiting"
            raise Problem(408, "body_timeout", message, {"connection": "close"}) from None

    async def _whole(self, receive: Receive) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            self._check_size(str(len(body)))
            if not message.get("more_body", False):
                return bytes(body)

    def _make_room(self, client: str) -> None:
        own = [reading for reading in self._unfinished if reading[0] == client]
        full = own if len(own) >= PER_CLIENT else self._unfinished
        if len(own) >= PER_CLIENT or len(self._unfinished) >= TOTAL:
            oldest = full[0]
            self._unfinished.remove(oldest)
            oldest[1].reschedule(asyncio.get_running_loop().time())


def _again(body: bytes, receive: Receive) -> Receive:
    """The body in one message, then whatever comes: the client may leave."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
