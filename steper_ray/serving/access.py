"""Authentication and security headers: ASGI middleware around the whole application. No Ray.

- With a token, every path but the page and the health checks asks for it; without one, only this machine is served.
- A refusal comes before anything of the body is read.
- A second Host header, or a target of another form than a path, is refused: which host is meant would be a guess.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steper_ray.serving.api import Problem

#: Health checks need no token and may come from other machines; they say that the service runs, nothing else.
PROBES = frozenset(("/healthz", "/readyz"))
#: The page itself is public; the data that it shows needs the token.
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
    method: str, path: str, headers: Mapping[str, str], client: str | None, token: str | None
) -> None:
    """Raises Problem unless the request may go on. `client` is the address of the other end of the connection."""
    reads = method in ("GET", "HEAD")
    if reads and path in PROBES:
        return
    if token is None:
        _check_loopback(headers, client)
    elif not (reads and (path in PAGE or path.startswith(PAGE_FILES))):
        _check_token(headers.get("authorization", ""), token)


def _check_token(header: str, token: str) -> None:
    scheme, _, shown = header.partition(" ")
    # As bytes: headers are decoded as latin-1, and the comparison takes the same time for every token.
    right = hmac.compare_digest(shown.strip().encode("latin-1"), token.encode())
    if scheme.lower() != "bearer" or not right:
        message = "a valid token is needed: Authorization: Bearer <token>"
        raise Problem(401, "unauthorized", message, {"www-authenticate": "Bearer"})


def _check_loopback(headers: Mapping[str, str], client: str | None) -> None:
    forwarded = any(name in headers for name in FORWARDED)
    # The Host too: a foreign page whose name is pointed at 127.0.0.1 would be a client of this machine.
    if forwarded or not is_loopback(client) or not is_loopback(_host(headers.get("host", ""))):
        message = "this server has no token set, so it serves only clients of the same machine"
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
    """Refuses requests without access, and adds the security headers to every reply."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

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

        client, headers = scope["client"][0] if scope.get("client") else None, Headers(scope=scope)
        try:
            if len(headers.getlist("host")) > 1 or not scope["path"].startswith("/"):
                raise Problem(
                    400, "invalid_request", "a request has one Host header, and a path as its target"
                )
            check_access(scope["method"], path_of(scope), headers, client, self._token)
        except Problem as problem:
            await problem_response(problem)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)


def path_of(scope: Scope) -> str:
    """The path within the application: behind a route prefix the scope's path begins with it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def problem_response(problem: Problem) -> Response:
    """The reply for a problem. It has the security headers itself: a fault is answered outside of all middleware."""
    headers = {**SECURITY_HEADERS, "cache-control": "no-store", **problem.headers}
    return Response(problem.body.model_dump_json(), problem.status, headers, "application/json")
