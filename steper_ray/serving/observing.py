"""Records metrics and a trace span per question, never its text. No Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from steper_ray.reasoning import Event, Finished, ReasoningDelta
from steper_ray.schema import Trajectory
from steper_ray.serving.api import Problem
from steper_ray.serving.engine import Ask

logger = logging.getLogger(__name__)

CLIENT_LEFT = "client_left"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a question.

    `name`: the stop reason of an answer, the code of an error, or `client_left`. `seconds`: from the request to its
    end. `first_token_s`: until the first text of a stream, None for an answer in one piece.
    """

    name: str
    seconds: float
    first_token_s: float | None
    trajectory: Trajectory | None


class Observer(Protocol):
    """Called for every question; it must neither wait nor raise."""

    def began(self, ask: Ask) -> None: ...

    def ended(self, ask: Ask, outcome: Outcome) -> None: ...


class Watch:
    """One question under observation, from entering to leaving; the exception it leaves by, if any, is its outcome."""

    def __init__(self, observers: Sequence[Observer], ask: Ask) -> None:
        self._observers, self._ask = observers, ask
        self._started = time.monotonic()
        self._first_token_s: float | None = None
        self._trajectory: Trajectory | None = None
        self._problem: Problem | None = None

    def __enter__(self) -> Watch:
        for observer in self._observers:
            try:
                observer.began(self._ask)
            except Exception as error:
                _tell(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome = Outcome(
            self._name(error), time.monotonic() - self._started, self._first_token_s, self._trajectory
        )
        for observer in self._observers:
            try:
                observer.ended(self._ask, outcome)
            except Exception as failure:
                _tell(failure)

    def _name(self, error: BaseException | None) -> str:
        problem = error if isinstance(error, Problem) else self._problem
        if problem is not None:
            return problem.code
        if error is not None and not isinstance(error, asyncio.CancelledError | GeneratorExit):
            return "internal_error"
        # A stream that was closed before its end: nothing is raised then.
        return CLIENT_LEFT if self._trajectory is None else self._trajectory.stop_reason.value

    def event(self, event: Event) -> None:
        """Notes an event of the question's stream."""
        if isinstance(event, ReasoningDelta) and self._first_token_s is None:
            self._first_token_s = time.monotonic() - self._started
        elif isinstance(event, Finished):
            self.finished(event.trajectory)

    def finished(self, trajectory: Trajectory) -> None:
        self._trajectory = trajectory

    def failed(self, problem: Problem) -> None:
        """Notes the problem that ended a stream, where nothing is raised."""
        self._problem = problem


def _tell(error: Exception) -> None:
    # The kind alone: the message could hold a question.
    logger.error("an observer of requests failed with %s", type(error).__name__)
