"""Who may ask the engine now: many at once, and a question suspected of killing engines alone.

Knows event loops, no questions, no engine and no Ray.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Suspect:
    killed: int
    turn: asyncio.Future[bool]


class Turns:
    """At most `size` turns at once, first come, first served. Suspects go before all others, one by one, alone.

    One that has killed before goes first of them, so that it costs least, but only once `witnesses` other turns have
    ended well, if there are others: an engine that dies of anything must not be taken for one that died of this.
    """

    def __init__(self, size: int, witnesses: int = 1) -> None:
        self._size, self._witnesses = size, witnesses
        self._running = self._ended = 0
        self._alone = False
        self._others: deque[asyncio.Future[bool]] = deque()
        self._suspects: list[_Suspect] = []

    @asynccontextmanager
    async def turn(self, killed: int | None = None) -> AsyncIterator[bool]:
        """One turn, which yields whether it is alone. `killed` is None for what is no suspect.

        Waiting for it is not cancelled by anyone.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        if killed is None:
            self._others.append(turn)
        else:
            self._suspects.append(_Suspect(killed, turn))
        loop.call_soon(self._give)  # not at once: those that come together are compared
        yielded = await turn
        try:
            yield yielded
        finally:
            self._running -= 1
            self._ended += 1
            self._alone = False
            self._give()

    def _give(self) -> None:
        if self._suspects and not self._running:
            self._alone = True
            self._start(self._next_alone())
        while self._others and not self._suspects and not self._alone and self._running < self._size:
            self._start(self._others.popleft())

    def _start(self, turn: asyncio.Future[bool]) -> None:
        self._running += 1
        turn.set_result(self._alone)

    def _next_alone(self) -> asyncio.Future[bool]:
        worst = max(self._suspects, key=lambda suspect: suspect.killed)
        if worst.killed and self._ended < self._witnesses:
            least = min(self._suspects, key=lambda suspect: suspect.killed)
            if least.killed and self._others:
                return self._others.popleft()
            worst = least
        self._suspects.remove(worst)
        return worst.turn
