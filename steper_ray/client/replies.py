"""The reasoner endpoint's replies as a client sees them: an answer, events, or a typed error. Sends nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx
from httpx_sse import EventSource, SSEError
from pydantic import BaseModel, ValidationError

from steper_ray.core.errors import SteperError
from steper_ray.schema import StopReason
from steper_ray.serving.wire import (
    EVENTS,
    DeltaEvent,
    ErrorBody,
    PassageOut,
    PassagesEvent,
    ReasonResponse,
    StepOut,
    StepStartedEvent,
    UsageOut,
    Wire,
)

SILENT = "the server was silent for too long"
_NO_ANSWER = "what the server sent is no answer of a reasoner"

M = TypeVar("M", bound=Wire)


class ReasonerError(SteperError):
    """A question was not answered. `status` is HTTP's, None where there is none; `code` the server's."""

    def __init__(self, message: str, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class QuestionError(ReasonerError):
    """The request itself is refused (its form, its length); asked again it would be refused again."""


class AccessError(ReasonerError):
    """The token is missing or wrong, or the server takes no clients from here: it will answer no question."""


class BusyError(ReasonerError):
    """The server still had too much to do, or no engine, at the last attempt, or this caller's limit was used up."""


class FailedError(ReasonerError):
    """The server failed, its deadline passed, or its answer broke off or made no sense."""


class UnreachableError(ReasonerError):
    """No server answers at this address."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A question reasoned to its end; `stop_reason` says whether the answer was stated, `degraded` whether a failure
    or the deadline ended it: then it is the best answer so far."""

    question: str
    text: str
    steps: tuple[StepOut, ...]
    stop_reason: StopReason
    usage: UsageOut
    model: str
    id: str
    degraded: bool

    @property
    def chain(self) -> tuple[str, ...]:
        """The reasoning of each step."""
        return tuple(step.reasoning for step in self.steps)

    @property
    def passages(self) -> tuple[PassageOut, ...]:
        """All passages, in the order they were found."""
        return tuple(passage for step in self.steps for passage in step.passages)


#: What `stream` yields, in the order of a step; StepOut is the step that is done, Answer comes last.
Event = StepStartedEvent | PassagesEvent | DeltaEvent | StepOut | Answer


async def read(reply: httpx.Response) -> bytes:
    with _broken():
        return await reply.aread()


@contextmanager
def _broken() -> Iterator[None]:
    """Turns a failure of an answer that has begun into a FailedError."""
    try:
        yield
    except httpx.TimeoutException as silent:
        raise FailedError(SILENT) from silent
    except SSEError as other:  # a proxy's page in place of a stream
        raise FailedError(_NO_ANSWER) from other
    except httpx.TransportError as lost:
        raise FailedError("the answer broke off") from lost


def parse(model: type[M], data: bytes | str) -> M:
    """A newer server's further fields are omitted."""
    try:
        return model.model_validate_json(data, extra="ignore")
    except ValidationError as error:
        raise FailedError(_NO_ANSWER) from error


class _Error(BaseModel):
    """As much of an error body as is needed; a newer server may have further codes and fields."""

    code: str
    message: str


def refusal(status: int, data: bytes) -> ReasonerError:
    try:
        error = _Error.model_validate(json.loads(data)["error"])
    except (ValueError, LookupError, TypeError):  # a proxy's page
        return _error(status)(f"status {status} without an error body", status)
    return _error(status)(error.message, status, error.code)


def _error(status: int) -> type[ReasonerError]:
    if status in (401, 403):
        return AccessError
    if status in (409, 429, 503):
        return BusyError
    return QuestionError if 400 <= status < 500 else FailedError


def answer_of(response: ReasonResponse) -> Answer:
    return Answer(
        question=response.question,
        text=response.answer,
        steps=tuple(response.steps),
        stop_reason=response.stop_reason,
        usage=response.usage,
        model=response.model,
        id=response.id,
        degraded=response.degraded,
    )


async def events(reply: httpx.Response) -> AsyncGenerator[Event, None]:
    """The events of a stream of server-sent events; those of unknown names are passed over.

    Their lines end at LF, CR and CRLF alone; `aiter_lines` would also cut JSON text at U+2028, U+2029 and U+0085.
    """
    with _broken():
        async with aclosing(EventSource(reply).aiter_sse()) as frames:
            async for frame in frames:
                if frame.data and frame.event in EVENTS:
                    yield _event(frame.event, frame.data)


def _event(name: str, data: str) -> Event:
    value: Wire = parse(EVENTS[name], data)
    match value:
        case ErrorBody(error=error):
            raise FailedError(error.message, code=error.code)
        case ReasonResponse():
            return answer_of(value)
        case StepStartedEvent() | PassagesEvent() | DeltaEvent() | StepOut():
            return value
    raise AssertionError(f"{name} is an event")
