"""Wire types: requests, answers, events and errors as pydantic models.

A field that is not named here is refused, and everything that is sent has one of these shapes; the OpenAPI page
is made from them. No conversion, no HTTP, no Ray.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from steper_ray.schema import StopReason

Unit = Literal["sentence", "chain"]
Stop = Literal["fixed", "confident", "stable"]
ErrorCode = Literal[
    "malformed_json",
    "unauthorized",
    "loopback_only",
    "not_found",
    "method_not_allowed",
    "body_too_large",
    "body_timeout",
    "question_too_long",
    "unsupported_media_type",
    "invalid_request",
    "overloaded",
    "internal_error",
    "engine_unavailable",
    "retriever_failed",
    "generator_failed",
    "deadline",
    # of the OpenAI-compatible routes, by OpenAI's own names
    "model_not_found",
    "unsupported_value",
    "context_length_exceeded",
]
ErrorType = Literal[
    "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
]


class Wire(BaseModel):
    """Base of all models here: unknown fields are refused, and so are values that would have to be converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class ReasonRequest(Wire):
    """One question."""

    question: str = Field(min_length=1)
    model: str | None = Field(None, max_length=200)
    """The student that answers, as `GET /v1/models` names it; by default the first."""
    stream: bool = False
    """Send server-sent events as the reasoning continues; the last one, `answer`, is the whole response."""
    unit: Unit | None = None
    """What one step generates, a sentence or the chain to its end; by default as the server is set."""
    max_steps: int | None = Field(None, ge=1)
    """Most steps for this question; by default, and at most, the server's."""
    stop: Stop | None = None
    """When an answer counts: as soon as it is stated (`fixed`), when the model was sure of what it rests on
    (`confident`), or when two successive steps state the same (`stable`); by default as the server is set. What is
    taken back costs steps: with few of them the answer may stay `unsure`."""

    @field_validator("question")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value


class PassageOut(Wire):
    """A passage that a step found, with the retriever's score (higher is better)."""

    id: str
    title: str
    text: str
    score: float


class UsageOut(Wire):
    """Tokens read, written, read from the engine's prefix cache, and written by the model of `reasoning.escalate`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    larger_tokens: int = 0


class SentenceOut(Wire):
    """One sentence of the reasoning, tied to what it was read from."""

    text: str
    grounded_by: list[str] | None
    """Ids of passages found so far, in their order: few that hold every name, number and answer of the sentence that
    any passage holds. Null where it has none of these, so nothing to look for."""
    ungrounded: list[str]
    """Its names, numbers and answer that no passage found so far holds; of names and numbers, the question's count
    as known."""


class StepOut(Wire):
    """One round of retrieval and reasoning; `passages` are those that are new at this step."""

    index: int
    query: str
    reasoning: str
    sentences: list[SentenceOut]
    """The reasoning cut into its sentences."""
    taken_back: str = ""
    """What was written after it and taken back, because the model was not sure of it: the next step searches for it."""
    confidence: float | None = None
    """Probability of the least likely token of both, 0 to 1; null where the engine does not report it."""
    passages: list[PassageOut]
    usage: UsageOut
    retrieval_seconds: float
    generation_seconds: float


class ReasonResponse(Wire):
    """The answer, how it was come by, and why the reasoning stopped."""

    id: str
    question: str
    answer: str
    stop_reason: StopReason
    steps: list[StepOut]
    model: str
    usage: UsageOut
    """The sum over all steps."""
    degraded: bool = False
    """Whether a failure or the deadline ended the reasoning (see `stop_reason`): then it is the best answer so far."""


class StepStartedEvent(Wire):
    """Data of the event `step_started`."""

    index: int
    query: str


class PassagesEvent(Wire):
    """Data of the event `passages`; `duplicates` were found and not added (see `Step`)."""

    index: int
    passages: list[PassageOut]
    duplicates: int
    seconds: float


class DeltaEvent(Wire):
    """Data of the event `delta`: more text of this step. `step_done` holds the text that counts."""

    index: int
    text: str


class ErrorDetail(Wire):
    """An error in the shape that OpenAI's clients read."""

    code: ErrorCode
    message: str
    type: ErrorType
    param: str | None = None
    """The field that is at fault."""


class ErrorBody(Wire):
    """The body of every 4xx and 5xx, and the data of the event `error`."""

    error: ErrorDetail


class Examples(Wire):
    """Questions of the corpus that is served."""

    questions: list[str]


class About(Wire):
    """The models that answer here, and their limits."""

    model: str
    """The student that answers where a request names none."""
    models: list[str]
    """All students, the default one first."""
    framework: str
    unit: Unit
    stop: Stop
    max_steps: int
    max_question_chars: int
    passages: int
    """Size of the corpus."""


class Health(Wire):
    status: Literal["ok", "ready"]


#: The events of a stream, in the order of a step, and the model of their data. A stream ends in `answer` or `error`.
EVENTS: dict[str, type[Wire]] = {
    "step_started": StepStartedEvent,
    "passages": PassagesEvent,
    "delta": DeltaEvent,
    "step_done": StepOut,
    "answer": ReasonResponse,
    "error": ErrorBody,
}
