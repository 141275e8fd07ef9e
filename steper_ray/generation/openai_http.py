"""An OpenAI-compatible endpoint, such as `vllm serve`, through its completions route.

With `engine.tokenizer` the prompts go as token ids, so the endpoint sees what training saw, to the token; without it
they go as text. Token ids come back where the endpoint can give them (vLLM does). It knows no model: what fits is the
endpoint's to say. The key is read from the environment and appears in no message.

This is the one place that decides about attempts: the client's own are off. A request that is refused for the moment,
or whose stream breaks before its first token, is sent again; nothing that was given out is ever repeated.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import count
from json import JSONDecodeError
from random import Random
from typing import Any

from openai import APIError, APIStatusError, AsyncOpenAI, AsyncStream, Timeout
from openai.types import Completion, CompletionChoice, CompletionUsage

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.core.errors import (
    EngineDeadError,
    EngineSetupError,
    GenerationError,
    ModelError,
    RefusedError,
)
from steper_ray.core.tokenizers import Tokenizer
from steper_ray.generation.base import Chunk, Prompt
from steper_ray.generation.limiter import Clock, Limiter, Sleep, Slot
from steper_ray.generation.openai_errors import (
    Broken,
    as_ours,
    asked_to_wait,
    in_short,
    is_overload,
    is_page,
    is_passing,
    is_refusal,
    is_unreached,
    page_error,
    refuses_all,
)
from steper_ray.generation.retrying import backoff
from steper_ray.generation.tokens import fit_tokens, load_tokenizer, prompt_ids, tokenizer_name
from steper_ray.generation.waiting import Deadline, DeadlineError
from steper_ray.schema import Usage

logger = logging.getLogger(__name__)

_NO_KEY = "none"  # the client insists on a key; local endpoints ignore it
_CONNECT_S = 10.0  # then a host that does not even refuse the connection counts as not reached
_CHECK_S = 2 * _CONNECT_S  # then an endpoint that is being checked counts as busy
_WARN_S = 30.0  # between two lines about an endpoint that refuses requests
_CHARS_A_TOKEN = 4  # of a prompt as text, for the budget of tokens
_CLOSED = "the engine was closed"
_FILTERED = "content_filter"  # a finish reason that the question causes
_TOKEN_IDS = "return_token_ids"  # vLLM's extension of the protocol
_MIN_TOKENS = "min_tokens"  # vLLM's too


class _Failure(Exception):
    """One attempt failed with `error`, which the reader sees if there is no other one.

    `reason` is for the log and in our own words: the endpoint's may repeat the prompt or the key. `unreached`: there
    was no connection.
    """

    def __init__(
        self,
        error: GenerationError,
        reason: str,
        again: bool,
        after_s: float = 0.0,
        unreached: bool = False,
    ) -> None:
        super().__init__(reason)
        self.error, self.reason, self.again, self.after_s = error, reason, again, after_s
        self.unreached = unreached


class OpenAIGenerator:
    """Generates with the model that an endpoint serves under the name `engine.model`.

    As many requests at once as the endpoint takes, `engine.max_batch` at most. `engine.timeout_s` holds for each
    generation with its retries, except for the wait until it may start. Raises ModelError for a tokenizer that cannot
    be loaded or a key that cannot be sent; `check` says whether the endpoint answers. One event loop only.
    """

    tokenizer: Tokenizer | None

    def __init__(
        self,
        config: EngineConfig,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        rng: Random | None = None,
    ) -> None:
        assert config.url is not None  # the config's own check
        self.tokenizer = load_tokenizer(tokenizer_name(config)) if config.tokenizer else None
        self.limiter = Limiter(
            config.max_batch,
            requests_per_minute=config.requests_per_minute,
            tokens_per_minute=config.tokens_per_minute,
            clock=clock,
            sleep=sleep,
        )
        self._config, self._url = config, config.url
        self._clock, self._sleep, self._rng = clock, sleep, rng or Random()
        self._warned_at = float("-inf")
        self._knows_more = True  # than the standard's fields, until it says otherwise
        self._client = AsyncOpenAI(
            base_url=config.url,
            api_key=_key(config.api_key_env),
            timeout=Timeout(None, connect=_CONNECT_S),  # a deadline stands over the whole generation
            max_retries=0,
        )

    async def stream(
        self, prompt: Prompt, sampling: SamplingConfig, stop: Sequence[str] = ()
    ) -> AsyncGenerator[Chunk, None]:
        """See Generator. Token ids and log-probabilities are empty where the endpoint gives none."""
        request = self._request(prompt, sampling, stop)
        deadline = Deadline(self._config.timeout_s)
        given = False
        for attempt in count(1):
            try:
                async with aclosing(self._attempt(request, deadline)) as chunks:
                    async for chunk in chunks:
                        given = True
                        yield chunk
                return
            except _Failure as failure:
                wait_s = backoff(attempt, self._rng, failure.after_s)
                last = given or not failure.again or attempt > self._config.retries
                if last or wait_s >= deadline.left:
                    raise failure.error from failure.__cause__
                self._warn(failure.reason)
                await self._sleep(wait_s)

    async def check(self) -> None:
        """See Generator. Sends one request for one token, like any other, and does not retry it."""
        deadline = Deadline(min(self._config.timeout_s, _CHECK_S))
        try:
            request = self._request("Hi", SamplingConfig(max_tokens=1), ())
            async with aclosing(self._attempt(request, deadline)) as chunks:
                await anext(chunks, None)
        except _Failure as failure:
            if isinstance(failure.error, EngineDeadError):
                raise failure.error from failure.__cause__
            if isinstance(failure.error, RefusedError):
                raise refuses_all(failure.error, self._config) from failure.__cause__
            if failure.unreached:
                raise EngineSetupError(str(failure.error)) from failure.__cause__
        except EngineDeadError:
            raise
        except GenerationError:
            pass  # busy or failing for now

    async def close(self) -> None:
        """Closes the connections. The endpoint stays."""
        await self._client.close()

    def _request(self, prompt: Prompt, sampling: SamplingConfig, stop: Sequence[str]) -> dict[str, Any]:
        max_tokens = sampling.max_tokens
        sent: str | list[int] = prompt if isinstance(prompt, str) else list(prompt)
        if self.tokenizer is not None:
            sent = prompt_ids(self.tokenizer, sent)
        if not isinstance(sent, str):
            max_tokens = fit_tokens(len(sent), max_tokens, self._config.max_model_len)
        return {
            "model": self._config.model,
            "prompt": sent,
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stop": [string for string in stop if string] or None,
            "logprobs": 0,
            "extra_body": {_TOKEN_IDS: True, _MIN_TOKENS: min(sampling.min_tokens, max_tokens)},
        }

    async def _attempt(self, request: dict[str, Any], deadline: Deadline) -> AsyncGenerator[Chunk, None]:
        """One request, from its place in the line to its end, within the deadline. Raises _Failure."""
        prompt_tokens = _size(request["prompt"])
        with deadline.paused():
            slot = await self.limiter.acquire(prompt_tokens + request["max_tokens"])
        stream: AsyncStream[Completion] | None = None
        with slot:
            if self._client.is_closed():
                raise EngineDeadError(_CLOSED)
            try:
                stream = await deadline.wait(self._open(request))
                async with stream:
                    if is_page(stream.response.headers.get("content-type")):
                        raise page_error(self._config, stream.response.status_code)
                    chunks = self._chunks(stream, deadline, slot, prompt_tokens)
                    async with aclosing(chunks):
                        async for chunk in chunks:
                            yield chunk
            except DeadlineError:
                slot.overloaded()
                raise
            except (APIError, JSONDecodeError) as error:
                if self._client.is_closed():
                    raise EngineDeadError(_CLOSED) from error
                raise self._failure(error, slot, opened=stream is not None) from error

    async def _chunks(
        self, stream: AsyncStream[Completion], deadline: Deadline, slot: Slot, prompt_tokens: int
    ) -> AsyncGenerator[Chunk, None]:
        """The endpoint's stream as chunks, the last one with the usage. Raises _Failure if it has no end."""
        last: Chunk | None = None
        written = 0
        while (completion := await deadline.wait(anext(stream, None))) is not None:
            if completion.choices and last is None:
                chunk = _chunk(completion.choices[0])
                written += len(chunk.token_ids) or 1
                slot.accepted()
                slot.used(prompt_tokens + written)
                if chunk.finish_reason is not None:
                    last = chunk
                elif chunk.text or chunk.token_ids:
                    yield chunk
            # The usage comes with the finish reason, or after it, or never.
            if completion.usage and last is not None:
                usage = _usage(completion.usage)
                slot.used(usage.prompt_tokens + usage.completion_tokens)
                last = replace(last, usage=usage)
        if last is None:
            error = GenerationError(
                f"{self._url} ended the stream before the completion: see the endpoint's log"
            )
            raise _Failure(error, "ended a stream before the completion", again=True)
        if last.finish_reason not in ("stop", "length"):
            kind = RefusedError if last.finish_reason == _FILTERED else GenerationError
            raise kind(f"{self._url} ended the completion with '{last.finish_reason}'")
        yield last

    async def _open(self, request: dict[str, Any]) -> AsyncStream[Completion]:
        if self._knows_more:
            try:
                return await self._create(request)
            except APIStatusError as error:
                named = any(name in str(error.body) for name in (_TOKEN_IDS, _MIN_TOKENS))
                if error.status_code not in (400, 422) or not named:
                    raise
            self._knows_more = False  # it is strict about what it does not know
        return await self._create({**request, "extra_body": {}})

    async def _create(self, request: dict[str, Any]) -> AsyncStream[Completion]:
        stream: AsyncStream[Completion] = await self._client.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
        return stream

    def _failure(self, error: Broken, slot: Slot, opened: bool) -> _Failure:
        """What an error of the endpoint or the connection means for the attempt; also reports it to the slot."""
        begun, after_s = slot.served is True, asked_to_wait(error)
        if is_refusal(error) and not begun:
            slot.used(0)
        if is_overload(error):
            # Cap the pause at the request timeout, so one Retry-After cannot stall the queue.
            slot.overloaded(min(after_s, self._config.timeout_s))
        ours = as_ours(error, self._config, opened, begun)
        unreached = is_unreached(error, opened)
        return _Failure(ours, in_short(error, opened), is_passing(error), after_s, unreached)

    def _warn(self, reason: str) -> None:
        now = self._clock()
        if now - self._warned_at >= _WARN_S:
            self._warned_at = now
            logger.warning(
                "the endpoint of %s %s: asking again, %d requests at once for now",
                self._config.model,
                reason,
                self.limiter.limit,
            )


def _key(variable: str) -> str:
    """The endpoint's key. Raises ModelError, which does not repeat it, for one that no HTTP header takes."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ModelError(f"${variable}: the key has characters that cannot be sent: set it to the key alone")
    return key or _NO_KEY


def _size(prompt: str | list[int]) -> int:
    """Tokens of a prompt; of text, about."""
    return len(prompt) // _CHARS_A_TOKEN if isinstance(prompt, str) else len(prompt)


def _chunk(choice: CompletionChoice) -> Chunk:
    ids = getattr(choice, "token_ids", None) or ()
    logprobs = (choice.logprobs and choice.logprobs.token_logprobs) or ()
    known = tuple(value for value in logprobs if value is not None)
    # JSON may hold half a character ('\ud83d' alone), which no tokenizer, table or answer can.
    text = choice.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return Chunk(text, tuple(ids), known, choice.finish_reason)


def _usage(usage: CompletionUsage) -> Usage:
    details = usage.prompt_tokens_details
    return Usage(usage.prompt_tokens, usage.completion_tokens, (details and details.cached_tokens) or 0)
