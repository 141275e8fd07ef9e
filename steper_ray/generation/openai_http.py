"""An OpenAI-compatible endpoint, such as `vllm serve`, through its completions route.

With `engine.tokenizer` the prompts go as token ids, so the endpoint sees what training saw, to the token; without it
they go as text. Token ids come back where the endpoint can give them (vLLM does). It knows no model: what fits is the
endpoint's to say. The key is read from the environment and appears in no message.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from json import JSONDecodeError
from typing import Any

from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, AsyncOpenAI, AsyncStream
from openai.types import Completion, CompletionChoice, CompletionUsage

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.errors import EngineDeadError, GenerationError, PromptTooLongError
from steper_ray.generation.base import Chunk, Prompt
from steper_ray.generation.tokens import fit_tokens, load_tokenizer, prompt_ids, tokenizer_name
from steper_ray.generation.waiting import Deadline
from steper_ray.prompt import Tokenizer
from steper_ray.schema import Usage

_NO_KEY = "none"  # the client insists on a key; local endpoints ignore it
_RETRIES = 3  # of requests that were refused for the moment, with the client's own back-off
_CLOSED = "the engine was closed"
_TOKEN_IDS = "return_token_ids"  # vLLM's extension of the protocol
_MIN_TOKENS = "min_tokens"  # vLLM's too
# How endpoints say that a prompt does not fit: OpenAI's error code, vLLM's and others' words.
_TOO_LONG = ("context_length_exceeded", "context length", "maximum model length", "max_model_len", "too long")


class OpenAIGenerator:
    """Generates with the model that an endpoint serves under the name `engine.model`.

    `engine.timeout_s` holds for each generation with its retries. Raises ModelError for a tokenizer that cannot be
    loaded; whether the endpoint is there shows with the first request.
    """

    tokenizer: Tokenizer | None

    def __init__(self, config: EngineConfig) -> None:
        assert config.url is not None  # the config's own check
        self.tokenizer = load_tokenizer(tokenizer_name(config)) if config.tokenizer else None
        self._config, self._url = config, config.url
        self._knows_more = True  # than the standard's fields, until it says otherwise
        self._client = AsyncOpenAI(
            base_url=config.url,
            api_key=os.environ.get(config.api_key_env) or _NO_KEY,
            timeout=None,  # a deadline stands over the whole generation
            max_retries=_RETRIES,
        )

    async def stream(
        self, prompt: Prompt, sampling: SamplingConfig, stop: Sequence[str] = ()
    ) -> AsyncGenerator[Chunk, None]:
        """See Generator. Token ids and log-probabilities are empty where the endpoint gives none."""
        if self._client.is_closed():
            raise EngineDeadError(_CLOSED)
        request = self._request(prompt, sampling, stop)
        last: Chunk | None = None
        async with aclosing(self._completions(request)) as completions:
            async for completion in completions:
                if completion.choices and last is None:
                    chunk = _chunk(completion.choices[0])
                    if chunk.finish_reason is None:
                        yield chunk
                    else:
                        last = chunk
                # The usage comes with the finish reason, or after it, or never.
                if completion.usage and last is not None:
                    last = replace(last, usage=_usage(completion.usage))
        if last is None:
            raise GenerationError(
                f"{self._url} ended the stream before the completion: see the endpoint's log"
            )
        if last.finish_reason not in ("stop", "length"):
            raise GenerationError(f"{self._url} ended the completion with '{last.finish_reason}'")
        yield last

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

    async def _completions(self, request: dict[str, Any]) -> AsyncGenerator[Completion, None]:
        """The endpoint's own stream, within the deadline and with its errors as ours."""
        deadline = Deadline(self._config.timeout_s)
        try:
            stream = await deadline.wait(self._open(request))
        except APIError as error:
            raise self._refusal(error) from error
        async with stream:
            try:
                while (completion := await deadline.wait(anext(stream, None))) is not None:
                    yield completion
            except (APIError, JSONDecodeError) as error:
                if self._client.is_closed():
                    raise EngineDeadError(_CLOSED) from error
                raise GenerationError(f"{self._url} broke off the completion: {_words(error)}") from error

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

    def _refusal(self, error: APIError) -> GenerationError:
        """Why no completion began. What would refuse every request is an EngineDeadError."""
        config = self._config
        if isinstance(error, APITimeoutError):
            return GenerationError(f"{self._url} did not answer: {_words(error)}")
        if isinstance(error, APIConnectionError):
            return EngineDeadError(
                f"cannot reach {self._url} ({error.__cause__ or error}): start the endpoint, or correct engine.url"
            )
        match error.status_code if isinstance(error, APIStatusError) else None:
            case 401 | 403:
                # Not in the endpoint's words: they may repeat the key.
                return EngineDeadError(f"{self._url} refused the key: set it in ${config.api_key_env}")
            case 404:
                return EngineDeadError(
                    f"{self._url} has no model '{config.model}' or no completions: set engine.model to a name that it "
                    "serves, and engine.url to its base, which mostly ends in /v1"
                )
            case 400 | 413 | 422 if any(words in f"{error.code} {error.message}" for words in _TOO_LONG):
                return PromptTooLongError(
                    f"the prompt does not fit into the endpoint's context: {_words(error)}; ask for fewer passages, or "
                    "serve the model with a longer context"
                )
        return GenerationError(f"{self._url} refused the request: {_words(error)}")


def _chunk(choice: CompletionChoice) -> Chunk:
    ids = getattr(choice, "token_ids", None) or ()
    logprobs = (choice.logprobs and choice.logprobs.token_logprobs) or ()
    known = tuple(value for value in logprobs if value is not None)
    return Chunk(choice.text, tuple(ids), known, choice.finish_reason)


def _usage(usage: CompletionUsage) -> Usage:
    details = usage.prompt_tokens_details
    return Usage(usage.prompt_tokens, usage.completion_tokens, (details and details.cached_tokens) or 0)


def _words(error: Exception) -> str:
    """The endpoint's own message, shortened: it may repeat parts of the prompt."""
    body = error.body if isinstance(error, APIError) else None
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error)[:300]
