"""Search over steps: several candidates of each step are written, and the best chains go on. Pure.

- A chain ranks by the mean score of its steps, then by their mean log-probability, then in the order of writing; one
  candidate of each step is drawn as without search. An empty one comes last.
- A chain that has ended keeps its place among the best until others rank before it.
- The steps of the chain that is returned count the tokens of all candidates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from statistics import fmean

from steper_ray.config import SearchConfig
from steper_ray.core.answers import comparable
from steper_ray.core.awaiting import together
from steper_ray.core.claims import grounding
from steper_ray.reasoning.chain import Chain
from steper_ray.reasoning.draft import Draft
from steper_ray.reasoning.events import Event, PassagesFound, ReasoningDelta, StepDone, StepStarted
from steper_ray.reasoning.stopping import reason_at_limit
from steper_ray.schema import Step, StopReason, Usage

LookUp = Callable[[Chain], Awaitable[PassagesFound]]
Write = Callable[[Chain, int], Awaitable[Draft | None]]
Score = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Beam:
    """A chain, the score and the mean log-probability of each step, and why it ended, if it has."""

    chain: Chain
    scores: tuple[Score, ...] = ()
    reason: StopReason | None = None

    @property
    def rank(self) -> Score:
        return fmean(score for score, _ in self.scores), fmean(logprob for _, logprob in self.scores)


async def search(
    config: SearchConfig,
    chain: Chain,
    most: int,
    look_up: LookUp,
    write: Write,
    emit: Callable[[Event], None],
) -> StopReason:
    """Reasons on from `chain`, whose steps become those of the best one; at most `most` steps.

    `look_up` puts the next step's passages into a chain, `write` makes the n-th candidate of its next step (None: no
    tokens are left).
    """
    emitted, spent = len(chain.steps), list[Usage]()
    kept = [Beam(chain.copy())]
    while going := [beam for beam in kept if beam.reason is None and beam.chain.index <= most]:
        await together(look_up(beam.chain) for beam in going)
        started = time.monotonic()
        n = config.candidates
        drafts = await together(
            write(beam.chain, at * n + number) for at, beam in enumerate(going) for number in range(n)
        )
        written = [draft for draft in drafts if draft is not None]
        if not written:
            break
        spent.append(_total(draft.usage for draft in written))
        made = [
            one
            for at, beam in enumerate(going)
            for one in _grown(
                config, beam, drafts[at * n : at * n + n], time.monotonic() - started, spent[-1]
            )
        ]
        waiting = [beam for beam in kept if beam not in going]
        kept = sorted([*waiting, *made], key=lambda beam: beam.rank, reverse=True)[: config.beams]
        chain.steps[:] = kept[0].chain.steps
        if config.beams == 1:
            emitted = _emit_steps(chain.steps, emitted, emit)
    if late := spent[len(kept[0].scores) :]:
        chain.steps[-1] = replace(chain.steps[-1], usage=_total((chain.steps[-1].usage, *late)))
    _emit_steps(chain.steps, emitted, emit)
    return kept[0].reason or reason_at_limit(chain.steps)


def _grown(
    config: SearchConfig, beam: Beam, drafts: Sequence[Draft | None], seconds: float, usage: Usage
) -> list[Beam]:
    """The chains that a beam's candidates make of it."""
    written = [draft for draft in drafts if draft is not None]
    scores = _scores(config, written, beam.chain)
    found = []
    for draft, score in zip(written, scores, strict=True):
        chain = beam.chain.copy()
        reason = chain.take(draft, seconds, usage)
        found.append(Beam(chain, (*beam.scores, score), reason))
    return found


def _scores(config: SearchConfig, drafts: Sequence[Draft], chain: Chain) -> list[Score]:
    """The score of each candidate of one step, and its mean log-probability."""
    said = [comparable(draft.piece) for draft in drafts]
    found = []
    for draft, words in zip(drafts, said, strict=True):
        logprob = 0.0 if draft.mean_logprob is None else draft.mean_logprob
        match config.score:
            case "logprob":
                score = logprob
            case "agreement":
                score = said.count(words) / len(said)
            case "grounding":
                held = grounding(draft.piece, chain.question, chain.passages)
                score = 1.0 if held is None else held
        found.append((score if draft.piece else -math.inf, logprob))
    return found


def _total(usages: Iterable[Usage]) -> Usage:
    return Usage(*map(sum, zip(*map(astuple, usages), strict=True)))


def _emit_steps(steps: Sequence[Step], emitted: int, emit: Callable[[Event], None]) -> int:
    """Emits the events of the steps from `emitted` on; returns the number of all."""
    for step in steps[emitted:]:
        emit(StepStarted(step.index, step.query))
        emit(PassagesFound(step.index, step.hits, step.duplicates, step.retrieval_seconds))
        emit(ReasoningDelta(step.index, step.reasoning))
        emit(StepDone(step))
    return len(steps)
