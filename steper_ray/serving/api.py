"""Between the reasoner and the wire: requests checked, trajectories and events turned into the models that are sent.

It knows the reasoner's types, and neither HTTP nor Ray.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import Field, ValidationError, create_model

from steper_ray.core.claims import Ground
from steper_ray.core.sentences import split_sentences
from steper_ray.reasoning import Event, Finished, PassagesFound, ReasoningDelta, StepDone, StepStarted
from steper_ray.schema import Hit, Step, StopReason, Trajectory, Usage
from steper_ray.serving.wire import (
    DeltaEvent,
    ErrorBody,
    ErrorCode,
    ErrorDetail,
    ErrorType,
    PassageOut,
    PassagesEvent,
    ReasonRequest,
    ReasonResponse,
    SentenceOut,
    StepOut,
    StepStartedEvent,
    UsageOut,
    Wire,
)

RETRY = {"retry-after": "2"}
#: Reasons to stop that are no end of the reasoning.
DEGRADED = frozenset(
    (StopReason.DEADLINE, StopReason.RETRIEVER_FAILED, StopReason.GENERATOR_FAILED, StopReason.REJECTED)
)
_TYPES: dict[int, ErrorType] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

M = TypeVar("M", bound=Wire)


class Problem(Exception):
    """A refusal or failure as the client gets it. `message` shows nothing of the server's insides."""

    def __init__(
        self,
        status: int,
        code: ErrorCode,
        message: str,
        headers: dict[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers, self.param = headers or {}, param

    @property
    def body(self) -> ErrorBody:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return ErrorBody(error=ErrorDetail(code=self.code, message=self.message, type=kind, param=self.param))


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper limits of a request: S steps, characters of a question."""

    max_steps: int
    max_question_chars: int

    @property
    def max_body_bytes(self) -> int:
        """Room for a question that is all escapes ('\\ud83d\\ude00' is one character), and for the other fields."""
        return 12 * self.max_question_chars + 4096


def request_model(limits: Limits) -> type[ReasonRequest]:
    """`ReasonRequest` with this server's limits, so that the OpenAPI page shows them and validation holds them."""
    return create_model(
        "ReasonRequest",
        __base__=ReasonRequest,
        __doc__=ReasonRequest.__doc__,
        question=(
            str,
            Field(
                min_length=1,
                max_length=limits.max_question_chars,
                json_schema_extra={"pattern": r"\S"},  # as ReasonRequest itself checks it
            ),
        ),
        max_steps=(
            int | None,
            Field(
                None,
                ge=1,
                le=limits.max_steps,
                description=ReasonRequest.model_fields["max_steps"].description,
            ),
        ),
    )


def parse_request(model: type[M], body: bytes) -> M:
    """A checked request. Raises Problem, which names the field and what would be right, and repeats no input."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kind = first["type"]
    if kind == "json_invalid":
        raise Problem(400, "malformed_json", "the body is not valid JSON")
    path = ".".join(str(part) for part in first["loc"])
    if kind == "extra_forbidden":
        known = ", ".join(model.model_fields)
        # What has the form of a field's name is no text of the client's.
        param = path if len(path) < 64 and path.replace(".", "").isidentifier() else None
        place = f" in {first['loc'][0]}" if len(first["loc"]) > 1 else f"; the fields are: {known}"
        raise Problem(422, "invalid_request", f"unknown field{place}", param=param)
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    message = re.sub(r"^(Input|String) should ", "must ", message).replace("Field required", "is missing")
    message = f"{path or 'body'}: {message}"
    if kind == "string_too_long":
        raise Problem(413, "question_too_long", message, param=path)
    code: ErrorCode = "unsupported_value" if kind == "unsupported_value" else "invalid_request"
    raise Problem(422, code, message, param=path or None)


def check_done(trajectory: Trajectory) -> None:
    """Raises Problem where the trajectory ended before its first step was done."""
    if not trajectory.steps:
        raise _failure(trajectory.stop_reason)


def pick_model(name: str | None, served: Sequence[str]) -> str:
    """The student that is asked for. Raises Problem unless it is one that is served."""
    if name is None:
        return served[0]
    if name not in served:
        message = "no such model is served here; GET /v1/models names what is"
        raise Problem(404, "model_not_found", message, param="model")
    return name


def response(trajectory: Trajectory, model: str) -> ReasonResponse:
    """The client's reply. Raises Problem as `check_done`."""
    check_done(trajectory)
    grounded = Grounded(trajectory.question.text)
    return ReasonResponse(
        id=trajectory.question.id,
        question=trajectory.question.text,
        answer=trajectory.answer,
        stop_reason=trajectory.stop_reason,
        steps=[_step(step, grounded) for step in trajectory.steps],
        model=model,
        usage=usage_of(trajectory),
        degraded=trajectory.stop_reason in DEGRADED,
    )


def usage_of(trajectory: Trajectory) -> UsageOut:
    """The sum over all steps."""
    return UsageOut(
        prompt_tokens=sum(step.usage.prompt_tokens for step in trajectory.steps),
        completion_tokens=sum(step.usage.completion_tokens for step in trajectory.steps),
        cached_tokens=sum(step.usage.cached_tokens for step in trajectory.steps),
        larger_tokens=sum(step.usage.larger_tokens for step in trajectory.steps),
    )


class Grounded:
    """The sentences of one trajectory's steps, which must come in order, each with the passages that ground it."""

    def __init__(self, question: str) -> None:
        self._ground, self._ids = Ground(question), list[str]()

    def sentences(self, step: Step) -> list[SentenceOut]:
        """Those of the next step."""
        passages = [hit.passage for hit in step.hits]
        self._ground.add(passages)
        self._ids += (passage.id for passage in passages)
        return [self._sentence(text) for text in split_sentences(step.reasoning)]

    def _sentence(self, text: str) -> SentenceOut:
        grounds = self._ground.of(text)
        if grounds is None:
            return SentenceOut(text=text, grounded_by=None, ungrounded=[])
        ids = [self._ids[place] for place in grounds.passages]
        return SentenceOut(text=text, grounded_by=ids, ungrounded=list(grounds.missing))


def event_out(event: Event, model: str, grounded: Grounded) -> tuple[str, Wire]:
    """The name and the data of the server-sent event for a reasoner's event; `grounded` is that of its stream."""
    match event:
        case StepStarted(index, query):
            return "step_started", StepStartedEvent(index=index, query=query)
        case PassagesFound(index, hits, duplicates, seconds):
            return "passages", PassagesEvent(
                index=index, passages=_passages(hits), duplicates=duplicates, seconds=seconds
            )
        case ReasoningDelta(index, text):
            return "delta", DeltaEvent(index=index, text=text)
        case StepDone(step):
            return "step_done", _step(step, grounded)
        case Finished(trajectory):
            try:
                return "answer", response(trajectory, model)
            except Problem as problem:
                return "error", problem.body


def sse(name: str, data: Wire) -> bytes:
    """One server-sent event. JSON has no raw line breaks, so the data is one line."""
    return f"event: {name}\ndata: {data.model_dump_json()}\n\n".encode()


def _failure(reason: StopReason) -> Problem:
    match reason:
        case StopReason.REJECTED:
            return Problem(422, "invalid_request", "question: refused by the reasoner", param="question")
        case StopReason.DEADLINE:
            return Problem(504, "deadline", "no step was done before the deadline")
        case StopReason.RETRIEVER_FAILED:
            return Problem(503, "retriever_failed", "the passages could not be searched", RETRY)
        case _:
            return Problem(503, "generator_failed", "the model could not answer this question", RETRY)


def _step(step: Step, grounded: Grounded) -> StepOut:
    return StepOut(
        index=step.index,
        query=step.query,
        reasoning=step.reasoning,
        sentences=grounded.sentences(step),
        taken_back=step.taken_back,
        confidence=step.confidence,
        passages=_passages(step.hits),
        usage=_usage(step.usage),
        retrieval_seconds=step.retrieval_seconds,
        generation_seconds=step.generation_seconds,
    )


def _passages(hits: tuple[Hit, ...]) -> list[PassageOut]:
    return [
        PassageOut(id=hit.passage.id, title=hit.passage.title, text=hit.passage.text, score=hit.score)
        for hit in hits
    ]


def _usage(usage: Usage) -> UsageOut:
    return UsageOut(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        larger_tokens=usage.larger_tokens,
    )
