"""The annotation teacher: writes the chain from a gold decomposition, so that step-wise data needs no model.

- It retrieves at each step exactly as the reasoner does: the same queries, the same pool of passages.
- What a step says is the gold fact of a hop. It is stated when its passage is in the prompt: of the hops whose
  references are known, the first one with its passage there comes next. Where none has, `missing` decides.

Knows a retriever as a protocol, no engine, no Ray.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from steper_ray.config import ReasoningConfig
from steper_ray.core.answers import comparable, extract_answer
from steper_ray.core.errors import RetrievalError
from steper_ray.frameworks import Fact, framework_of
from steper_ray.reasoning.passages import PassagePool
from steper_ray.retrieval.base import Retriever
from steper_ray.rollouts.rewriting import Rewriter
from steper_ray.rollouts.statements import fill_in, follow_up, recased, references, state
from steper_ray.schema import Hit, Passage, Question, Step, StopReason, SubQuestion, Trajectory

SOURCE = "annotation"
#: Why no chain is written: these open the `error` of a rejected trajectory.
NO_DECOMPOSITION = "no_decomposition"
TOO_MANY_HOPS = "too_many_hops"
UNSUPPORTED = "unsupported"
#: Raised by hand when the same questions and passages give other chains.
VERSION = 3


@dataclass(frozen=True, slots=True)
class Hop:
    """A gold fact, the hops it refers to (from 0) and its passage: the id, and the passage where the corpus has it."""

    fact: Fact
    needs: frozenset[int]
    support_id: str | None
    passage: Passage | None


def gold_facts(
    decomposition: Sequence[SubQuestion], passages: Sequence[Passage | None] = ()
) -> tuple[Fact, ...]:
    """The hops in order, each with the answers of earlier hops filled in and its names written as in its passage."""
    facts: list[Fact] = []
    for number, sub in enumerate(decomposition):
        question = fill_in(sub.question, [fact.answer for fact in facts])
        answer = " ".join(sub.answer.split())
        passage = passages[number] if number < len(passages) else None
        statement = state(question, answer)
        facts.append(Fact(follow_up(question), answer, recased(statement, passage) if passage else statement))
    return tuple(facts)


class AnnotationTeacher:
    """Trajectories of S = hops + 1 steps: one fact a hop, then the answer.

    `find` returns a passage of the corpus by its id, or None.
    """

    sample = 0

    def __init__(
        self,
        retriever: Retriever,
        config: ReasoningConfig,
        find: Callable[[str], Passage | None],
        missing: Literal["inject", "drop", "keep"] = "inject",
        rewriter: Rewriter | None = None,
    ) -> None:
        self._retriever, self._config, self._find = retriever, config, find
        self._missing, self._rewriter = missing, rewriter
        self._framework = framework_of(config.framework)

    async def run(self, question: Question) -> Trajectory:
        """The gold trajectory. Rejected, with the reason as data, where there is none of at most S steps."""
        hops, limit = len(question.decomposition), self._config.max_steps
        if not hops or not question.answers:
            return self._end(question, (), StopReason.REJECTED, f"{NO_DECOMPOSITION}: there is no gold chain")
        if hops + 1 > limit:
            needed = f"{hops} hops take {hops + 1} steps, the limit is {limit} (reasoning.max_steps)"
            return self._end(question, (), StopReason.REJECTED, f"{TOO_MANY_HOPS}: {needed}")
        hops_found = await asyncio.to_thread(self._hops, question)
        if self._rewriter is not None:
            hops_found = await self._rewritten(hops_found, self._rewriter)
        return await asyncio.to_thread(self._write, question, hops_found)

    async def _rewritten(self, hops: Sequence[Hop], rewriter: Rewriter) -> tuple[Hop, ...]:
        facts = [replace(hop.fact, statement=await rewriter.statement(hop.fact)) for hop in hops]
        return tuple(replace(hop, fact=fact) for hop, fact in zip(hops, facts, strict=True))

    def _hops(self, question: Question) -> tuple[Hop, ...]:
        subs = question.decomposition
        passages = [None if sub.support_id is None else self._find(sub.support_id) for sub in subs]
        return tuple(
            Hop(fact, references(sub.question, number), sub.support_id, passage)
            for number, (sub, fact, passage) in enumerate(
                zip(subs, gold_facts(subs, passages), passages, strict=True)
            )
        )

    def _write(self, question: Question, hops: Sequence[Hop]) -> Trajectory:
        lag = self._framework.lag
        pool, steps, order, chain = PassagePool(self._config), list[Step](), list[int](), list[str]()
        while len(steps) <= len(hops):
            query = self._framework.next_query(question.text, chain)
            started = time.monotonic()
            try:
                found = self._retriever.search([query], self._config.k)[0]
            except RetrievalError as error:
                return self._end(question, tuple(steps), StopReason.RETRIEVER_FAILED, str(error))
            seconds = time.monotonic() - started
            hits = pool.add(found)
            duplicates = len(found) - len(hits)
            if len(order) < len(hops):
                order.append(_next(hops, order, pool if not lag else None))
            stated = hops[order[len(steps) - lag]] if 0 <= len(steps) - lag < len(hops) else None
            supported, injected = None if stated is None else _is_supported(stated, pool), None
            if stated is not None and not supported and self._missing != "keep":
                room = (
                    self._with_passage(stated, question, steps, hits) if self._missing == "inject" else None
                )
                if room is None:
                    where = f"{UNSUPPORTED}: not in the prompt of step {len(steps) + 1}"
                    return self._end(question, (), StopReason.REJECTED, f"{where}: {stated.fact.statement}")
                (hits, pool), supported = room, True
                injected = stated.support_id
            rest = (number for number in range(len(hops)) if number not in order)
            facts = [hops[number].fact for number in (*order, *rest)]
            chain.append(self._framework.gold_chain(facts, question.answers[0])[len(steps)])
            steps.append(
                Step(
                    len(steps) + 1, query, hits, chain[-1],
                    retrieval_seconds=seconds, duplicates=duplicates, supported=supported, injected=injected,
                )
            )  # fmt: skip
        return self._end(question, tuple(steps), StopReason.ANSWERED)

    def _with_passage(
        self, hop: Hop, question: Question, steps: Sequence[Step], hits: tuple[Hit, ...]
    ) -> tuple[tuple[Hit, ...], PassagePool] | None:
        """A step's hits with the hop's passage at a place drawn by the question's id: no place says which it is.

        Where k hits are there, the last one that is no gold passage makes room. None without a passage or room.
        """
        if hop.passage is None:
            return None
        kept = list(hits)
        if len(kept) >= self._config.k:
            others = [n for n, hit in enumerate(kept) if hit.passage.id not in question.gold_ids]
            kept.pop(others[-1] if others else -1)
        draw = hashlib.sha256(f"{question.id}/{len(steps)}".encode()).digest()
        place = int.from_bytes(draw[:8], "big") % (len(kept) + 1)
        score = min((hit.score for hit in hits), default=0.0)
        kept.insert(place, Hit(hop.passage, score))
        pool = PassagePool(self._config)
        for step in steps:
            pool.add(step.hits)
        added = pool.add(kept)
        return (added, pool) if hop.passage in pool else None

    def _end(
        self, question: Question, steps: tuple[Step, ...], reason: StopReason, error: str | None = None
    ) -> Trajectory:
        answer = extract_answer(steps[-1].reasoning) if reason is StopReason.ANSWERED else None
        return Trajectory(question, self._config.framework, steps, answer or "", reason, error, SOURCE)


def _next(hops: Sequence[Hop], order: Sequence[int], pool: PassagePool | None) -> int:
    """The hop that comes next: of those whose references are stated the first with its passage in the pool."""
    free = [n for n, hop in enumerate(hops) if n not in order and hop.needs <= set(order)]
    if pool is None:
        return free[0]
    return next((number for number in free if _is_supported(hops[number], pool)), free[0])


def _is_supported(hop: Hop, pool: PassagePool) -> bool:
    """Whether the hop's passage is in the prompt; where the data do not name it, whether one has the answer's words."""
    if hop.passage is not None:
        return hop.passage in pool
    if hop.support_id is not None:
        return any(passage.id == hop.support_id for passage in pool.passages)
    answer = f" {comparable(hop.fact.answer)} "
    return any(answer in f" {comparable(one.title)} {comparable(one.text)} " for one in pool.passages)
