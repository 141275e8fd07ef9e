"""How far a build is: a bar on a terminal, a line now and then elsewhere. Knows no pipeline."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

from steper_ray.distillation.filtering import Match, drop_reason
from steper_ray.schema import Trajectory

_SECONDS_BETWEEN_LINES = 10.0


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


class Progress:
    """A context in which `advance` tells of work done. Rates leave out what was done before."""

    def __init__(
        self,
        total: int,
        done: int,
        stream: TextIO = sys.stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._before, self._work = total, done, Work()
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

    def advance(self, work: Work) -> None:
        self._work += work
        now = self._clock()
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates(now), refresh=False)
            self._bar.update(work.questions)
            return
        if self._done >= self._total or now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            self._stream.write(self._line(now) + "\n")
            self._stream.flush()

    @property
    def _done(self) -> int:
        return self._before + self._work.questions

    def _rates(self, now: float) -> str:
        """Right answers, steps and tokens of this run; what the engine's prefix cache gave, where it gave anything."""
        work, seconds = self._work, max(now - self._start, 1e-9)
        told = f"{work.right} right, {work.steps / seconds:.1f} steps/s"
        if work.completion_tokens:
            told += f", {work.completion_tokens / seconds:,.0f} tokens/s"
        if work.cached_tokens:
            told += f", {100 * work.cached_tokens / work.prompt_tokens:.0f} % of prompts cached"
        return told

    def _line(self, now: float) -> str:
        rate = self._work.questions / max(now - self._start, 1e-9)
        left = (self._total - self._done) / rate if rate else float("inf")
        share = 100 * self._done // self._total
        done = f"{self._done} of {self._total} questions ({share} %)"
        return f"trajectories: {done}, {rate:.1f}/s, {left:.0f} s left; {self._rates(now)}"
