"""The client of an OpenAI-compatible endpoint, such as `vllm serve` or a hosted provider.

With `engine.tokenizer` the prompts go as token ids, so the endpoint sees what training saw, to the token; without it
they go as messages, or as text where the endpoint has no chat route (routes.py). It knows no model: what fits is the
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
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from json import JSONDecodeError
from random import Random
from typing import Any

from openai import APIError, APIStatusError, AsyncOpenAI, AsyncStream, Timeout

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.core.chat import Conversation, end_of_turn
from steper_ray.core.errors import (
    EngineDeadError,
    EngineSetupError,
    GenerationError,
    ModelError,
    RefusedError,
)
from steper_ray.core.tokenizers import Tokenizer
from steper_ray.generation.base import Chunk, Prompt
from steper_ray.generation.endpoint.errors import (
    Broken,
    Failure,
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
from steper_ray.generation.endpoint.limiter import Clock, Limiter, Sleep, Slot
from steper_ray.generation.endpoint.parameters import Parameters
from steper_ray.generation.endpoint.retrying import backoff
from steper_ray.generation.endpoint.routes import Reader, Request, Route, closed, size_of
from steper_ray.generation.endpoint.routing import Routing
from steper_ray.generation.tokens import engine_tokenizer, fit_tokens, prompt_ids
from steper_ray.generation.waiting import Deadline, DeadlineError
from steper_ray.schema import Usage

logger = logging.getLogger(__name__)

_NO_KEY = "none"  # the client insists on a key; local endpoints ignore it
_CONNECT_S = 10.0  # then a host that does not even refuse the connection counts as not reached
_CHECK_S = 2 * _CONNECT_S  # then an endpoint that is being checked counts as busy
_WARN_S = 30.0  # between two lines about an endpoint that refuses requests
_CLOSED = "the engine was closed"


@dataclass(frozen=True, slots=True)
class _Asked:
    """One prompt on its route; `prompt_tokens` and `max_tokens` are its budget."""

    route: Route
    request: Request
    reader: Reader
    prompt_tokens: int
    max_tokens: int


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
        top_logprobs: int = 0,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        rng: Random | None = None,
    ) -> None:
        assert config.url is not None  # the config's own check
        self.tokenizer = engine_tokenizer(config) if config.tokenizer else None
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
        self._parameters = Parameters(config.model)
        self._top_logprobs = top_logprobs
        self._routing = Routing(config, _ends(self.tokenizer), top_logprobs)
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
        deadline = Deadline(self._config.timeout_s)
        given = False
        for attempt in count(1):
            try:
                route, sent = await self._routing.route(prompt, partial(self._send, deadline))
                asked = self._ask(route, sent, sampling, stop)
                async with aclosing(self._attempt(asked, deadline)) as chunks:
                    async for chunk in chunks:
                        given = True
                        yield chunk
                return
            except Failure as failure:
                wait_s = backoff(attempt, self._rng, failure.after_s)
                last = given or not failure.again or attempt > self._config.retries
                if last or wait_s >= deadline.left:
                    raise failure.error from failure.__cause__
                self._warn(failure.reason)
                await self._sleep(wait_s)

    async def check(self) -> None:
        """See Generator. Sends a request for one token, like any other, and does not retry it.

        On the chat route up to three more, which find out how it continues a reply.
        """
        deadline = Deadline(min(self._config.timeout_s, _CHECK_S))
        try:
            await self._routing.check(partial(self._send, deadline))
        except Failure as failure:
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

    @property
    def way(self) -> str:
        """How prompts are sent, in words, as far as that is known."""
        return self._routing.way

    async def close(self) -> None:
        """Closes the connections. The endpoint stays."""
        await self._client.close()

    def _ask(self, route: Route, prompt: Prompt, sampling: SamplingConfig, stop: Sequence[str]) -> _Asked:
        max_tokens = sampling.max_tokens
        sent: str | list[int] | Conversation = (
            prompt if isinstance(prompt, str | Conversation) else list(prompt)
        )
        if self.tokenizer is not None:
            sent = prompt_ids(self.tokenizer, sent)
        if isinstance(sent, list):
            max_tokens = fit_tokens(len(sent), max_tokens, self._config.max_model_len)
        request = {"model": self._config.model, **route.request(sent, sampling, max_tokens, stop)}
        return _Asked(route, request, route.reader(sent), size_of(sent), max_tokens)

    async def _send(
        self,
        deadline: Deadline,
        route: Route,
        prompt: Prompt,
        sampling: SamplingConfig,
        reader: Reader | None,
    ) -> str:
        """The text of one attempt. Raises Failure or GenerationError."""
        asked = self._ask(route, prompt, sampling, ())
        asked = asked if reader is None else replace(asked, reader=reader)
        async with aclosing(self._attempt(asked, deadline)) as chunks:
            return "".join([chunk.text async for chunk in chunks])

    async def _attempt(self, asked: _Asked, deadline: Deadline) -> AsyncGenerator[Chunk, None]:
        """One request, from its place in the line to its end, within the deadline. Raises Failure."""
        with deadline.paused():
            slot = await self.limiter.acquire(asked.prompt_tokens + asked.max_tokens)
        stream: AsyncStream[Any] | None = None
        with slot:
            if self._client.is_closed():
                raise EngineDeadError(_CLOSED)
            try:
                stream = await deadline.wait(self._open(asked))
                async with stream:
                    if is_page(stream.response.headers.get("content-type")):
                        raise page_error(self._config, stream.response.status_code)
                    chunks = self._chunks(stream, deadline, slot, asked)
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
        self, stream: AsyncStream[Any], deadline: Deadline, slot: Slot, asked: _Asked
    ) -> AsyncGenerator[Chunk, None]:
        """The endpoint's stream as chunks, the last one with the usage.

        Raises Failure if it has no end, EngineSetupError if log-probabilities are wanted and it gives none.
        """
        last: Chunk | None = None
        usage: Usage | None = None
        written = 0
        while (event := await deadline.wait(anext(stream, None))) is not None:
            if (chunk := asked.reader.chunk(event)) is None:
                continue
            if self._top_logprobs and (chunk.text or chunk.token_ids) and not chunk.top:
                raise EngineSetupError(
                    f"build.logits={self._top_logprobs}: {self._url} does not name the likeliest tokens by their ids: "
                    "a server of vLLM does, as do engine.kind=vllm and transformers; or set build.logits=0"
                )
            # The usage comes with the finish reason, or before or after it, or never.
            usage = chunk.usage or usage
            if usage is not None:
                slot.used(usage.prompt_tokens + usage.completion_tokens)
            if last is not None:
                continue
            slot.accepted()
            if usage is None:
                written += len(chunk.token_ids) or 1
                slot.used(asked.prompt_tokens + written)
            if chunk.finish_reason is not None:
                last = chunk
            elif chunk.text or chunk.token_ids or chunk.thinking:
                yield chunk
        if last is None:
            error = GenerationError(
                f"{self._url} ended the stream before the completion: see the endpoint's log"
            )
            raise Failure(error, "ended a stream before the completion", again=True)
        if (broken := closed(last.finish_reason or "", self._url)) is not None:
            raise broken
        yield replace(last, usage=usage)

    async def _open(self, asked: _Asked) -> AsyncStream[Any]:
        while True:
            request = self._parameters.taken(asked.request)
            try:
                return await asked.route.open(self._client, request)
            except APIStatusError as error:
                if not self._parameters.learn(error, asked.request):
                    raise

    def _failure(self, error: Broken, slot: Slot, opened: bool) -> Failure:
        """Classifies an error of the endpoint or the connection for the attempt; also reports it to the slot."""
        begun, after_s = slot.served is True, asked_to_wait(error)
        if is_refusal(error) and not begun:
            slot.used(0)
        if is_overload(error):
            # Cap the pause at the request timeout, so one Retry-After cannot stall the queue.
            slot.overloaded(min(after_s, self._config.timeout_s))
        ours = as_ours(error, self._config, opened, begun)
        unreached = is_unreached(error, opened)
        return Failure(ours, in_short(error, opened), is_passing(error), after_s, unreached)

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


def _ends(tokenizer: Tokenizer | None) -> list[int]:
    """The end of a chat's turn, where it is not the end of sequence, which every server knows."""
    end = None if tokenizer is None else end_of_turn(tokenizer)
    return [] if tokenizer is None or end is None or end == tokenizer.eos_token_id else [end]
