"""The two routes of an OpenAI-compatible endpoint: what a request holds, and what its events mean. Sends nothing.

- Completions take token ids or text; ids and log-probabilities come back where the endpoint gives them (vLLM does).
- Chats take messages. The chain so far is the beginning of the reply where the endpoint continues one (`Prefill`);
  elsewhere it stands in the user's turn, with a request for what comes next.
- Thinking, refusals and content filters are separated from the reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from openai import AsyncOpenAI, AsyncStream
from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletionChunk

from steper_ray.config import SamplingConfig
from steper_ray.core.chat import Conversation
from steper_ray.core.errors import GenerationError, RefusedError
from steper_ray.generation.base import Chunk, Likeliest, likeliest_of
from steper_ray.schema import Usage

Prefill = Literal["continue", "prefix", "last", "none"]
Request = dict[str, Any]

#: Tokens of text, about: for budgets, before anything is counted.
CHARS_A_TOKEN = 4
#: vLLM's extensions of the protocol.
TOKEN_IDS, MIN_TOKENS = "return_token_ids", "min_tokens"
BY_ID, _ID = "return_tokens_as_token_ids", "token_id:"
CONTINUES = ("continue_final_message", "add_generation_prompt")
_USAGE = {"stream_options": {"include_usage": True}}
_FILTERED = ("content_filter", "refusal", "safety")  # finish reasons that the question causes
_ENDS = {"stop": "stop", "length": "length", "eos": "stop", "end_turn": "stop", "max_tokens": "length"}
_GO_ON = (
    "\n\nThe answer so far:\n{reply}\n\nGo on where it ends: write what comes next, without repeating it and without a "
    "word about it."
)


class Reader(Protocol):
    """Reads the events of one stream."""

    def chunk(self, event: Any) -> Chunk | None:
        """The chunk of an event; None where it adds nothing. The chunk with a finish reason is the last one."""
        ...


class Route(Protocol):
    """One way to ask."""

    def request(
        self, prompt: Any, sampling: SamplingConfig, max_tokens: int, stop: Sequence[str]
    ) -> Request: ...

    async def open(self, client: AsyncOpenAI, request: Request) -> AsyncStream[Any]: ...

    def reader(self, prompt: Any) -> Reader: ...


class Completions:
    """Text or token ids that are completed. `ends`: token ids that end a completion besides the model's own;
    `top_logprobs`: how many of the likeliest tokens are wanted at each token."""

    def __init__(self, ends: Sequence[int] = (), top_logprobs: int = 0) -> None:
        self._ends, self._top_logprobs = list(ends), top_logprobs

    def request(
        self, prompt: str | list[int], sampling: SamplingConfig, max_tokens: int, stop: Sequence[str]
    ) -> Request:
        more = {TOKEN_IDS: True, MIN_TOKENS: min(sampling.min_tokens, max_tokens)}
        if self._top_logprobs:
            more[BY_ID] = True
        return {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stop": [string for string in stop if string] or None,
            "logprobs": self._top_logprobs,
            **_USAGE,
            "extra_body": more | ({"stop_token_ids": self._ends} if self._ends else {}),
        }

    async def open(self, client: AsyncOpenAI, request: Request) -> AsyncStream[Completion]:
        stream: AsyncStream[Completion] = await client.completions.create(**request, stream=True)
        return stream

    def reader(self, prompt: object) -> Reader:
        return _CompletionReader(self._top_logprobs)


class _CompletionReader:
    def __init__(self, top_logprobs: int) -> None:
        self._top_logprobs = top_logprobs

    def chunk(self, event: Completion) -> Chunk | None:
        usage = usage_of(event.usage) if event.usage else None
        if not event.choices:
            return Chunk("", usage=usage) if usage else None
        choice = event.choices[0]
        ids = getattr(choice, "token_ids", None) or ()
        logprobs = (choice.logprobs and choice.logprobs.token_logprobs) or ()
        known = tuple(value for value in logprobs if value is not None)
        text, finish = _whole(choice.text or ""), _finish(choice.finish_reason)
        return Chunk(text, tuple(ids), known, finish, usage, top=self._top(choice.logprobs, len(ids)))

    def _top(self, logprobs: Any, tokens: int) -> tuple[Likeliest, ...]:
        """Of each token; empty where the endpoint does not name all of them by their ids."""
        listed = (logprobs and logprobs.top_logprobs) or ()
        if not self._top_logprobs or len(listed) != tokens:
            return ()
        if not all(one and all(name.startswith(_ID) for name in one) for one in listed):
            return ()
        by_id = ({int(name.removeprefix(_ID)): value for name, value in one.items()} for one in listed)
        return tuple(likeliest_of(one, self._top_logprobs) for one in by_id)


class Chats:
    """Turns that the endpoint renders itself; `prefill` says how it takes the beginning of the reply."""

    def __init__(self, prefill: Prefill) -> None:
        self.prefill = prefill

    def request(
        self, prompt: Conversation, sampling: SamplingConfig, max_tokens: int, stop: Sequence[str]
    ) -> Request:
        """Stop strings are not sent: providers take few or none, and the reader of the stream looks for them."""
        more: dict[str, Any] = {}
        if prompt.arguments:
            more["chat_template_kwargs"] = dict(prompt.arguments)
        if prompt.reply and self.prefill == "continue":
            more |= dict.fromkeys(CONTINUES, True) | {"add_generation_prompt": False}
        request: Request = {
            "messages": self._messages(prompt),
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "logprobs": True,
            **_USAGE,
            "extra_body": more,
        }
        if sampling.top_p < 1:
            request["top_p"] = sampling.top_p
        if sampling.temperature:
            request["seed"] = sampling.seed
        return request

    def _messages(self, prompt: Conversation) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if prompt.instruction:
            messages.append({"role": "system", "content": prompt.instruction})
        user, begun = prompt.user, prompt.reply
        if begun and self.prefill == "none":
            user, begun = user + _GO_ON.format(reply=begun), ""
        messages.append({"role": "user", "content": user})
        if begun:
            more = {"prefix": True} if self.prefill == "prefix" else {}
            messages.append({"role": "assistant", "content": begun, **more})
        return messages

    async def open(self, client: AsyncOpenAI, request: Request) -> AsyncStream[ChatCompletionChunk]:
        stream: AsyncStream[ChatCompletionChunk] = await client.chat.completions.create(
            **request, stream=True
        )
        return stream

    def reader(self, prompt: Conversation) -> Reader:
        return _ChatReader(prompt.reply)


class _ChatReader:
    """`begun` is the beginning of the reply: an endpoint that repeats it has it dropped."""

    def __init__(self, begun: str) -> None:
        self._begun = begun
        self._held = ""
        self._refusal = ""

    def chunk(self, event: ChatCompletionChunk) -> Chunk | None:
        """Raises RefusedError for a reply that refuses."""
        usage = usage_of(event.usage) if event.usage else None
        if not event.choices:
            return Chunk("", usage=usage) if usage else None
        choice = event.choices[0]
        delta, finish = choice.delta, _finish(choice.finish_reason)
        self._refusal += getattr(delta, "refusal", None) or ""
        if finish is not None and self._refusal:
            raise RefusedError(f"the model refuses: {' '.join(self._refusal.split())[:300]}")
        content = getattr(delta, "content", None) or ""
        thought = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
        if thought and not content:
            return Chunk("", finish_reason=finish, usage=usage, thinking=True)
        tokens = (choice.logprobs and choice.logprobs.content) or ()
        text = self._without_echo(_whole(content), last=finish is not None)
        return Chunk(text, (), tuple(token.logprob for token in tokens), finish, usage)

    def _without_echo(self, text: str, last: bool) -> str:
        """The text, without the beginning of the reply in front; held back while it may be that."""
        if not self._begun:
            return text
        self._held += text
        held = self._held.lstrip()
        if held.startswith(self._begun):
            self._begun, text = "", held[len(self._begun) :]
        elif self._begun.startswith(held) and not last:
            return ""
        else:
            self._begun, text = "", self._held
        self._held = ""
        return text


def closed(reason: str, url: str) -> GenerationError | None:
    """The error of a finish reason that is none of a whole generation."""
    if reason in ("stop", "length"):
        return None
    kind = RefusedError if reason in _FILTERED else GenerationError
    return kind(f"{url} ended the generation with '{reason}'")


def usage_of(usage: CompletionUsage) -> Usage:
    read, written = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = (read and read.cached_tokens) or getattr(
        usage, "prompt_cache_hit_tokens", None
    )  # DeepSeek's name
    thought = (written and written.reasoning_tokens) or 0
    return Usage(usage.prompt_tokens or 0, usage.completion_tokens or 0, cached or 0, thought)


def size_of(prompt: str | list[int] | Conversation) -> int:
    """Tokens of a prompt; of text, about."""
    if isinstance(prompt, list):
        return len(prompt)
    if isinstance(prompt, Conversation):
        return len(prompt.instruction + prompt.user + prompt.reply) // CHARS_A_TOKEN
    return len(prompt) // CHARS_A_TOKEN


def _finish(reason: str | None) -> str | None:
    return None if reason is None else _ENDS.get(reason.lower(), reason.lower())


def _whole(text: str) -> str:
    """JSON may hold half a character ('\\ud83d' alone), which no tokenizer, table or answer can."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
