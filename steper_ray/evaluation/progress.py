"""How far an evaluation is: a bar on a terminal, now and then a line elsewhere. Both tell what is left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

_LINE_EVERY_S = 15.0


class Progress:
    """Counts questions. `stream` is stderr. Says nothing unless `shown`."""

    def __init__(self, total: int, stream: Any = None, *, shown: bool = True) -> None:
        self._stream, self._shown = stream or sys.stderr, shown
        self._total, self._done = total, 0
        self._started = self._told = time.monotonic()
        on_terminal = shown and self._stream.isatty()
        self._bar = tqdm(
            total=total, desc="evaluate", unit="question", file=self._stream, disable=not on_terminal
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, questions: int, what: str) -> None:
        """`questions` more are done; `what` names the job they belong to."""
        self._done += questions
        self._bar.set_postfix_str(what, refresh=False)
        self._bar.update(questions)
        now = time.monotonic()
        if (
            self._shown
            and self._bar.disable
            and (now - self._told >= _LINE_EVERY_S or self._done == self._total)
        ):
            self._told = now
            left = (now - self._started) * (self._total - self._done) / max(self._done, 1)
            print(
                f"evaluate: {self._done}/{self._total} questions ({what}), about {left:.0f} s left",
                file=self._stream,
                flush=True,
            )
