"""One step's generation, chunk by chunk: its piece of the chain, and the tokens it cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from steper_ray.core.errors import GenerationError, RefusedError
from steper_ray.core.tokenizers import Tokenizer, vocabulary_fingerprint
from steper_ray.frameworks.base import Framework
from steper_ray.generation.base import Chunk, Likeliest
from steper_ray.reasoning.confidence import TokenSpans
from steper_ray.reasoning.reply import Reply
from steper_ray.schema import TopLogprobs, Usage


class Draft:
    """Takes a stream's chunks until it is `complete` or the stream ends; then `end` settles the piece.

    `chat`: the model may think before it writes, and the framework's stop strings are looked for here.
    """

    def __init__(
        self,
        framework: Framework,
        unit: Literal["sentence", "chain"],
        tokenizer: Tokenizer | None,
        chat: bool,
    ) -> None:
        self.piece = ""
        self.complete = False
        self.spans = TokenSpans(tokenizer)
        self.logprobs: list[float] = []
        self.usage = Usage()
        self._tokenizer = tokenizer
        self._top: list[tuple[int, Likeliest]] = []
        self._framework, self._one_sentence = framework, unit == "sentence"
        self._reply = Reply(framework.stop) if chat else None
        self._text = ""
        self._tokens = 0
        self._reported: Usage | None = None

    @property
    def mean_logprob(self) -> float | None:
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else None

    @property
    def top_logprobs(self) -> TopLogprobs | None:
        """Of each token; None where the engine was opened for none. Raises GenerationError for what is no number."""
        if not self._top:
            return None
        width = min(len(listed) for _, listed in self._top)
        likeliest = [one for _, listed in self._top for one in listed[:width]]
        if any(math.isnan(value) for _, value in likeliest):
            raise GenerationError("the engine gave a log-probability that is no number")
        return TopLogprobs(
            vocabulary_fingerprint(self._tokenizer),
            tuple(token for token, _ in self._top),
            tuple(token for token, _ in likeliest),
            tuple(value for _, value in likeliest),
        )

    def add(self, chunk: Chunk) -> str:
        """The chunk's part of the piece's text."""
        self._tokens += len(chunk.token_ids)
        self._reported = chunk.usage or self._reported
        if self._reply is not None:
            chunk = self._reply.push(chunk)
        self.spans.add(chunk)
        self.logprobs.extend(chunk.logprobs)
        self._top.extend(zip(chunk.token_ids, chunk.top, strict=True) if chunk.top else ())
        self._text += chunk.text
        if self._one_sentence:
            self.piece, self.complete = self._framework.cut(self._text)
        if self._reply is not None and self._reply.stopped:
            self._settle()
        return chunk.text

    def end(self, prompt_tokens: int) -> str:
        """Settles piece and usage; returns text that was held back. Raises RefusedError if there was only thinking."""
        held = self._reply.flush() if self._reply is not None and not self.complete else ""
        self._text += held
        if not self.complete:
            self._settle()
        usage = self._reported or Usage(prompt_tokens=prompt_tokens, completion_tokens=self._tokens)
        if self._reply is not None and self._reply.thought:
            thought = max(usage.thinking_tokens, self._reply.thought)
            usage = replace(usage, thinking_tokens=min(thought, usage.completion_tokens or thought))
            if self._reply.thinking and not self._text:
                raise RefusedError(
                    f"the model thought for {usage.thinking_tokens} tokens and wrote nothing: raise "
                    "sampling.max_tokens, or turn thinking off, such as by "
                    "reasoning.template_arguments={enable_thinking: false}"
                )
        self.usage = usage
        return held

    def _settle(self) -> None:
        """The piece of a text to which nothing is added."""
        cut = self._framework.cut(self._text)[0] if self._one_sentence else self._framework.clean(self._text)
        self.piece, self.complete = cut, True
