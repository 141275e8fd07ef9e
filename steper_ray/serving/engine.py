"""The engine's side of the endpoint: one retriever, one model, and a reasoner over both for each of its students.

Closing a stream of events stops its reasoning and aborts what the generator does for it. A dead generator makes the
engine unhealthy for good: its replica ends and is replaced, never revived. An endpoint that refuses everybody does
not: a new replica would meet the same settings, and the next question may find them corrected. No HTTP, no Ray.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from steper_ray.config import ReasoningConfig, SamplingConfig, ServeConfig
from steper_ray.core.errors import (
    EngineDeadError,
    EngineSetupError,
    GenerationError,
    PromptTooLongError,
    RetrievalError,
    SteperError,
)
from steper_ray.generation.base import Chunk, Generator, Prompt
from steper_ray.reasoning import AT_START, Begun, Event, Finished, Reasoner
from steper_ray.retrieval import AsyncRetriever, Retriever, as_async
from steper_ray.schema import Hit, Question, Trajectory
from steper_ray.serving.faults import trace_of
from steper_ray.serving.gathering import gathered, part_seconds
from steper_ray.serving.wire import Stop, Unit

logger = logging.getLogger(__name__)

_LOG_S = 30.0  # between two lines about settings that fail every question

#: The last error of the generator in the request at hand; a trajectory keeps but its text.
_last_error: ContextVar[list[GenerationError]] = ContextVar("last_error")


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request to one student, as the ingress hands it on. `asked_at` is seconds since the epoch."""

    id: str
    question: str
    asked_at: float
    model: str
    unit: Unit | None = None
    max_steps: int | None = None
    trace: str | None = None
    """The client's W3C `traceparent`."""
    stop: Stop | None = None
    max_tokens: int | None = None
    """Tokens of the whole chain."""
    begun: Begun = AT_START
    """What another replica wrote of it before it died."""


@dataclass(slots=True)
class EngineStats:
    """Generations since the start: under way, whole or cut after a sentence, aborted by their client, failed."""

    running: int = 0
    done: int = 0
    aborted: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """The outcome of one generation. `first_token_s`: seconds until its first text, None if there was none."""

    model: str
    outcome: Literal["done", "aborted", "failed"]
    first_token_s: float | None


class Metered:
    """A student's generator that counts its streams by outcome in `stats`, and calls `observe` for each."""

    def __init__(
        self, name: str, generator: Generator, stats: EngineStats, observe: Callable[[Generated], None]
    ) -> None:
        self.tokenizer = generator.tokenizer
        self.stats = stats
        self._name, self._generator, self._observe = name, generator, observe

    async def stream(
        self, prompt: Prompt, sampling: SamplingConfig, stop: Sequence[str] = ()
    ) -> AsyncGenerator[Chunk, None]:
        self.stats.running += 1
        started, first = time.monotonic(), None
        outcome: Literal["done", "aborted", "failed"] = (
            "done"  # a closed stream too: the reasoner has its sentence
        )
        try:
            async with aclosing(self._generator.stream(prompt, sampling, stop)) as chunks:
                async for chunk in chunks:
                    if first is None and chunk.text:
                        first = time.monotonic() - started
                    yield chunk
        except Exception as error:
            outcome = "failed"
            if isinstance(error, GenerationError):
                _last_error.get([]).append(error)
            raise
        except asyncio.CancelledError:
            outcome = "aborted"
            raise
        finally:
            self.stats.running -= 1
            setattr(self.stats, outcome, getattr(self.stats, outcome) + 1)
            self._observe(Generated(self._name, outcome, first))

    async def check(self) -> None:
        await self._generator.check()

    async def close(self) -> None:
        await self._generator.close()


@dataclass(frozen=True, slots=True)
class Budgeted:
    """A retriever whose search fails after a time limit."""

    retriever: AsyncRetriever
    seconds: float

    async def find(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        try:
            async with asyncio.timeout(self.seconds):
                return await self.retriever.find(queries, k)
        except TimeoutError as error:
            raise RetrievalError(
                f"no search in {self.seconds:g} seconds (serve.retrieval_timeout_s)"
            ) from error


class ReasonEngine:
    """Answers questions, many at once, in one event loop.

    `students`: generators by name; `larger` that of `reasoning.escalate`. `observe` is called for each generation of a
    student that ended, `died` when a generator is found dead.
    """

    def __init__(
        self,
        retriever: Retriever | AsyncRetriever,
        students: Mapping[str, Generator],
        reasoning: ReasoningConfig,
        sampling: SamplingConfig,
        serve: ServeConfig,
        observe: Callable[[Generated], None] = lambda generated: None,
        larger: Generator | None = None,
        died: Callable[[EngineDeadError], None] = lambda error: None,
    ) -> None:
        self._stats, self._larger, self._died = EngineStats(), larger, died
        self._students = students
        budgeted = Budgeted(as_async(retriever), serve.retrieval_timeout_s)
        self._reasoners = {
            name: Reasoner(
                budgeted,
                Metered(name, generator, self._stats, observe),
                reasoning,
                sampling,
                name,
                larger=larger,
            )
            for name, generator in students.items()
        }
        self._timeout = serve.request_timeout_s
        self._streams = 0  # that are read in parts
        self._dead: EngineDeadError | None = None
        self._logged_at = float("-inf")

    async def answer(self, ask: Ask) -> Trajectory:
        """Raises PromptTooLongError where not even the first prompt fits, and EngineDeadError."""
        async with aclosing(self.events(ask)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return event.trajectory
        raise AssertionError("Finished is the last event of every stream")

    async def events(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """The reasoner's events, Finished last. Raises as `answer` does."""
        self.check_health()
        errors: list[GenerationError] = []
        _last_error.set(errors)
        question = Question(ask.id, ask.question, answers=())
        try:
            async with aclosing(self._limited(ask).stream(question, ask.begun)) as events:
                async for event in events:
                    if isinstance(event, Finished) and not event.trajectory.steps:
                        _raise_if_too_long(errors)
                    yield event
        except EngineSetupError as error:
            self._log_setup(error)
            raise
        except EngineDeadError as error:
            self._dead = error
            self._died(error)
            raise
        except SteperError:
            raise
        except Exception as error:
            logger.error("a question failed with %s", trace_of(error))
            raise

    async def parts(self, ask: Ask) -> AsyncGenerator[list[Event], None]:
        """The events, gathered for the way to another process."""
        self._streams += 1
        try:
            async with aclosing(gathered(self.events(ask), lambda: part_seconds(self._streams))) as parts:
                async for part in parts:
                    yield part
        finally:
            self._streams -= 1

    async def ready(self) -> None:
        """Raises EngineDeadError if no question can be answered any more."""
        self.check_health()

    async def stats(self) -> EngineStats:
        return dataclasses.replace(self._stats)

    def check_health(self) -> None:
        """Raises EngineDeadError once the generator is gone: Serve then replaces the replica."""
        if self._dead is not None:
            raise EngineDeadError(str(self._dead))

    async def close(self) -> None:
        for generator in (*self._students.values(), *([self._larger] if self._larger else [])):
            await generator.close()

    def _log_setup(self, error: EngineSetupError) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _LOG_S:
            self._logged_at = now
            logger.error("no question can be answered: %s", error)

    def _limited(self, ask: Ask) -> Reasoner:
        """The reasoner under this request's limits. A copy: it shares the encoder and its cache of passages."""
        asked = self._reasoners[ask.model]
        config = asked.config
        # The wait in the queue counts too. Two machines' clocks measure it, so it is never taken as negative.
        left = self._timeout - max(0.0, time.time() - ask.asked_at)
        deadline = min(max(left, 0.001), config.deadline_s or self._timeout)
        reasoner = copy.copy(asked)
        reasoner.config = config.model_copy(
            update={
                "unit": ask.unit or config.unit,
                "stop": ask.stop or config.stop,
                "max_steps": min(ask.max_steps or config.max_steps, config.max_steps),
                "deadline_s": deadline,
            }
        )
        reasoner.max_tokens = ask.max_tokens
        return reasoner


def _raise_if_too_long(errors: Sequence[GenerationError]) -> None:
    for error in errors:
        if isinstance(error, PromptTooLongError):
            raise error
