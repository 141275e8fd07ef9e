"""The annotation teacher: writes the chain from a gold decomposition, so that step-wise data needs no model.

It retrieves at each step exactly as the reasoner does (same queries, same pool of passages), but what a step
says is the gold fact of its hop. The chain is right by construction; how often the passages support it is in
the report's recall. It knows a retriever as a protocol, no engine, no Ray.
"""

from __future__ import annotations

import asyncio
import time

from steper_ray.config import ReasoningConfig
from steper_ray.core.answers import extract_answer
from steper_ray.core.errors import RetrievalError
from steper_ray.frameworks import Fact, framework_of
from steper_ray.reasoning.passages import PassagePool
from steper_ray.retrieval.base import Retriever
from steper_ray.rollouts.statements import fill_in, follow_up, state
from steper_ray.schema import Question, Step, StopReason, SubQuestion, Trajectory

SOURCE = "annotation"
#: Why no chain is written: these open the `error` of a rejected trajectory.
NO_DECOMPOSITION = "no_decomposition"
TOO_MANY_HOPS = "too_many_hops"


def gold_facts(decomposition: tuple[SubQuestion, ...]) -> tuple[Fact, ...]:
    """The hops of a decomposition in order, each with the answers of earlier hops filled in."""
    facts: list[Fact] = []
    for sub in decomposition:
        question = fill_in(sub.question, [fact.answer for fact in facts])
        answer = " ".join(sub.answer.split())
        facts.append(Fact(follow_up(question), answer, state(question, answer)))
    return tuple(facts)


class AnnotationTeacher:
    """Trajectories of S = hops + 1 steps: one fact a hop, then the answer."""

    sample = 0

    def __init__(self, retriever: Retriever, config: ReasoningConfig) -> None:
        self._retriever, self._config = retriever, config
        self._framework = framework_of(config.framework)

    async def run(self, question: Question) -> Trajectory:
        """The gold trajectory. Rejected, with the reason as data, where there is none of at most S steps."""
        hops, limit = len(question.decomposition), self._config.max_steps
        if not hops or not question.answers:
            return self._end(question, (), StopReason.REJECTED, f"{NO_DECOMPOSITION}: there is no gold chain")
        if hops + 1 > limit:
            needed = f"{hops} hops take {hops + 1} steps, the limit is {limit} (reasoning.max_steps)"
            return self._end(question, (), StopReason.REJECTED, f"{TOO_MANY_HOPS}: {needed}")
        return await asyncio.to_thread(self._write, question)

    def _write(self, question: Question) -> Trajectory:
        chain = self._framework.gold_chain(gold_facts(question.decomposition), question.answers[0])
        pool = PassagePool(self._config)
        steps: list[Step] = []
        for index, piece in enumerate(chain, 1):
            query = self._framework.next_query(question.text, chain[: index - 1])
            started = time.monotonic()
            try:
                found = self._retriever.search([query], self._config.k)[0]
            except RetrievalError as error:
                return self._end(question, tuple(steps), StopReason.RETRIEVER_FAILED, str(error))
            seconds = time.monotonic() - started
            hits = pool.add(found)
            repeated = len(found) - len(hits)
            steps.append(Step(index, query, hits, piece, retrieval_seconds=seconds, duplicates=repeated))
        return self._end(question, tuple(steps), StopReason.ANSWERED)

    def _end(
        self, question: Question, steps: tuple[Step, ...], reason: StopReason, error: str | None = None
    ) -> Trajectory:
        answer = extract_answer(steps[-1].reasoning) if reason is StopReason.ANSWERED else None
        return Trajectory(question, self._config.framework, steps, answer or "", reason, error, SOURCE)
