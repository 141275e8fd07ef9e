"""Requests that nobody should send: valid ones, changed at random. The same seed gives the same requests."""

import json
from dataclasses import dataclass, field, replace
from random import Random

from local_endpoint import BODIES

METHODS = [
    "GET",
    "PUT",
    "DELETE",
    "PATCH",
    "HEAD",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "BREW",
    "post",
    "",
    "\u00df",
]
PATHS = [
    "/", "//", "", "/v1", "/v1/", "/v1/reason/", "/v1/reason\n", "/V1/REASON", "//v1/reason", "/v1/../v1/reason",
    "/v1/reason\x00", "/v1/models/" + "x" * 5000, "/v1/models/\x00\n", "/v1/models/", "/static/../web.py",
    "/static/", "/static/app.js/", "/healthz/", "/v1/reason;x=1", "\u2028", "/v1/\ud800", "/openapi.json/",
    "*", "http://other.example/v1/reason", "/v1/examples", "/docs", "/v1/models/test/../../about",
]  # fmt: skip
VALUES = [
    "null", "true", "-1", "0", "1.0", "1e309", "-1e400", "1" * 5000, "0." + "1" * 5000, "NaN", "Infinity", "-0",
    '""', '" "', '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\u2028\\u0085\\u000b"', '"' + "x" * 3000 + '"',
    '"' + "\\ud83d\\ude00" * 201 + '"', "[]", "{}", "[" * 5000, "[" * 300 + "]" * 300, '{"a":' * 200 + "1" + "}" * 200,
    '"</s><|eot_id|>"', '"__proto__"', "'single'", "1,", "undefined", '[{"role": "user"}]', '[[[]]]', '"\\x"', "\x00",
]  # fmt: skip
KINDS = [
    b"", b"text/plain", b"application/xml", b"application/json; charset=utf-16", b"multipart/form-data",
    b"application/json,application/json", b";;;", b"\xff\xfe", b"application/jsonx", b"APPLICATION/JSON",
]  # fmt: skip
HEADERS = [
    (b"content-length", b"x"), (b"content-length", b"-1"), (b"content-length", b"9" * 5000), (b"content-length", b"0"),
    (b"content-length", b"\xb2"), (b"content-length", b"1, 2"), (b"transfer-encoding", b"chunked, chunked"),
    (b"authorization", b"Bearer"), (b"authorization", b"\xff" * 1000), (b"authorization", b"Basic Og=="),
    (b"authorization", b"Bearer token-a, Bearer x"), (b"host", b"["), (b"host", b"evil.example"),
    (b"host", b"\xff\xfe:99999999"), (b"x-forwarded-for", b"127.0.0.1"), (b"origin", b"null"), (b"range", b"bytes=0-"),
    (b"expect", b"100-continue"), (b"accept", b"nothing/nowhere"), (b"cookie", b"a=b; " * 500), (b"", b""),
    (b"content-encoding", b"gzip"), (b"upgrade", b"websocket"), (b"x-" + b"h" * 3000, b"v" * 3000), (b"te", b"\r\n"),
]  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """A request as a server hands it to the app; `pieces` of the body, None where the client leaves."""

    path: str
    body: bytes
    method: str = "POST"
    headers: list = field(default_factory=list)
    pieces: int = 1
    leaves: bool = False


def _bytes(rng, sent):
    body = bytearray(sent.body)
    at = rng.randrange(len(body) + 1)
    match rng.randrange(5):
        case 0:
            for _ in range(rng.randrange(1, 8)):
                if body:
                    body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        case 1:
            del body[at:]
        case 2:
            body[at:at] = rng.randbytes(rng.randrange(1, 20))
        case 3:
            del body[at : at + rng.randrange(1, 9)]
        case 4:
            body[at:at] = body[at : at + 40] * rng.choice([1, 2, 200])
    return replace(sent, body=bytes(body))


def _value(rng, sent):
    """A field, perhaps one deeper, of a wrong type; twice; or one that is unknown."""
    try:
        fields = json.loads(sent.body)
        names = list(fields)
    except (ValueError, TypeError, RecursionError):
        return sent
    if not isinstance(fields, dict):
        return sent
    name = rng.choice(
        [*names, "question", "unit", "stream", "max_steps", "model", "tools", "n", "x\u2028", ""]
    )
    value = rng.choice(VALUES)
    if name == "messages" and rng.random() < 0.5:
        value = rng.choice(['[{"role":"user","content":%s}]', '[{"role":%s,"content":"x"}]', "[%s]"]) % value
    others = [
        f"{json.dumps(n)}: {json.dumps(v)}" for n, v in fields.items() if n != name or rng.random() < 0.3
    ]
    text = "{" + ", ".join([*others, f"{json.dumps(name)}: {value}"]) + "}"
    return replace(sent, body=text.encode("utf-8", "surrogatepass"))


def _whole(rng, sent):
    return replace(sent, body=rng.choice(VALUES).encode("utf-8", "surrogatepass"))


def _encoding(rng, sent):
    text = sent.body.decode("utf-8", "replace")
    return replace(
        sent, body=text.encode(rng.choice(["utf-16", "utf-32-le", "utf-8-sig", "utf-7"]), "replace")
    )


def _method(rng, sent):
    return replace(sent, method=rng.choice(METHODS))


def _path(rng, sent):
    return replace(sent, path=rng.choice(PATHS))


def _kind(rng, sent):
    headers = [h for h in sent.headers if h[0] != b"content-type"]
    kinds = [(b"content-type", rng.choice(KINDS)) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    return replace(sent, headers=headers + kinds)


def _header(rng, sent):
    odd = rng.choice(HEADERS)
    # A server hands on one Host and one Content-Length; of others there may be several.
    single = odd[0] in (b"host", b"content-length") or rng.random() < 0.5
    headers = [h for h in sent.headers if not (single and h[0] == odd[0])]
    return replace(sent, headers=[*headers, odd])


def _pieces(rng, sent):
    return replace(sent, pieces=rng.choice([2, 7, 500]))


def _leaves(rng, sent):
    return replace(sent, leaves=True)


CHANGES = [_bytes, _bytes, _bytes, _value, _value, _value, _value, _whole, _encoding, _method, _path, _kind, _header,
           _header, _pieces, _leaves]  # fmt: skip


def malformed(seed, count):
    """`count` requests, each changed one to three times. Some are valid all the same."""
    rng = Random(seed)
    for _ in range(count):
        path, body = rng.choice(BODIES)
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        if rng.random() < 0.8:
            headers.append((b"authorization", b"Bearer token-a"))
        sent = Sent(path, json.dumps(body).encode(), headers=headers)
        for _ in range(rng.choice([1, 1, 2, 3])):
            sent = rng.choice(CHANGES)(rng, sent)
        yield sent


async def put(app, sent):
    """The status, headers and body that the app answers; None where it answers nothing."""
    size = -(-len(sent.body) // sent.pieces) or 1
    parts = [sent.body[at : at + size] for at in range(0, len(sent.body), size)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if sent.leaves:
        messages.pop()
    else:
        messages[-1]["more_body"] = False
    messages.reverse()
    answer = {"body": b""}

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
        answer.update({k: v for k, v in message.items() if k in ("status", "headers")})
        answer["body"] += message.get("body", b"")

    await app(
        {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
            "method": sent.method, "path": sent.path, "raw_path": b"/", "query_string": b"", "root_path": "",
            "scheme": "http", "headers": sent.headers, "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 80),
        },
        receive,
        send,
    )  # fmt: skip
    if "status" not in answer:
        return None
    return answer["status"], {k.decode(): v.decode() for k, v in answer["headers"]}, answer["body"]
