"""How far a build is: a bar on a terminal, a line now and then elsewhere. Knows no pipeline."""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TextIO

from tqdm import tqdm

from steper_ray.distillation.filtering import Match, drop_reason
from steper_ray.schema import Trajectory

_SECONDS_BETWEEN_LINES, _SECONDS_BETWEEN_LOOKS = 10.0, 1.0


@dataclass(slots=True)
class Work:
    """What some shards came to: questions, those with a right answer, steps, and tokens."""

    questions: int = 0
    right: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @classmethod
    def of(cls, questions: int, trajectories: Sequence[Trajectory], match: Match) -> Work:
        steps = [step for trajectory in trajectories for step in trajectory.steps]
        return cls(
            questions,
            len({t.question.id for t in trajectories if drop_reason(t, match) is None}),
            len(steps),
            sum(step.usage.prompt_tokens for step in steps),
            sum(step.usage.cached_tokens for step in steps),
            sum(step.usage.completion_tokens for step in steps),
        )

    def __iadd__(self, other: Work) -> Work:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


class Watched(Protocol):
    """What is under way beside the work that is told by `advance`."""

    @property
    def in_flight(self) -> int: ...

    @property
    def work(self) -> Work: ...

    def read(self) -> None: ...


class Progress:
    """A context in which `advance` tells of work done, and `watched` is read every second.

    Rates leave out what was done before.
    """

    def __init__(
        self,
        total: int,
        done: int,
        watched: Watched | None = None,
        stream: TextIO = sys.stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._before, self._work, self._watched = total, done, Work(), watched
        self._stream, self._clock = stream, clock
        self._start = self._last = clock()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._bar = (
            tqdm(total=total, initial=done, unit=" questions", desc="trajectories", file=stream)
            if stream.isatty()
            else None
        )

    def __enter__(self) -> Progress:
        if self._watched is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._watched is not None:
            self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def advance(self, work: Work, forget: Callable[[], None] = lambda: None) -> None:
        """Counts work done; `forget` takes it out of what is watched."""
        with self._lock:
            self._work += work
            forget()
            self._show()

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            with self._lock:
                assert self._watched is not None
                self._watched.read()
                self._show()

    def _show(self) -> None:
        now, work, in_flight = self._clock(), copy.copy(self._work), 0
        if self._watched is not None:
            work += self._watched.work
            in_flight = self._watched.in_flight
        done = self._before + work.questions
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates(work, in_flight, now), refresh=False)
            self._bar.n = done
            self._bar.refresh()
        elif self._before + self._work.questions >= self._total or now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            self._stream.write(self._line(done, work, in_flight, now) + "\n")
            self._stream.flush()

    def _rates(self, work: Work, in_flight: int, now: float) -> str:
        """Right answers, steps and tokens of this run; what the engine's prefix cache gave, where it gave anything."""
        seconds = max(now - self._start, 1e-9)
        told = f"{in_flight} in flight, " if in_flight else ""
        told += f"{work.right} right, {work.steps / seconds:.1f} steps/s"
        if work.completion_tokens:
            told += f", {work.completion_tokens / seconds:,.0f} tokens/s"
        if work.cached_tokens:
            told += f", {100 * work.cached_tokens / work.prompt_tokens:.0f} % of prompts cached"
        return told

    def _line(self, done: int, work: Work, in_flight: int, now: float) -> str:
        rate = work.questions / max(now - self._start, 1e-9)
        left = f"{(self._total - done) / rate:.0f} s left" if rate else "no end in sight yet"
        told = f"{done} of {self._total} questions ({100 * done // self._total} %), {rate:.1f}/s, {left}"
        return f"trajectories: {told}; {self._rates(work, in_flight, now)}"
