"""Wire types of the OpenAI-compatible routes: requests, completions, chunks and models.

What OpenAI has no place for (the passages, what grounds each sentence, why the reasoning stopped) are fields of our
own in the message, the one place where OpenAI's client keeps them when it collects a stream too. They are no
`annotations`: those are URLs for spans of the answer. No conversion, no HTTP, no Ray.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, create_model, field_validator
from pydantic_core import PydanticCustomError

from steper_ray.config import SamplingConfig
from steper_ray.schema import StopReason
from steper_ray.serving.wire import PassageOut, SentenceOut, Stop, Unit, Wire

FinishReason = Literal["stop", "length"]

#: Fields of OpenAI's that may ask for nothing but what is done anyway. None and leaving out are always allowed.
_FIXED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "web_search_options": (),
    "moderation": (),
    "reasoning_effort": (),
    "verbosity": (),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
#: Labels and hints, which change no answer: read over.
_READ_OVER = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "prediction",
    "parallel_tool_calls",
)


class TextPart(Wire):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class UserMessage(Wire):
    """The question."""

    role: Literal["user"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        parts = self.content
        return parts if isinstance(parts, str) else "\n".join(part.text for part in parts)


class StreamOptions(Wire):
    include_usage: bool | None = None
    """Send the usage in a separate last chunk."""
    include_obfuscation: bool | None = None
    """Read over."""


class ChatRequest(Wire):
    """One question in the form of a chat."""

    model: str
    messages: list[UserMessage] = Field(min_length=1, max_length=1)
    """The question alone: the model answers one question, is given no instructions and remembers no earlier turn.
    System messages that are empty are omitted."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    """Tokens of all steps together; where they are used up, the answer so far ends with finish_reason `length`."""
    max_tokens: int | None = Field(None, ge=1)
    """The older name of max_completion_tokens."""
    unit: Unit | None = None
    """Our own, as in /v1/reason."""
    max_steps: int | None = Field(None, ge=1)
    """Our own, as in /v1/reason."""
    stop_when: Stop | None = None
    """Our own: the `stop` of /v1/reason, which is another thing than OpenAI's."""

    @field_validator("messages", mode="before")
    @classmethod
    def _one_question(cls, value: Any) -> Any:
        """The messages without empty system ones. Says of a usual chat what of it cannot be served."""
        if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
            return value
        kept = [m for m in value if m.get("role") not in ("system", "developer") or m.get("content")]
        roles = [message.get("role") for message in kept]
        if "user" not in roles:
            raise _refused("there is no user message; the question is the content of one")
        if "system" in roles or "developer" in roles:
            raise _refused("the model takes no instructions; leave out system and developer messages")
        if len(kept) > 1:
            raise _refused("earlier turns are not read; send the question alone, complete in itself")
        parts = kept[0].get("content")
        if isinstance(parts, list) and any(isinstance(p, dict) and p.get("type") != "text" for p in parts):
            raise _refused("only text can be read, no images, audio or files")
        return kept


def _refused(message: str) -> PydanticCustomError:
    return PydanticCustomError("unsupported_value", "{why}", {"why": message})


def _only(allowed: tuple[Any, ...]) -> Any:
    def check(value: Any) -> Any:
        if value is None or value in allowed:
            return value
        if not allowed:
            raise _refused("not supported here; leave it out")
        raise _refused(f"must be {' or '.join(map(repr, allowed))}, or left out")

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [*allowed, None]})]


def chat_model(max_steps: int, sampling: SamplingConfig) -> type[ChatRequest]:
    """`ChatRequest` with this server's limits and what OpenAI's other fields may be here.

    A server's students are decoded as the server is set. A greedy one answers the same whatever seed and top_p are.
    """
    greedy = sampling.temperature == 0
    fixed = _FIXED | {"temperature": (sampling.temperature,)}
    if not greedy:
        fixed |= {"top_p": (sampling.top_p,), "seed": ()}
    read_over = dict.fromkeys((*_READ_OVER, *(("top_p", "seed") if greedy else ())), (Any, None))
    fields: dict[str, Any] = {name: (_only(allowed), None) for name, allowed in fixed.items()} | read_over
    about = ChatRequest.model_fields["max_steps"].description
    fields["max_steps"] = (int | None, Field(None, ge=1, le=max_steps, description=about))
    return create_model("ChatRequest", __base__=ChatRequest, __doc__=ChatRequest.__doc__, **fields)


class ChatPassage(PassageOut):
    """A passage of the chain, `index` its place among all (from 0), `step` where it was found (from 1)."""

    index: int
    step: int


class ChatSentence(SentenceOut):
    """A sentence of the chain, `index` its place among all (from 0), `step` which wrote it (from 1)."""

    index: int
    step: int


class CachedTokens(Wire):
    cached_tokens: int


class ChatUsage(Wire):
    """Summed over all steps."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class AnswerMessage(Wire):
    """The answer, with the chain that led there (a line for each step) and the passages it was read from; `sentences`
    ties each sentence of the chain to them."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str
    passages: list[ChatPassage]
    sentences: list[ChatSentence]
    stop_reason: StopReason


class ChatChoice(Wire):
    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: FinishReason
    """`stop`: the chain states its answer; `length`: it was ended before, see the message's stop_reason."""


class ChatCompletion(Wire):
    """The answer to a question."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage


class ChatDelta(Wire):
    """The new part. A step's reasoning comes whole, when it counts; passages as soon as they are found."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    passages: list[ChatPassage] | None = None
    sentences: list[ChatSentence] | None = None
    """With reasoning_content."""
    stop_reason: StopReason | None = None
    """With finish_reason."""


class ChunkChoice(Wire):
    index: Literal[0]
    delta: ChatDelta
    finish_reason: FinishReason | None


class ChatChunk(Wire):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    """None in the chunk with the usage."""
    usage: ChatUsage | None = None


class ModelOut(Wire):
    """A student that is served; `created` is when its server started."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["steper_ray"] = "steper_ray"


class ModelList(Wire):
    object: Literal["list"] = "list"
    data: list[ModelOut]
