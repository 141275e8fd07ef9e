"""The one multi-step loop: teacher rollouts, evaluation and the endpoint all run it, so they cannot drift apart.

Errors of a question are data of its trajectory; only a dead engine propagates, because no question after it
could succeed. This module knows retrievers and generators as protocols, and no Ray.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import lru_cache

from steper_ray.config import ReasoningConfig, SamplingConfig, SearchConfig
from steper_ray.core.errors import EngineDeadError, GenerationError, RefusedError, RetrievalError
from steper_ray.frameworks import framework_of, layout_for
from steper_ray.generation.base import Generator, Prompt, prompt_size
from steper_ray.prompts import PromptEncoder, PromptWriter, encoder_for
from steper_ray.reasoning.chain import Chain
from steper_ray.reasoning.draft import Draft
from steper_ray.reasoning.events import Event, Finished, PassagesFound, ReasoningDelta, StepDone, StepStarted
from steper_ray.reasoning.resuming import AT_START, Begun
from steper_ray.reasoning.search import search
from steper_ray.reasoning.stopping import answer_of, reason_at_limit, sentences
from steper_ray.retrieval.base import AsyncRetriever, Retriever, as_async
from steper_ray.schema import Question, Step, StopReason, Trajectory, Usage

Emit = Callable[[Event], None]
_Writer = tuple[Generator, PromptEncoder | PromptWriter]

logger = logging.getLogger(__name__)


class Reasoner:
    """Answers questions step by step. Many questions may be under way at once, in one event loop."""

    def __init__(
        self,
        retriever: Retriever | AsyncRetriever,
        generator: Generator,
        config: ReasoningConfig,
        sampling: SamplingConfig,
        source: str = "",
        sample: int = 0,
        larger: Generator | None = None,
    ) -> None:
        self.config, self._sample, self._attempt = config, sample, 0
        self.max_tokens: int | None = None
        """Tokens that may be written for one question, over all steps."""
        self._retriever, self._generator, self._sampling, self._source = (
            as_async(retriever),
            generator,
            sampling,
            source,
        )
        self._framework = framework_of(config.framework)
        self._prompts = _prompts(config, generator)
        self._larger = None if larger is None else (larger, _prompts(config, larger))

    async def run(
        self, question: Question, emit: Emit = lambda event: None, begun: Begun = AT_START
    ) -> Trajectory:
        """Reasons to the end; `emit` is called with each event as it happens. Raises EngineDeadError alone.

        `begun`: the steps that another engine wrote before it was lost; the events are those of the steps after them.
        """
        chain = Chain(self.config, self._framework, question.text, begun)
        error: str | None = None
        try:
            self._check(question)
            async with asyncio.timeout(self.config.deadline_s) as deadline:
                reason = await self._steps(question, chain, emit)
        except TimeoutError as failed:
            reason = StopReason.DEADLINE
            if not deadline.expired():  # a retriever's own
                reason, error = (
                    StopReason.RETRIEVER_FAILED,
                    f"the retriever timed out: {failed or 'no message'}",
                )
        except RefusedError as refused:
            reason, error = StopReason.REJECTED, str(refused)
        except RetrievalError as failed:
            reason, error = StopReason.RETRIEVER_FAILED, str(failed)
        except EngineDeadError:
            raise
        except GenerationError as failed:
            reason, error = StopReason.GENERATOR_FAILED, str(failed)
        trajectory = self._end(question, chain.steps, reason, error)
        emit(Finished(trajectory))
        return trajectory

    @property
    def sample(self) -> int:
        """The number of its trajectories among those of a question."""
        return self._sample

    def with_sample(self, sample: int) -> Reasoner:
        """The same reasoner for another sample of its questions; it remembers the same passages."""
        other = copy.copy(self)
        other._sample = sample
        return other

    def second_chance(self, wrong: Trajectory) -> Reasoner:
        """The same teacher, for the question of `wrong` alone: it sees its own wrong chain, never the right answer."""
        again = copy.copy(self)
        again._attempt = wrong.attempt + 1
        again._prompts = self._prompts.after(wrong.question.text, wrong.chain)
        if self._larger is not None:
            larger, prompts = self._larger
            again._larger = larger, prompts.after(wrong.question.text, wrong.chain)
        return again

    async def draft(self, trajectory: Trajectory, number: int) -> str:
        """One more draft of step `number` (from 0) of a trajectory, from the passages and the chain it had before it.

        Raises GenerationError or EngineDeadError.
        """
        passages = tuple(hit.passage for step in trajectory.steps[: number + 1] for hit in step.hits)
        question = trajectory.question
        prompt = self._prompts.prompt(question.text, passages, trajectory.chain[:number])
        index = number + 1
        return (await self._generate(index, prompt, self._seeded(question, index), lambda event: None)).piece

    async def stream(self, question: Question, begun: Begun = AT_START) -> AsyncGenerator[Event, None]:
        """The events of `run`, Finished last. Closing the stream aborts the engine's request."""
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        task = asyncio.create_task(self.run(question, events.put_nowait, begun))
        task.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            task.result()  # raises what run raised
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # seen: the reader has it, or has left

    def _end(
        self, question: Question, steps: Sequence[Step], reason: StopReason, error: str | None
    ) -> Trajectory:
        return Trajectory(
            question=question,
            framework=self.config.framework,
            steps=tuple(steps),
            answer=answer_of(steps),
            stop_reason=reason,
            error=error,
            source=self._source,
            sample=self._sample,
            attempt=self._attempt,
        )

    def _check(self, question: Question) -> None:
        limit = self.config.max_question_chars
        if not question.text.strip():
            raise RefusedError("the question is empty")
        if len(question.text) > limit:
            raise RefusedError(
                f"the question has {len(question.text)} characters, the limit is {limit} "
                "(reasoning.max_question_chars)"
            )

    async def _steps(self, question: Question, chain: Chain, emit: Emit) -> StopReason:
        if self.config.search is not None:
            return await self._search(self.config.search, question, chain, emit)
        while chain.index <= self.config.max_steps:
            sampling = self._sampling_of(question, chain)
            if sampling is None:
                break
            emit(StepStarted(chain.index, chain.query()))
            emit(await self._look_up(chain))
            started = time.monotonic()
            made = await self._generate(chain.index, chain.prompt(self._prompts), sampling, emit)
            if self._doubts(made):
                made = await self._escalate(made, chain, sampling)
            if made.piece and not made.logprobs and self.config.stop == "confident":
                _warn_of_silence(self._source, "reasoning.stop=confident behaves like fixed")
            reason = chain.take(made, time.monotonic() - started)
            emit(StepDone(chain.steps[-1]))
            if reason is not None:
                return reason
        return reason_at_limit(chain.steps)

    async def _search(self, config: SearchConfig, question: Question, chain: Chain, emit: Emit) -> StopReason:
        async def write(chain: Chain, number: int) -> Draft | None:
            plain = number % config.candidates == 0
            sampling = self._sampling_of(
                question, chain, 0 if plain else number, None if plain else config.temperature
            )
            if sampling is None:
                return None
            prompt = chain.prompt(self._prompts)
            made = await self._generate(chain.index, prompt, sampling, lambda event: None)
            if made.piece and not made.logprobs and config.score == "logprob":
                _warn_of_silence(self._source, "reasoning.search.score=logprob takes the first candidate")
            return made

        return await search(config, chain, self.config.max_steps, self._look_up, write, emit)

    async def _look_up(self, chain: Chain) -> PassagesFound:
        """Searches for the next step's passages, and puts them into its prompt."""
        started = time.monotonic()
        found = (await self._retriever.find([chain.query()], self.config.k))[0] if self.config.k else []
        return chain.add(found, time.monotonic() - started)

    def _sampling_of(
        self, question: Question, chain: Chain, candidate: int = 0, temperature: float | None = None
    ) -> SamplingConfig | None:
        """The sampling of the next step; None where no tokens are left."""
        sampling = self._seeded(question, chain.index, candidate, temperature)
        if self.max_tokens is None:
            return sampling
        left = self.max_tokens - sum(step.usage.completion_tokens for step in chain.steps)
        if left <= 0:
            return None
        return sampling.model_copy(update={"max_tokens": min(left, sampling.max_tokens)})

    def _seeded(
        self, question: Question, index: int, candidate: int = 0, temperature: float | None = None
    ) -> SamplingConfig:
        """The sampling of one step of one sample: each draws separate numbers, the same in every run."""
        if temperature is None:
            temperature = self._sampling.temperature
        if temperature == 0:
            return self._sampling
        name = f"{self._sampling.seed} {self._sample} {index} {question.id}"
        if self._attempt:
            name += f" {self._attempt}"
        if candidate:
            name += f" candidate {candidate}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) >> 1  # engines take 31 bits
        return self._sampling.model_copy(update={"seed": seed, "temperature": temperature})

    def _doubts(self, made: Draft) -> bool:
        """Whether the larger model is to write the piece."""
        escalate = self.config.escalate
        if self._larger is None or escalate is None:
            return False
        sure = [p for p in made.spans.least(sentences(self._framework, made.piece)) if p is not None]
        if made.piece and not sure:
            _warn_of_silence(self._source, "reasoning.escalate asks no larger model")
        return bool(sure) and min(sure) < escalate.below

    async def _escalate(self, doubted: Draft, chain: Chain, sampling: SamplingConfig) -> Draft:
        """The piece as the larger model writes it, with the tokens of both."""
        assert self._larger is not None
        prompt = chain.prompt(self._larger[1])
        made = await self._generate(chain.index, prompt, sampling, lambda event: None, self._larger)
        made.usage = _with_larger(doubted.usage, made.usage)
        return made

    async def _generate(
        self, index: int, prompt: Prompt, sampling: SamplingConfig, emit: Emit, by: _Writer | None = None
    ) -> Draft:
        """One step's piece. In unit `sentence` the stream is closed as soon as the first one is complete."""
        generator, prompts = by or (self._generator, self._prompts)
        chat, tokenizer = prompts.chat, generator.tokenizer
        draft = Draft(self._framework, self.config.unit, tokenizer, chat)
        # An engine that is sent ids would find a stop string in a thought; an endpoint's chat knows them apart.
        stop = () if chat and tokenizer is not None else self._framework.stop
        async with aclosing(generator.stream(prompt, sampling, stop)) as chunks:
            async for chunk in chunks:
                if text := draft.add(chunk):
                    emit(ReasoningDelta(index, text))
                if draft.complete:
                    break
        if text := draft.end(prompt_size(prompt)):
            emit(ReasoningDelta(index, text))
        return draft


def _prompts(config: ReasoningConfig, generator: Generator) -> PromptEncoder | PromptWriter:
    layout, tokenizer = layout_for(config), generator.tokenizer
    return PromptWriter(layout, config) if tokenizer is None else encoder_for(tokenizer, layout, config)


def _with_larger(doubted: Usage, larger: Usage) -> Usage:
    """Of a step that the larger model wrote again: the tokens of both."""
    return Usage(
        doubted.prompt_tokens + larger.prompt_tokens,
        doubted.completion_tokens + larger.completion_tokens,
        doubted.cached_tokens + larger.cached_tokens,
        doubted.thinking_tokens + larger.thinking_tokens,
        larger.completion_tokens,
    )


@lru_cache(maxsize=64)
def _warn_of_silence(source: str, so: str) -> None:
    """Once for each engine."""
    logger.warning("%s reports no log-probabilities: %s", source or "the engine", so)
