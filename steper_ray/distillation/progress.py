"""How far a build is: a bar on a terminal, a line now and then elsewhere. Knows no pipeline."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A context in which `advance` tells of questions done. The rate leaves out what was done before."""

    def __init__(
        self,
        total: int,
        done: int,
        stream: TextIO = sys.stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._before, self._done = total, done, done
        self._stream, self._clock = stream, clock
        self._start = self._last = clock()
        self._bar = (
            tqdm(total=total, initial=done, unit=" questions", desc="trajectories", file=stream)
            if stream.isatty()
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, questions: int) -> None:
        self._done += questions
        if self._bar is not None:
            self._bar.update(questions)
            return
        now = self._clock()
        if self._done >= self._total or now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            self._stream.write(self._line(now) + "\n")
            self._stream.flush()

    def _line(self, now: float) -> str:
        rate = (self._done - self._before) / max(now - self._start, 1e-9)
        left = (self._total - self._done) / rate if rate else float("inf")
        share = 100 * self._done // self._total
        done = f"{self._done} of {self._total} questions ({share} %)"
        return f"trajectories: {done}, {rate:.1f}/s, {left:.0f} s left"
