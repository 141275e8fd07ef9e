"""The ways in which rollouts.py answers the same questions on the same engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind

from steper_ray.config import Config, SamplingConfig
from steper_ray.core.answers import extract_answer
from steper_ray.frameworks import FRAMEWORKS, layout_for
from steper_ray.generation.base import Prompt
from steper_ray.generation.vllm_engine import VllmGenerator, _params
from steper_ray.prompts import PromptEncoder
from steper_ray.reasoning import Reasoner
from steper_ray.reasoning.passages import PassagePool
from steper_ray.retrieval.base import Retriever
from steper_ray.schema import Question, Trajectory

Chains = list[tuple[str, ...]]


@dataclass(slots=True)
class Request:
    """What one generation read, and the number of tokens it came to until its stream was closed."""

    prompt: list[int]
    written: int = 0


@dataclass
class Recorder:
    """The engine, and what it was asked."""

    engine: VllmGenerator
    requests: list[Request] = field(default_factory=list)

    @property
    def tokenizer(self) -> Any:
        return self.engine.tokenizer

    async def stream(self, prompt: Prompt, sampling: SamplingConfig, stop: Sequence[str] = ()) -> Any:
        request = Request(list(prompt))  # type: ignore[arg-type]
        self.requests.append(request)
        async with aclosing(self.engine.stream(prompt, sampling, stop)) as chunks:
            async for chunk in chunks:
                request.written += len(chunk.token_ids)
                yield chunk

    async def check(self) -> None:
        await self.engine.check()

    async def close(self) -> None:
        await self.engine.close()


class Ways:
    """One engine with an index and questions."""

    def __init__(
        self, config: Config, questions: Sequence[Question], retriever: Retriever, engine: VllmGenerator
    ) -> None:
        self.config, self.questions, self.retriever, self.engine = config, questions, retriever, engine
        self.recorder = Recorder(engine)
        self._reasoner = Reasoner(retriever, self.recorder, config.reasoning, config.sampling)
        self._numbers = iter(range(10**9))
        self._passes = 0
        core = engine._llm.engine_core
        next_output = core.get_output_async

        async def counted() -> Any:
            outputs = await next_output()
            self._passes += bool(outputs.outputs)
            return outputs

        core.get_output_async = counted

    async def one_by_one(self, count: int) -> list[Trajectory]:
        return [await self._reasoner.run(question) for question in self.questions[:count]]

    async def ours(self) -> list[Trajectory]:
        slots = asyncio.Semaphore(self.config.build.in_flight)

        async def run(question: Question) -> Trajectory:
            async with slots:
                return await self._reasoner.run(question)

        self.recorder.requests.clear()
        return await asyncio.gather(*map(run, self.questions))

    async def lockstep(self, *, shared_cache: bool) -> Chains:
        """Batches of as many questions as the engine runs together, one batch after the other."""
        size = self.config.engine.max_batch
        found: Chains = []
        for at in range(0, len(self.questions), size):
            found += await self._batch(self.questions[at : at + size], shared_cache)
        return found

    async def _batch(self, questions: Sequence[Question], shared_cache: bool) -> Chains:
        reasoning = self.config.reasoning
        framework = FRAMEWORKS[reasoning.framework]
        encoder = PromptEncoder(self.engine.tokenizer, layout_for(reasoning))
        chains: Chains = [()] * len(questions)
        pools = [PassagePool(reasoning) for _ in questions]
        going = list(range(len(questions)))
        for step in range(reasoning.max_steps):
            queries = [framework.next_query(questions[row].text, chains[row]) for row in going]
            for row, hits in zip(going, self.retriever.search(queries, reasoning.k), strict=True):
                pools[row].add(hits)
            prompts = [encoder.prompt(questions[row].text, pools[row].passages, chains[row]) for row in going]
            salt = None if shared_cache else f"step {step}"
            texts = await asyncio.gather(*(self._whole(p, framework.stop, salt) for p in prompts))
            for row, text in zip(going, texts, strict=True):
                chains[row] += (framework.cut(text)[0],)
            going = [row for row in going if chains[row][-1] and extract_answer(chains[row][-1]) is None]
        return chains

    async def _whole(self, prompt: list[int], stop: Sequence[str], salt: str | None) -> str:
        sampling = self.config.sampling
        params = _params(sampling, sampling.max_tokens, stop)
        return (await self._final(tokens_input(prompt, cache_salt=salt), params)).text

    async def bound(self, requests: Sequence[Request]) -> int:
        """The tokens written: as many as the requests had."""

        async def one(request: Request) -> int:
            exactly = self.config.sampling.model_copy(update={"min_tokens": request.written})
            params = _params(exactly, request.written, ())
            params.ignore_eos = True
            return len((await self._final(tokens_input(request.prompt), params)).token_ids)

        return sum(await asyncio.gather(*map(one, requests)))

    async def _final(self, prompt: Any, params: Any) -> Any:
        """A whole output at once: nothing is streamed."""
        params.output_kind = RequestOutputKind.FINAL_ONLY
        async for output in self.engine._llm.generate(prompt, params, f"bare-{next(self._numbers)}"):
            last = output
        return last.outputs[0]

    def repeated(self, trajectories: Sequence[Trajectory]) -> float:
        """Share of the prompt tokens of later steps with which the same question's prompt before began.

        No cache of prefixes serves more, but by chance.
        """
        encoder = PromptEncoder(self.engine.tokenizer, layout_for(self.config.reasoning))
        shared = total = 0
        for trajectory in trajectories:
            before: list[int] = []
            for number in range(len(trajectory.steps)):
                passages = [hit.passage for step in trajectory.steps[: number + 1] for hit in step.hits]
                prompt = encoder.prompt(trajectory.question.text, passages, trajectory.chain[:number])
                if number:
                    differ = (n for n, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b)
                    shared += next(differ, min(len(before), len(prompt)))
                    total += len(prompt)
                before = prompt
        return shared / total

    async def timed(self, run: Callable[[], Awaitable[Any]]) -> tuple[float, int, Any]:
        """Seconds from an empty prefix cache, the engine's forward passes that wrote something, and what came."""
        if not await self.engine._llm.reset_prefix_cache():
            raise RuntimeError("the engine is not idle")
        started, self._passes = time.perf_counter(), 0
        found = await run()
        return time.perf_counter() - started, self._passes, found
