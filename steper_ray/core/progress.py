"""The one progress bar: a bar on a terminal, a line every ten seconds elsewhere. Knows no stage.

Rates leave out what was done before the command started.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """`what` names the work; `done` of `total` units were done before. Silent unless `shown`."""

    def __init__(
        self,
        what: str,
        unit: str,
        total: int,
        done: int = 0,
        *,
        shown: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self._what, self._unit, self._before = what, unit, done
        self._stream, self._shown, self._clock = stream or sys.stderr, shown, clock
        self._start = self._last = clock()
        terminal = shown and self._stream.isatty()
        self._bar = (
            tqdm(total=total, initial=done, unit=f" {unit}", desc=what, file=self._stream)
            if terminal
            else None
        )

    @property
    def seconds(self) -> float:
        """Since the start, above 0."""
        return max(self._clock() - self._start, 1e-9)

    def show(self, done: int, note: str = "") -> None:
        """`done` units are done now, with a few words about them."""
        done = min(done, self.total)
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.n = done
            self._bar.refresh()
            return
        now = self._clock()
        if self._shown and (done >= self.total or now - self._last >= _SECONDS_BETWEEN_LINES):
            self._last = now
            self._stream.write(f"{self._what}: {self._line(done)}{'; ' if note else ''}{note}\n")
            self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _line(self, done: int) -> str:
        rate = (done - self._before) / self.seconds
        left = f"{(self.total - done) / rate:.0f} s left" if rate else "rate not known yet"
        share = 100 * done // max(self.total, 1)
        return f"{done} of {self.total} {self._unit} ({share} %), {rate:.1f}/s, {left}"
