"""The door to generation: a prompt in, text and token ids out, whole or as a stream.

Closing a stream before its end aborts the request in the engine: that is how one step is cut after its first
sentence, and how a client that left stops costing anything.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from steper_ray.config import SamplingConfig
from steper_ray.core.chat import Conversation
from steper_ray.core.tokenizers import Tokenizer
from steper_ray.schema import Usage

Prompt = Sequence[int] | str | Conversation
#: The likeliest tokens at one place, likeliest first, each with its log-probability.
Likeliest = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One item of a stream: new text, its token ids and their log-probabilities (empty where not known).

    The last chunk of a stream alone has a `finish_reason` ('stop' or 'length'). `usage` is that of the generation so
    far, in any chunk in which the engine reports it. `thinking`: the chunk is a thought that the
    endpoint sends apart from the reply; its text is left out. `top`: at each of the token ids the likeliest tokens, as
    many as the engine was opened for.
    Text is whole characters: a token that ends within one is held back until it is complete.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    thinking: bool = False
    top: tuple[Likeliest, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One whole generation. Special tokens are not part of `text`."""

    text: str
    token_ids: tuple[int, ...]
    mean_logprob: float | None
    finish_reason: str
    usage: Usage = field(default_factory=Usage)


def likeliest_of(listed: Mapping[int, float], count: int) -> Likeliest:
    """The `count` likeliest of the tokens that an engine lists at one place.

    vLLM lists the token that was written too, likely or not.
    """
    ordered = sorted((-logprob, token) for token, logprob in listed.items())
    return tuple((token, -negative) for negative, token in ordered[:count])


def prompt_size(prompt: Prompt) -> int:
    """Tokens of a prompt; 0 where only its engine knows."""
    return 0 if isinstance(prompt, str | Conversation) else len(prompt)


class Generator(Protocol):
    """An engine. Many requests may be under way at once.

    `tokenizer` is the engine's own, or None for an endpoint that is sent text.
    """

    tokenizer: Tokenizer | None

    def stream(
        self, prompt: Prompt, sampling: SamplingConfig, stop: Sequence[str] = ()
    ) -> AsyncGenerator[Chunk, None]:
        """Generates to the end of sequence, a stop string (not part of the text) or `max_tokens`.

        Raises GenerationError for a passing failure, RefusedError for a request that never succeeds, EngineDeadError
        for an engine that is gone and EngineSetupError for a setting that fails every request. Closing the stream
        aborts the request.
        """
        ...

    async def check(self) -> None:
        """Raises EngineSetupError, in one line, if no request can succeed until a setting changes; else returns.

        A busy or failing endpoint passes: asking it later may succeed. Raises EngineDeadError if the engine is gone.
        """
        ...

    async def close(self) -> None:
        """Ends the engine and frees what it holds."""
        ...


async def generate(
    generator: Generator, prompt: Prompt, sampling: SamplingConfig, stop: Sequence[str] = ()
) -> Completion:
    """A stream read to its end, as one completion."""
    text: list[str] = []
    ids: list[int] = []
    logprobs: list[float] = []
    finish, usage = "stop", None
    async with aclosing(generator.stream(prompt, sampling, stop)) as chunks:
        async for chunk in chunks:
            text.append(chunk.text)
            ids.extend(chunk.token_ids)
            logprobs.extend(chunk.logprobs)
            finish = chunk.finish_reason or finish
            usage = chunk.usage or usage
    known = Usage(prompt_size(prompt), len(ids))
    mean = sum(logprobs) / len(logprobs) if logprobs else None
    return Completion("".join(text), tuple(ids), mean, finish, usage or known)
