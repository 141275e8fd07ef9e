"""Stopping policies: which part of a step the chain keeps, what the next one asks, and why there is none.

`fixed` accepts whatever is written. `confident` goes by how sure the engine was of each sentence (as FLARE does, Jiang
et al., 2023): from the first unsure one on, a step is taken back and written again with the passages that this sentence
finds. `stable` takes an answer back until the next step states the same. Pure: no engine, no retriever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from steper_ray.config import ReasoningConfig
from steper_ray.core.answers import comparable, extract_answer
from steper_ray.frameworks.base import Framework, rewrites
from steper_ray.reasoning.confidence import TokenSpans
from steper_ray.schema import Step, StopReason


@dataclass(frozen=True, slots=True)
class Written:
    """A step's piece with the tokens it was written by, the chain before it, and the queries up to this step's.

    `last` says that no step can follow.
    """

    piece: str
    spans: TokenSpans
    chain: tuple[str, ...]
    asked: tuple[str, ...]
    last: bool


@dataclass(frozen=True, slots=True)
class Ruling:
    """The decision on a piece. `kept` joins the chain; `reason` ends the trajectory, `query` is what to ask next.

    Without either the framework says what to ask. `confidence` is that of the whole piece (None: not known).
    """

    kept: str
    taken_back: str = ""
    reason: StopReason | None = None
    query: str | None = None
    confidence: float | None = None


class Policy(Protocol):
    """The policy of one question: it sees every step, in order."""

    def rule(self, written: Written) -> Ruling: ...

    def follow(self, step: Step) -> None:
        """Takes over a step that the policy of another engine ruled."""


def policy_for(config: ReasoningConfig, framework: Framework, question: str) -> Policy:
    """A fresh policy for one question."""
    if rewrites(framework):
        return Rounds()
    match config.stop:
        case "fixed":
            return Fixed(framework)
        case "confident":
            return Confident(framework, question, config.confidence)
        case "stable":
            return Stable(framework, question)


class Fixed:
    """The first stated answer is the answer."""

    def __init__(self, framework: Framework) -> None:
        self._framework = framework

    def rule(self, written: Written) -> Ruling:
        sure = _known(written.spans.least(sentences(self._framework, written.piece)))
        return Ruling(written.piece, reason=_reason(written.piece), confidence=min(sure, default=None))

    def follow(self, step: Step) -> None:
        pass


class Rounds:
    """All rounds run: each writes a whole chain again, and the answer of the last one counts."""

    def rule(self, written: Written) -> Ruling:
        reason = _reason(written.piece)
        return Ruling(written.piece, reason=reason if written.last or reason is StopReason.EMPTY else None)

    def follow(self, step: Step) -> None:
        pass


class Confident:
    """A sentence is accepted when its least likely token has a probability of at least `least`.

    From the first other one on, the piece is taken back, once at each place of the chain: what is as unsure after a
    second retrieval is accepted, and so is the rest of a piece when there is no step left. An answer that rests on such
    a sentence is `unsure`. Without log-probabilities it behaves like `fixed`.
    """

    def __init__(self, framework: Framework, question: str, least: float) -> None:
        self._framework, self._question, self._least = framework, question, least
        self._accepted = 0  # sentences
        self._tried: set[int] = set()
        self._unsure = False
        self._best = -1.0  # confidence of the best answer that was taken back

    def rule(self, written: Written) -> Ruling:
        parts = sentences(self._framework, written.piece)
        found = written.spans.least(parts)
        confidence = min(_known(found), default=None)
        doubted = next((n for n, p in enumerate(found) if p is not None and p < self._least), None)
        if doubted is None or confidence is None:
            return self._accept(written.piece, len(parts), confidence)
        place, stated = self._accepted + doubted, extract_answer(written.piece) is not None
        better = written.last and stated and self._best > confidence
        if better or not (written.last or place in self._tried):
            self._tried.add(place)
            self._accepted = place
            if stated:
                self._best = max(self._best, confidence)
            kept, taken = _cut(written.piece, parts[:doubted])
            query = None if better else _query(self._framework, self._question, written, kept, parts[doubted])
            return Ruling(kept, taken, StopReason.UNSURE if better else None, query, confidence)
        self._unsure = True
        return self._accept(written.piece, len(parts), confidence)

    def follow(self, step: Step) -> None:
        self._accepted += len(sentences(self._framework, step.reasoning))
        if step.taken_back:
            self._tried.add(self._accepted)
            if extract_answer(step.taken_back) is not None:
                self._best = max(self._best, step.confidence or 0.0)
        elif step.confidence is not None and step.confidence < self._least:
            self._unsure = True

    def _accept(self, piece: str, size: int, confidence: float | None) -> Ruling:
        self._accepted += size
        reason = _reason(piece)
        if reason is StopReason.ANSWERED and self._unsure:
            reason = StopReason.UNSURE
        return Ruling(piece, reason=reason, confidence=confidence)


class Stable:
    """An answer is accepted when the step after it, which has seen more, states the same (after normalisation).

    Until then the step that stated it is taken back; where no step is left, its answer is `unsure`.
    """

    def __init__(self, framework: Framework, question: str) -> None:
        self._framework, self._question = framework, question
        self._before: str | None = None

    def rule(self, written: Written) -> Ruling:
        piece = written.piece
        confidence = min(_known(written.spans.least(sentences(self._framework, piece))), default=None)
        stated = extract_answer(piece)
        answer = None if stated is None else comparable(stated)
        same, self._before = answer == self._before, answer
        if answer is None or same:
            return Ruling(piece, reason=_reason(piece), confidence=confidence)
        if written.last:
            return Ruling(piece, reason=StopReason.UNSURE, confidence=confidence)
        query = _query(self._framework, self._question, written, "", piece)
        return Ruling("", piece, query=query, confidence=confidence)

    def follow(self, step: Step) -> None:
        stated = extract_answer(step.taken_back or step.reasoning)
        self._before = None if stated is None else comparable(stated)


def sentences(framework: Framework, piece: str) -> list[str]:
    """A piece cut where the framework cuts steps. Joined by blanks they are the piece."""
    found, rest = list[str](), piece
    while rest:
        head, _ = framework.cut(rest)
        if not head or not rest.startswith(head):
            head = rest
        found.append(head)
        rest = rest[len(head) :].lstrip()
    return found


def answer_of(steps: Sequence[Step]) -> str:
    """The stated answer; without one the most confident of those that were taken back, the latest of equals; without
    these the last reasoning, which may still hold it."""
    last = next((step.reasoning for step in reversed(steps) if step.reasoning), "")
    stated = extract_answer(last)
    if stated is not None:
        return stated
    best = max(filter(_answers_taken_back, steps), key=lambda s: (s.confidence or 0.0, s.index), default=None)
    return (extract_answer(best.taken_back) if best is not None else None) or last


def reason_at_limit(steps: Sequence[Step]) -> StopReason:
    """Why a trajectory ended that has no step left and states no answer."""
    return StopReason.UNSURE if any(map(_answers_taken_back, steps)) else StopReason.STEP_LIMIT


def _answers_taken_back(step: Step) -> bool:
    return extract_answer(step.taken_back) is not None


def _reason(piece: str) -> StopReason | None:
    """Why an accepted piece ends the trajectory, if it does."""
    if not piece:
        return StopReason.EMPTY
    return None if extract_answer(piece) is None else StopReason.ANSWERED


def _query(framework: Framework, question: str, written: Written, kept: str, doubted: str) -> str:
    """The query for doubted words: as a next step would ask, or, where that was asked, in their own words."""
    query = framework.next_query(question, (*written.chain, kept, doubted))
    return doubted if query in written.asked else query


def _cut(piece: str, kept: Sequence[str]) -> tuple[str, str]:
    """The piece up to the end of its first sentences `kept`, and the rest."""
    at = 0
    for sentence in kept:
        at = piece.index(sentence, at) + len(sentence)
    return piece[:at], piece[at:].lstrip()


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
