"""Asks one question after its turn, and turns every failure into what is owed.

- A question is noted before it is asked and when it has an end: a death of the process can then be explained.
- A suspect is asked alone, a question given up is not asked; after an outage nothing is asked for a while.
- A setting that refuses every question (EngineSetupError) and a full disk end the run; nothing else does.

Knows event loops, no engine and no Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeVar

from steper_ray.core.errors import (
    EngineDeadError,
    EngineSetupError,
    GenerationError,
    ModelError,
    RetrievalError,
    SteperError,
    StorageError,
)
from steper_ray.rollouts.deaths import Verdicts
from steper_ray.rollouts.shards import Owed
from steper_ray.rollouts.spec import RolloutSpec
from steper_ray.rollouts.teachers import Asked, Earlier, Teacher, ask
from steper_ray.rollouts.turns import Breaker, Turns
from steper_ray.rollouts.verifiers import ModelVerifier
from steper_ray.rollouts.work import Work
from steper_ray.schema import Question, StepScore, Trajectory

T = TypeVar("T")
Tag = tuple[int, int]

logger = logging.getLogger(__name__)

#: Failures in a row, at least, before an outage is assumed.
LEAST_FAILURES = 32


class Notes(Protocol):
    """An actor's notes of what it asks (see deaths.py). `tag` names the spec and the shard."""

    async def start(self) -> Verdicts: ...

    async def asked(self, key: str, alone: bool) -> None: ...

    async def done(self, key: str, tag: Tag, work: Work) -> None: ...

    async def dying(self, words: str) -> None: ...


@dataclass(slots=True)
class _Failure(Exception):
    """Why something is owed."""

    why: str


class Asker:
    """The turns, the outage breaker and the verdicts of one process."""

    def __init__(
        self,
        notes: Notes,
        verdicts: Verdicts,
        in_flight: int,
        die: Callable[[EngineDeadError], Awaitable[NoReturn]],
    ) -> None:
        self._notes, self._verdicts, self._die = notes, verdicts, die
        self._turns = Turns(in_flight)
        self._breaker = Breaker(max(2 * in_flight, LEAST_FAILURES))

    async def ask(
        self, spec: RolloutSpec, question: Question, group: Sequence[Teacher], earlier: Earlier, tag: Tag
    ) -> Asked:
        """One group of samples of a question."""
        finals, attempts = earlier.of(question.id)
        mine = {teacher.sample for teacher in group}
        kept = tuple(finals[key] for key in sorted(finals) if key[0] in mine)
        first = group[0].sample
        key = f"{question.id}~{first}"

        def owed(why: str, asked: bool = True) -> Asked:
            return Asked(kept, Owed(question.id, first, 0, why, attempts.get((first, 0), 0) + asked))

        async def asking() -> Asked:
            return await ask(question, group, spec.asking, finals, attempts)

        if (deaths := self._verdicts.given_up.get(key)) is not None:
            return owed(
                f"engines died {deaths} times while this was asked, at last with nothing else in flight"
            )
        alone = key in self._verdicts.suspects
        async with self._turns.alone() if alone else self._turns.company():
            if (why := self._breaker.reason) is not None:
                return owed(why, asked=False)
            if spec.teacher == "engine":
                await self._notes.asked(key, alone)
            try:
                result = await self._guarded(asking())
            except _Failure as failure:
                result = owed(failure.why)
            self._breaker.note(None if result.owed is None else result.owed.error)
            if spec.teacher == "engine":
                await self._notes.done(key, tag, Work.of(1, result.finals, spec.asking))
            return result

    async def scores(self, trajectory: Trajectory, verifier: ModelVerifier) -> list[StepScore] | None:
        """One verifier's scores of a trajectory's steps; None where they are owed."""
        async with self._turns.company():
            if self._breaker.reason is not None:
                return None
            try:
                found = await self._guarded(verifier.scores(trajectory))
            except _Failure as failure:
                self._breaker.note(failure.why)
                return None
            self._breaker.note(None)
        pairs = zip(trajectory.steps, found, strict=True)
        return [StepScore(trajectory.id, step.index, verifier.name, score) for step, score in pairs]

    async def _guarded(self, asking: Awaitable[T]) -> T:
        """The result, or a _Failure. An unexpected exception is one question's; it is logged in full."""
        try:
            return await asking
        except (EngineSetupError, StorageError, ModelError):
            raise
        except EngineDeadError as error:
            await self._die(error)
        except (GenerationError, RetrievalError) as error:
            raise _Failure(str(error)) from error
        except SteperError:
            raise
        except Exception as error:
            logger.exception("a question failed unexpectedly; it is owed, and the others continue")
            raise _Failure(f"{type(error).__name__}: {error}") from error
