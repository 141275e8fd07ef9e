"""What was answered under an idempotency key, so that a question asked again is not reasoned again.

As Stripe has it: the same key with the same request gets the first answer; while that is under way the second one is
told to wait; another request under the key is refused; what failed, or was no whole answer, frees the key. Pure: no
HTTP, no Ray.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from steper_ray.config.serve import IdempotencyConfig


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer of status 200, as it was sent. Of a stream `body` is all of its events."""

    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request finds under its key. `new`: it is to be answered, and the answer handed in; `unkept`: answered
    too, but there is no room to remember it."""

    state: Literal["new", "unkept", "done", "under_way", "mismatch"]
    reply: Reply | None = None


@dataclass(slots=True)
class _Entry:
    fingerprint: bytes
    request: str
    until: float
    reply: Reply | None = None


class IdempotencyStore:
    """`under_way_s`: longest time that a request may last; then its key is free, whatever became of its server."""

    def __init__(
        self, config: IdempotencyConfig, under_way_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config, self._under_way_s, self._clock = config, under_way_s, clock
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()  # the oldest first
        self._bytes = 0

    def begin(self, caller: str, key: str, fingerprint: bytes, request: str) -> Claim:
        """`fingerprint` tells what is asked, `request` is the name of this attempt. A `new` one is to end in `finish`
        or `free`."""
        now = self._clock()
        self._forget(now)
        entry = self._entries.get((caller, key))
        if entry is not None and entry.until <= now:
            self._drop((caller, key))
            entry = None
        if entry is not None:
            if entry.fingerprint != fingerprint:
                return Claim("mismatch")
            return Claim("under_way") if entry.reply is None else Claim("done", reply=entry.reply)
        if not self._make_room(now):
            return Claim("unkept")
        self._entries[caller, key] = _Entry(fingerprint, request, now + self._under_way_s)
        return Claim("new")

    def finish(self, caller: str, key: str, request: str, reply: Reply) -> None:
        """The answer of an attempt; passed over where the key has become another one's."""
        entry = self._entries.get((caller, key))
        if entry is None or entry.request != request or entry.reply is not None:
            return
        if len(reply.body) > self._config.max_bytes:
            self._drop((caller, key))
            return
        entry.reply, entry.until = reply, self._clock() + self._config.ttl_s
        self._entries.move_to_end((caller, key))
        self._bytes += len(reply.body)
        while self._bytes > self._config.max_bytes:
            self._drop(next(place for place, old in self._entries.items() if old.reply is not None))

    def free(self, caller: str, key: str, request: str) -> None:
        """The attempt came to nothing: the key may be used anew."""
        entry = self._entries.get((caller, key))
        if entry is not None and entry.request == request and entry.reply is None:
            self._drop((caller, key))

    def __len__(self) -> int:
        return len(self._entries)

    def _forget(self, now: float) -> None:
        """What is over, from the oldest on: an answer does not stay until others need its room."""
        while self._entries and next(iter(self._entries.values())).until <= now:
            self._drop(next(iter(self._entries)))

    def _make_room(self, now: float) -> bool:
        """Of what is over, else of the oldest answer. What is under way keeps its place."""
        if len(self._entries) < self._config.entries:
            return True
        over = [place for place, entry in self._entries.items() if entry.until <= now]
        if not over:
            over = [place for place, entry in self._entries.items() if entry.reply is not None][:1]
        for place in over:
            self._drop(place)
        return bool(over)

    def _drop(self, place: tuple[str, str]) -> None:
        entry = self._entries.pop(place)
        if entry.reply is not None:
            self._bytes -= len(entry.reply.body)
