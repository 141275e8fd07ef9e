"""Verifiers that ask a model: do other drafts of a step say the same, and does a judge find that it follows.

Each scores one trajectory, step by step, from 0 to 1. A step that the model refuses has no score; any other failure of
the engine propagates, and the trajectory's scores are owed. They know generators and the reasoner, and no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from steper_ray.config import ReasoningConfig, SamplingConfig, VerifyConfig
from steper_ray.core.answers import comparable
from steper_ray.core.chat import Conversation
from steper_ray.core.claims import claims_of
from steper_ray.core.errors import RefusedError
from steper_ray.frameworks.layout import clean
from steper_ray.generation.base import Generator, generate
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval.base import Retriever
from steper_ray.schema import Passage, Trajectory

JUDGE_PROMPT = """\
Someone answers a question step by step from passages. Decide about the next step alone.

{passages}Question: {question}
Steps so far: {chain}
Next step: {step}

Does the next step follow from the passages and the steps so far, and does it lead towards the answer? \
Answer Yes or No.
Answer:"""


class ModelVerifier(Protocol):
    """One score a step; None where there is none."""

    name: str

    async def scores(self, trajectory: Trajectory) -> list[float | None]: ...


def agreement_sampling(sampling: SamplingConfig, config: VerifyConfig) -> SamplingConfig:
    """How other drafts are drawn: as the teacher's steps, at the verifier's temperature and from another seed."""
    # Another seed: a draft must not repeat the draws of the sample it is compared with.
    return sampling.model_copy(
        update={"temperature": config.agreement_temperature, "seed": sampling.seed + 1_000_003}
    )


class Agreement:
    """Share of other drafts of a step that claim the same names, numbers and answer (self-consistency, by step).

    `drafters` reason with the agreement's sampling, each with another sample number.
    """

    name = "agreement"

    def __init__(self, drafters: Sequence[Reasoner]) -> None:
        self._drafters = drafters

    async def scores(self, trajectory: Trajectory) -> list[float | None]:
        return [await self._score(trajectory, number) for number in range(len(trajectory.steps))]

    async def _score(self, trajectory: Trajectory, number: int) -> float | None:
        said = _said(trajectory.steps[number].reasoning)
        try:
            drafts = [await drafter.draft(trajectory, number) for drafter in self._drafters]
        except RefusedError:
            return None
        return sum(_said(draft) == said for draft in drafts) / len(drafts)


class Judge:
    """The judge's probability that a step follows and helps, from the token with which it says Yes or No."""

    name = "judge"

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._sampling = SamplingConfig(max_tokens=1)

    async def scores(self, trajectory: Trajectory) -> list[float | None]:
        seen: list[Passage] = []
        scores = []
        for number, step in enumerate(trajectory.steps):
            seen += [hit.passage for hit in step.hits]
            scores.append(await self._score(judge_prompt(trajectory, number, seen)))
        return scores

    async def _score(self, prompt: str) -> float | None:
        try:
            # An endpoint that only chats is asked in a chat.
            asked = prompt if self._generator.tokenizer else Conversation("", prompt, "", prompt)
            completion = await generate(self._generator, asked, self._sampling)
        except RefusedError:
            return None
        verdict = completion.text.strip().lower()
        sure = 1.0 if completion.mean_logprob is None else math.exp(completion.mean_logprob)
        if verdict and "yes".startswith(verdict):  # a tokenizer may cut the word
            return sure
        return 1.0 - sure if verdict and "no".startswith(verdict) else None


def judge_prompt(trajectory: Trajectory, number: int, seen: Sequence[Passage]) -> str:
    """The judge's prompt for step `number` (from 0); data is cleaned, so that it cannot forge a line."""
    return JUDGE_PROMPT.format(
        passages="".join(f"Title: {clean(p.title)}\n{clean(p.text)}\n\n" for p in seen),
        question=clean(trajectory.question.text),
        chain=clean(" ".join(trajectory.chain[:number])) or "none",
        step=clean(trajectory.steps[number].reasoning),
    )


def open_verifiers(
    names: Iterable[str],
    sampling: SamplingConfig,
    verify: VerifyConfig,
    reasoning: ReasoningConfig,
    retriever: Retriever,
    generator: Generator | None,
    judge: Generator | None,
) -> dict[str, ModelVerifier]:
    """The verifiers of these names; `generator` is the teacher's, `judge` that of `judge_engine` where it is set."""
    made: dict[str, ModelVerifier] = {}
    for name in names:
        if name == Judge.name:
            asked = judge or generator
            assert asked is not None  # the config's own check
            made[name] = Judge(asked)
        else:
            assert generator is not None
            hot = agreement_sampling(sampling, verify)
            drafters = [
                Reasoner(retriever, generator, reasoning, hot, sample=n)
                for n in range(verify.agreement_drafts)
            ]
            made[name] = Agreement(drafters)
    return made


def _said(reasoning: str) -> object:
    """The content two drafts must share: their claims, or the words where nothing is claimed."""
    claims = claims_of(reasoning)
    return (frozenset(claims.all), claims.answer) if claims.all else comparable(reasoning)
