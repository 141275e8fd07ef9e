"""Engines and indexes that follow a script, for tests of pure logic."""

import asyncio
from collections.abc import Sequence

from steper_ray.core.chat import Conversation
from steper_ray.generation.base import Chunk
from steper_ray.schema import Hit, Passage


class CharTokenizer:
    """One token a character."""

    bos_token_id = None
    eos_token_id = 0

    def encode(self, text, *, add_special_tokens=False):
        return [ord(c) for c in text]

    def get_vocab(self):
        return {}

    def __len__(self):
        return 128

    def decode(self, token_ids, *, skip_special_tokens=True):
        return "".join(chr(i) for i in token_ids if i)


class ScriptedGenerator:
    """Answers the n-th request with the n-th reply, in chunks of 5 characters; an exception is raised.

    Characters of `doubted` texts have a log-probability of -3, all others -0.5; with `silent` none is told. `top` is
    how much less likely than each character an "x" is.

    `prompts` records what was asked as text, `asked` as it came, `seeds`, `stops`, `temperatures` and `limits` (of
    tokens) those of each request; `aborted` counts the streams that were closed before their end.
    """

    def __init__(
        self,
        replies: Sequence[str | Exception],
        tokenizer=None,
        hang_at: int | None = None,
        doubted: Sequence[str] = (),
        silent: bool = False,
        top: float | None = None,
    ):
        self.tokenizer = tokenizer
        self.prompts: list[str] = []
        self.asked: list[object] = []
        self.seeds: list[int] = []
        self.stops: list[tuple[str, ...]] = []
        self.limits: list[int] = []
        self.temperatures: list[float] = []
        self.aborted = 0
        self._replies, self._hang_at = list(replies), hang_at
        self._doubted, self._silent, self._top = doubted, silent, top

    async def stream(self, prompt, sampling, stop=()):
        self.asked.append(prompt)
        self.stops.append(tuple(stop))
        if isinstance(prompt, Conversation):
            prompt = prompt.text
        self.prompts.append(prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt))
        self.seeds.append(sampling.seed)
        self.limits.append(sampling.max_tokens)
        self.temperatures.append(sampling.temperature)
        number = len(self.prompts) - 1
        reply = self._replies[number]
        if isinstance(reply, Exception):
            raise reply
        logprobs = self._logprobs(reply)
        done = False
        try:
            for at in range(0, len(reply), 5):
                await asyncio.sleep(0)
                piece = reply[at : at + 5]
                values = logprobs[at : at + len(piece)]
                yield Chunk(piece, tuple(map(ord, piece)), values, top=self._likeliest(piece, values))
            if number == self._hang_at:
                await asyncio.Event().wait()
            yield Chunk("", finish_reason="stop")
            done = True
        finally:
            self.aborted += not done

    def _likeliest(self, piece, values):
        if self._top is None:
            return ()
        return tuple(
            ((ord(c), value), (ord("x"), value - self._top)) for c, value in zip(piece, values, strict=True)
        )

    def _logprobs(self, reply):
        if self._silent:
            return ()
        values = [-0.5] * len(reply)
        for text in self._doubted:
            at = reply.find(text)
            if at >= 0:
                values[at : at + len(text)] = [-3.0] * len(text)
        return tuple(values)

    async def check(self):
        pass

    async def close(self):
        pass


class KeywordRetriever:
    """Finds the passages whose title stands in the query, in corpus order."""

    def __init__(self, passages: Sequence[Passage], error: Exception | None = None):
        self._passages, self._error = passages, error

    def search(self, queries, k):
        if self._error is not None:
            raise self._error
        return [[Hit(p, 1.0) for p in self._passages if p.title in query][:k] for query in queries]
