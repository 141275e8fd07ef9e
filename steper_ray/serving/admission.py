"""The limits of callers and the idempotency of their requests, over HTTP: ASGI middleware behind `Access`.

Both concern questions, that is every POST, and neither the page nor the probes. What they keep lies in the ledger.
They know no route and no Ray.
"""

from __future__ import annotations

import hashlib
import logging
import math
import uuid
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steper_ray.schema import Trajectory
from steper_ray.serving.access import problem_response
from steper_ray.serving.api import Problem, is_complete
from steper_ray.serving.idempotency import Reply
from steper_ray.serving.keys import LOOPBACK, Caller
from steper_ray.serving.ledger import Ledger
from steper_ray.serving.limits import Admission

logger = logging.getLogger(__name__)

KEY_HEADER = "idempotency-key"
REPLAYED_HEADER = "idempotent-replayed"


def caller_of(scope: Scope) -> Caller:
    """Whom `Access` let in."""
    caller: Caller = scope.get("state", {}).get("caller") or Caller(LOOPBACK)
    return caller


def check_length(request: Request, question: str) -> None:
    """Raises Problem for a question longer than its caller may ask."""
    most = caller_of(request.scope).limits.max_question_chars
    if most is not None and len(question) > most:
        message = f"question: with this key it may have {most} characters at most"
        raise Problem(413, "question_too_long", message, param="question")


def keep_if_complete(request: Request, trajectory: Trajectory) -> None:
    """Says of the answer that is about to be sent whether `Idempotency` may give it again."""
    request.state.complete = is_complete(trajectory)


class Quotas:
    """Holds each caller to his requests a minute and questions at once, and tells him what is left."""

    def __init__(self, app: ASGIApp, ledger: Ledger) -> None:
        self._app, self._ledger = app, ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = caller_of(scope)
        limits = caller.limits
        if not _is_question(scope) or (limits.requests_per_minute is None and limits.concurrent is None):
            await self._app(scope, receive, send)
            return
        place = uuid.uuid4().hex
        admission = await self._ledger.admit(caller.name, limits, place)
        told = _told(admission)
        if admission.over is not None:
            logger.info("refused a question of %s: over its limit", caller.name)
            wait = str(max(1, math.ceil(admission.retry_s)))
            what = "requests a minute" if admission.over == "requests" else "questions at once"
            message = f"the limit of {what} is reached; ask again in {wait} s"
            problem = Problem(429, "rate_limited", message, {"retry-after": wait, **told})
            await problem_response(problem)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(told)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            await self._ledger.release(caller.name, place)


def _told(admission: Admission) -> Mapping[str, str]:
    """As OpenAI's API tells it."""
    if admission.limit is None or admission.reset_s is None:
        return {}
    return {
        "x-ratelimit-limit-requests": str(admission.limit),
        "x-ratelimit-remaining-requests": str(admission.remaining),
        "x-ratelimit-reset-requests": _duration(admission.reset_s),
    }


def _duration(seconds: float) -> str:
    """Such as `1m30s`, `7.66s` or `120ms`; rounded up."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"


class Idempotency:
    """Gives the answer that a request with the same `Idempotency-Key` got before.

    An answer is kept as it was sent, a stream as its events: what is asked again gets the same bytes. What failed, or
    ended before its time, is not kept (see `keep_if_complete`): asked again, it is reasoned again.
    """

    def __init__(self, app: ASGIApp, ledger: Ledger, max_bytes: int) -> None:
        self._app, self._ledger, self._max = app, ledger, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if _is_question(scope) else Headers()
        if KEY_HEADER not in headers:
            await self._app(scope, receive, send)
            return
        try:
            key = _key(headers)
            body = await _body(receive)
        except Problem as problem:
            await problem_response(problem)(scope, receive, send)
            return
        if body is None:
            return
        await self._once(scope, key, body, _again(body, receive), send)

    async def _once(self, scope: Scope, key: str, body: bytes, receive: Receive, send: Send) -> None:
        caller, request = caller_of(scope).name, uuid.uuid4().hex
        claim = await self._ledger.begin(caller, key, _fingerprint(scope, body), request)
        match claim.state:
            case "unkept":
                await self._app(scope, receive, send)
            case "done" if claim.reply is not None:
                told = {REPLAYED_HEADER: "true"}
                reply = Response(claim.reply.body, 200, told, claim.reply.media_type)
                await reply(scope, receive, send)
            case "under_way":
                message = (
                    "the first request with this Idempotency-Key is still under way; ask again in a moment"
                )
                problem = Problem(409, "request_in_progress", message, {"retry-after": "1"}, KEY_HEADER)
                await problem_response(problem)(scope, receive, send)
            case "mismatch":
                message = "this Idempotency-Key came with another request before; use a new one"
                await problem_response(Problem(422, "idempotency_mismatch", message, param=KEY_HEADER))(
                    scope, receive, send
                )
            case _:
                await self._recorded(scope, receive, send, (caller, key, request))

    async def _recorded(
        self, scope: Scope, receive: Receive, send: Send, place: tuple[str, str, str]
    ) -> None:
        media_type, sent = "", bytearray()
        recording = kept = False
        scope = {**scope, "state": (state := {**scope.get("state", {}), "complete": False})}

        async def send_and_keep(message: Message) -> None:
            nonlocal media_type, recording, kept
            if message["type"] == "http.response.start":
                media_type = Headers(scope=message).get("content-type", "")
                recording = message["status"] == 200
            elif recording:
                sent.extend(message.get("body", b""))
                recording = len(sent) <= self._max
                # Before its end is sent: who has read it to the end finds it here.
                if recording and not message.get("more_body", False) and state["complete"]:
                    await self._ledger.finish(*place, Reply(media_type, bytes(sent)))
                    kept = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_keep)
        finally:
            if not kept:
                await self._ledger.free(*place)


def _is_question(scope: Scope) -> bool:
    # By the method alone: a router matches more paths than the obvious ones ('/v1/reason%0A').
    return scope["type"] == "http" and scope["method"] == "POST"


def _key(headers: Headers) -> str:
    values = headers.getlist(KEY_HEADER)
    key = values[0]
    if len(values) > 1 or not 1 <= len(key) <= 255 or not (key.isascii() and key.isprintable()):
        message = "Idempotency-Key: must be one value of 1 to 255 printable ASCII characters"
        raise Problem(400, "invalid_request", message, param=KEY_HEADER)
    return key


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None if the client left. Raises Problem, by `BodyLimit`."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that was read, in one message, then whatever comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def _fingerprint(scope: Scope, body: bytes) -> bytes:
    content_type = Headers(scope=scope).get("content-type", "")
    head = "\n".join((scope["path"], content_type)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(b"%d\n%s\n%s" % (len(head), head, body)).digest()
