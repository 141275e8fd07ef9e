"""Chooses the route of each prompt: completions or chat, and how a chat continues a reply. Found out once per client.

- Token ids go to completions. Conversations go to the chat route where the endpoint has one, else as text.
- A reply that has begun is continued in the first way in which the endpoint completes a word that was cut.

It asks through a function that it is given, and decides about no attempt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.core.chat import Conversation
from steper_ray.core.errors import EngineSetupError, RefusedError
from steper_ray.generation.base import Prompt
from steper_ray.generation.endpoint.errors import Failure, has_no_chat
from steper_ray.generation.endpoint.routes import Chats, Completions, Prefill, Reader, Route

logger = logging.getLogger(__name__)

#: Sends one prompt once and returns the text; a reader replaces the route's own. Raises Failure or GenerationError.
Send = Callable[[Route, Prompt, SamplingConfig, Reader | None], Awaitable[str]]

ONE_TOKEN, _FEW_TOKENS = SamplingConfig(max_tokens=1), SamplingConfig(max_tokens=4)
#: A reply cut within a word: an endpoint that begins another turn does not complete the word.
BEGUN = Conversation(
    "", "What is the capital of France? Answer in a sentence.", "The capital of France is Par"
)
_COMPLETED = "is"
_WAYS: tuple[Prefill, ...] = ("continue", "prefix", "last")


class Routing:
    """The routes of one endpoint; `ends` and `top_logprobs` are those of its completions."""

    def __init__(self, config: EngineConfig, ends: Sequence[int], top_logprobs: int = 0) -> None:
        self._config = config
        self._completions = Completions(ends, top_logprobs)
        self._by_ids = config.tokenizer is not None
        self._conversations: Route | None = self._completions if config.route == "completions" else None
        self._settling = asyncio.Lock()

    async def route(self, prompt: Prompt, send: Send) -> tuple[Route, Prompt]:
        """The route of a prompt, and the prompt as that route takes it. Raises Failure or EngineSetupError."""
        if isinstance(prompt, str) and self._config.route == "chat":
            prompt = Conversation("", prompt, "")
        if not isinstance(prompt, Conversation):
            return self._completions, prompt
        route = await self._settled(send)
        if route is not self._completions:
            return route, prompt
        if prompt.text is None:
            raise EngineSetupError(
                f"reasoning.format=chat, and {self._config.url} has no chat route: set engine.tokenizer to the "
                "model's, or engine.route=chat, or reasoning.format=text"
            )
        return route, prompt.text

    async def check(self, send: Send) -> None:
        """Sends what `route` needs to know, or a request for one token. Raises what `send` raises."""
        if self._by_ids or self._config.route == "completions":
            await send(self._completions, "Hi", ONE_TOKEN, None)
        else:
            await self._settled(send)

    @property
    def way(self) -> str:
        """How prompts are sent, in words, as far as that is known."""
        if self._by_ids:
            return "token ids, through the completions route"
        if isinstance(self._conversations, Chats):
            return f"messages, through the chat route (engine.prefill={self._conversations.prefill})"
        return "text, through the completions route"

    async def _settled(self, send: Send) -> Route:
        async with self._settling:
            if self._conversations is None:
                chats = self._config.route == "chat" or await self._has_chat(send)
                self._conversations = Chats(await self._prefill(send)) if chats else self._completions
            return self._conversations

    async def _has_chat(self, send: Send) -> bool:
        try:
            await send(Chats("none"), Conversation("", "Hi", ""), ONE_TOKEN, None)
        except Failure as failure:
            if not has_no_chat(failure.error):
                raise
            await send(self._completions, "Hi", ONE_TOKEN, None)
            return False
        return True

    async def _prefill(self, send: Send) -> Prefill:
        if self._config.prefill != "auto":
            return self._config.prefill
        # The text as it comes: a reply that repeats its beginning must not look like one that continues it.
        plain = Conversation("", BEGUN.user, "")
        for way in _WAYS:
            chats = Chats(way)
            try:
                if (await send(chats, BEGUN, _FEW_TOKENS, chats.reader(plain))).startswith(_COMPLETED):
                    return way
            except Failure as failure:
                if not isinstance(failure.error, RefusedError):
                    raise
            except RefusedError:
                pass
        logger.info(
            "the endpoint of %s continues no reply: the chain is sent in the question", self._config.model
        )
        return "none"
