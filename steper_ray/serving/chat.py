"""Between the reasoner and OpenAI's chat: requests become questions, trajectories and events become completions.

What cannot be served is refused, with a reason; nothing of a request is read in another sense than it has. It knows
neither HTTP nor Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

from steper_ray.reasoning import Event, Finished, PassagesFound, StepDone
from steper_ray.schema import Hit, Step, StopReason, Trajectory
from steper_ray.serving.api import Grounded, Limits, Problem, check_done, usage_of
from steper_ray.serving.chat_wire import (
    AnswerMessage,
    CachedTokens,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatPassage,
    ChatRequest,
    ChatSentence,
    ChatUsage,
    ChunkChoice,
    FinishReason,
)
from steper_ray.serving.engine import Ask

DONE = b"data: [DONE]\n\n"
#: Between the steps of a chain: no sentence of IRCoT's has a line break in it.
_JOINER = "\n"


@dataclass(frozen=True, slots=True)
class Head:
    """The fields that a completion and all of its chunks begin with."""

    id: str
    created: int
    model: str


def as_openai(problem: Problem) -> Problem:
    """The same problem with the status and the names that OpenAI's clients know."""
    param = "messages" if problem.param == "question" else problem.param
    match problem.status, problem.code:
        case _, "question_too_long":
            return Problem(400, "context_length_exceeded", problem.message, param="messages")
        case 422, code:
            return Problem(400, code, problem.message, param=param)
    return problem


def to_ask(
    request: ChatRequest,
    head: Head,
    asked_at: float,
    limits: Limits,
    trace: str | None = None,
) -> Ask:
    """The question of a checked request to `head.model`. Raises Problem for what only the whole request shows."""
    if request.stream_options is not None and not request.stream:
        message = "stream_options: only where stream is true"
        raise Problem(400, "invalid_request", message, param="stream_options")
    question = request.messages[0].text
    if not question.strip():
        raise Problem(400, "invalid_request", "messages: the question is empty", param="messages")
    if len(question) > limits.max_question_chars:
        message = f"messages: the question may have {limits.max_question_chars} characters at most"
        raise Problem(400, "context_length_exceeded", message, param="messages")
    tokens = [most for most in (request.max_tokens, request.max_completion_tokens) if most is not None]
    return Ask(
        head.id,
        question,
        asked_at,
        head.model,
        unit=request.unit,
        max_steps=request.max_steps,
        trace=trace,
        stop=request.stop_when,
        max_tokens=min(tokens, default=None),
    )


def completion(trajectory: Trajectory, head: Head) -> ChatCompletion:
    """Of a trajectory of one step at least."""
    grounded = Grounded(trajectory.question.text)
    passages: list[ChatPassage] = []
    sentences: list[ChatSentence] = []
    for step in trajectory.steps:
        passages += _passages(step.hits, step.index, len(passages))
        sentences += _sentences(grounded, step, len(sentences))
    stop = trajectory.stop_reason
    message = AnswerMessage(
        content=trajectory.answer,
        reasoning_content=_JOINER.join(filter(None, trajectory.chain)),
        passages=passages,
        sentences=sentences,
        stop_reason=stop,
    )
    choice = ChatChoice(message=message, finish_reason=_finish(stop))
    return ChatCompletion(
        id=head.id, created=head.created, model=head.model, choices=[choice], usage=_usage(trajectory)
    )


class ChatFrames:
    """The chunks of the answer to one question. A step's reasoning is sent when it is done: what is written beyond
    the sentence that counts could not be taken back."""

    def __init__(self, head: Head, question: str, *, include_usage: bool) -> None:
        self._head, self._include_usage = head, include_usage
        self._grounded = Grounded(question)
        self._begun = False
        self._passages = self._sentences = 0

    def event(self, event: Event) -> bytes:
        match event:
            case PassagesFound(index, hits) if hits:
                passages = _passages(hits, index, self._passages)
                self._passages += len(passages)
                return self._delta(ChatDelta(passages=passages))
            case StepDone(step) if step.reasoning:
                return self._delta(self._reasoning(step))
            case Finished(trajectory):
                try:
                    check_done(trajectory)
                except Problem as problem:
                    return self.problem(problem)
                return self._end(trajectory)
        return b"" if self._begun else self._delta(ChatDelta())

    def problem(self, problem: Problem) -> bytes:
        return b"data: %s\n\n" % as_openai(problem).body.model_dump_json().encode()

    def _reasoning(self, step: Step) -> ChatDelta:
        before = _JOINER if self._sentences else ""
        sentences = _sentences(self._grounded, step, self._sentences)
        self._sentences += len(sentences)
        return ChatDelta(reasoning_content=before + step.reasoning, sentences=sentences)

    def _end(self, trajectory: Trajectory) -> bytes:
        stop = trajectory.stop_reason
        last = ChunkChoice(index=0, delta=ChatDelta(stop_reason=stop), finish_reason=_finish(stop))
        frames = self._delta(ChatDelta(content=trajectory.answer)) + self._chunk([last])
        if self._include_usage:
            frames += self._chunk([], _usage(trajectory))
        return frames + DONE

    def _delta(self, delta: ChatDelta) -> bytes:
        if not self._begun:
            self._begun = True
            delta = ChatDelta(
                role="assistant", **{name: getattr(delta, name) for name in delta.model_fields_set}
            )
        return self._chunk([ChunkChoice(index=0, delta=delta, finish_reason=None)])

    def _chunk(self, choices: list[ChunkChoice], usage: ChatUsage | None = None) -> bytes:
        chunk = ChatChunk(
            id=self._head.id,
            object="chat.completion.chunk",
            created=self._head.created,
            model=self._head.model,
            choices=choices,
            **({"usage": usage} if self._include_usage else {}),
        )
        # What is not set is not there: a delta has its news alone.
        return b"data: %s\n\n" % chunk.model_dump_json(exclude_unset=True).encode()


def _finish(reason: StopReason) -> FinishReason:
    return "stop" if reason in (StopReason.ANSWERED, StopReason.UNSURE) else "length"


def _passages(hits: tuple[Hit, ...], step: int, first: int) -> list[ChatPassage]:
    return [
        ChatPassage(
            index=index,
            step=step,
            id=hit.passage.id,
            title=hit.passage.title,
            text=hit.passage.text,
            score=hit.score,
        )
        for index, hit in enumerate(hits, first)
    ]


def _sentences(grounded: Grounded, step: Step, first: int) -> list[ChatSentence]:
    return [
        ChatSentence(**dict(sentence), index=index, step=step.index)
        for index, sentence in enumerate(grounded.sentences(step), first)
    ]


def _usage(trajectory: Trajectory) -> ChatUsage:
    usage = usage_of(trajectory)
    return ChatUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=CachedTokens(cached_tokens=usage.cached_tokens),
    )
