"""Who is let in, how much is read from him, and what a browser is told: ASGI middleware around the whole app.

Where there are keys (the server's token is one) one of them must be shown; with none only this machine is served.
Refusals come before a body is read. It knows no route and no Ray.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steper_ray.serving.api import Problem
from steper_ray.serving.callers import Callers
from steper_ray.serving.keys import Caller, Keyring

#: Probes ask without a token and from other machines, and learn nothing but that the service is there.
PROBES = frozenset(("/healthz", "/readyz"))
#: The page itself is no secret: it asks for the token. Its data is behind it.
PAGE = frozenset(("/", "/openapi.json"))
PAGE_FILES = "/static/"
#: A request that carries one of these came through a proxy, so its client is not who connected.
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def check_access(
    path: str, headers: Mapping[str, str], client: str | None, keyring: Keyring
) -> Caller | None:
    """Who asks; None where that does not matter. Raises Problem unless the request may go on.

    `client` is the address of the other end.
    """
    if path in PROBES:
        return None
    if not keyring.guarded:
        _check_loopback(headers, client)
        return keyring.loopback
    if path in PAGE or path.startswith(PAGE_FILES):
        return None
    return _check_key(headers.get("authorization", ""), keyring)


def _check_key(header: str, keyring: Keyring) -> Caller:
    scheme, _, shown = header.partition(" ")
    # As bytes, and as they came: headers are decoded as latin-1.
    caller = keyring.find(shown.strip().encode("latin-1"))
    if scheme.lower() != "bearer" or caller is None:
        message = "a valid token is needed: Authorization: Bearer <token>"
        raise Problem(401, "unauthorized", message, {"www-authenticate": "Bearer"})
    return caller


def _check_loopback(headers: Mapping[str, str], client: str | None) -> None:
    forwarded = any(name in headers for name in FORWARDED)
    # The Host too: a foreign page whose name is pointed at 127.0.0.1 would be a client of this machine.
    if forwarded or not is_loopback(client) or not is_loopback(_host(headers.get("host", ""))):
        message = "this server has no token set, so it serves only clients of its own machine"
        raise Problem(403, "loopback_only", message)


def _host(header: str) -> str:
    """The name or address of a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def is_loopback(host: str | None) -> bool:
    """Whether a name or an address is one by which a machine reaches itself alone."""
    if host is None:
        return False
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


class Access:
    """Turns away who may not come in, and adds the security headers to every answer.

    The scope's state tells the others who the `caller` is.
    """

    def __init__(self, app: ASGIApp, callers: Callers) -> None:
        self._app, self._callers = app, callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        client = scope["client"][0] if scope.get("client") else None
        try:
            # Behind a route prefix the scope's path has it in front.
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            caller = check_access(path, Headers(scope=scope), client, await self._callers.now())
        except Problem as problem:
            await problem_response(problem)(scope, receive, send_with_headers)
        else:
            scope = {**scope, "state": {**scope.get("state", {}), "caller": caller}}
            await self._app(scope, receive, send_with_headers)


class BodyLimit:
    """Refuses a body of more than `max_bytes`, by its declared length or as soon as so much has come."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem = Problem(413, "body_too_large", f"the body may have {self._max} bytes at most")
        declared = Headers(scope=scope).get("content-length", "0")
        # 12 digits: Python refuses to read a number of thousands of them.
        if not declared.isdecimal() or len(declared) > 12 or int(declared) > self._max:
            await problem_response(problem)(scope, receive, send)
            return
        read = 0

        async def receive_some() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max:
                raise problem
            return message

        await self._app(scope, receive_some, send)


def problem_response(problem: Problem) -> Response:
    # With the security headers: a fault is answered outside of all middleware.
    headers = {**SECURITY_HEADERS, "cache-control": "no-store", **problem.headers}
    return Response(problem.body.model_dump_json(), problem.status, headers, "application/json")
