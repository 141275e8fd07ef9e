"""Counts over the trajectories of a build, part by part: those of several parts add up with `+=`. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from steper_ray.schema import Ability, StepScore, StopReason, ability_of


@dataclass(slots=True)
class VerifierCount:
    """One verifier over the trajectories with a right answer, whatever the others say of them."""

    least: float
    trajectories: int = 0
    below: int = 0
    """Trajectories with a step below `least`."""
    steps: int = 0
    """Steps that have a score."""
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        return self.total / self.steps if self.steps else None

    def add(self, scores: list[float]) -> None:
        """The scores of one trajectory's steps."""
        self.trajectories += 1
        self.below += any(score < self.least for score in scores)
        self.steps += len(scores)
        self.total += sum(scores)

    def __add__(self, other: VerifierCount) -> VerifierCount:
        return VerifierCount(
            self.least,
            self.trajectories + other.trajectories,
            self.below + other.below,
            self.steps + other.steps,
            self.total + other.total,
        )


@dataclass(slots=True)
class FactCount:
    """The facts of kept annotated chains, and how many have their passage in the prompt where they are stated.

    `stated` and `supported` are by step, from the first; `injected` passages were put there (build.annotation.missing).
    """

    stated: list[int] = field(default_factory=list)
    supported: list[int] = field(default_factory=list)
    injected: int = 0

    def add(self, supported: Sequence[bool | None], injected: int) -> None:
        """The steps of one trajectory."""
        more = FactCount([one is not None for one in supported], [one is True for one in supported], injected)
        self += more

    def __iadd__(self, other: FactCount) -> FactCount:
        for mine, theirs in ((self.stated, other.stated), (self.supported, other.supported)):
            mine[:] = [a + b for a, b in zip_longest(mine, theirs, fillvalue=0)]
        self.injected += other.injected
        return self

    @property
    def share(self) -> float:
        """Of all facts those that are supported, 0 to 1."""
        return sum(self.supported) / sum(self.stated)

    def to_json(self) -> dict[str, Any] | None:
        """For the manifest; None where nothing is annotated."""
        if not any(self.stated):
            return None
        by_step = [got / of if of else None for got, of in zip(self.supported, self.stated, strict=True)]
        return {
            "facts": sum(self.stated),
            "supported": self.share,
            "supported_by_step": by_step,
            "injected": self.injected,
        }


@dataclass(slots=True)
class SourceCount:
    """Counts of one teacher: its trajectories, those learned from, and how many of these were second chances."""

    trajectories: int = 0
    kept: int = 0
    corrected: int = 0

    def add(self, *, kept: bool, corrected: bool) -> None:
        self.trajectories += 1
        self.kept += kept
        self.corrected += kept and corrected

    def __add__(self, other: SourceCount) -> SourceCount:
        return SourceCount(
            self.trajectories + other.trajectories, self.kept + other.kept, self.corrected + other.corrected
        )


@dataclass(slots=True)
class Tally:
    """Counts over some trajectories; those of several parts add up with `+=`."""

    questions: int = 0
    questions_kept: int = 0
    trajectories: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: Counter[str] = field(default_factory=Counter)
    stop_reasons: Counter[str] = field(default_factory=Counter)
    verifiers: dict[str, VerifierCount] = field(default_factory=dict)
    sources: dict[str, SourceCount] = field(default_factory=dict)
    facts: FactCount = field(default_factory=FactCount)
    steps: int = 0
    with_steps: int = 0
    found_nothing: int = 0
    rejected: str = ""
    """Why the first rejected question could not be asked."""
    recall_sums: list[float] = field(default_factory=list)
    recall_trajectories: int = 0

    def add(
        self,
        reason: str | None,
        stop: StopReason,
        source: str,
        n_steps: int,
        *,
        corrected: bool = False,
        found_nothing: bool = False,
        error: str | None = None,
    ) -> None:
        """Counts one trajectory.

        `reason` is why it was dropped, or None; `corrected`: it is a second chance; `found_nothing`: its question found
        no passage.
        """
        self.trajectories += 1
        if stop is StopReason.REJECTED:
            self.rejected = self.rejected or (error or "no reason given")
        self.stop_reasons[stop.value] += 1
        self.sources.setdefault(source, SourceCount()).add(kept=reason is None, corrected=corrected)
        if reason is None:
            self.kept += 1
            self.examples.update(ability_of(step, n_steps).value for step in range(1, n_steps + 1))
        else:
            self.dropped[reason] += 1
        self.steps += n_steps
        self.with_steps += n_steps > 0
        self.found_nothing += found_nothing

    def add_question(self, *, kept: bool) -> None:
        """Counts one question, of which something is learned or nothing."""
        self.questions += 1
        self.questions_kept += kept

    def add_scores(self, scores: Sequence[StepScore]) -> None:
        """The verifiers' scores of one trajectory with a right answer."""
        for name, count in self.verifiers.items():
            count.add([s.score for s in scores if s.verifier == name and s.score is not None])

    def add_recall(self, recalls: Sequence[float], max_steps: int) -> None:
        """A trajectory's recall after each step; one that ended earlier keeps its last."""
        self.recall_sums = self.recall_sums or [0.0] * max_steps
        self.recall_trajectories += 1
        for step in range(max_steps):
            self.recall_sums[step] += recalls[min(step, len(recalls) - 1)]

    def __iadd__(self, other: Tally) -> Tally:
        for name in (
            "questions",
            "questions_kept",
            "trajectories",
            "kept",
            "steps",
            "with_steps",
            "found_nothing",
            "recall_trajectories",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for counter in ("dropped", "examples", "stop_reasons"):
            getattr(self, counter).update(getattr(other, counter))
        for source, count in other.sources.items():
            self.sources[source] = self.sources.get(source, SourceCount()) + count
        for name, verified in other.verifiers.items():
            known = self.verifiers.get(name)
            self.verifiers[name] = verified if known is None else known + verified
        self.facts += other.facts
        pairs = zip_longest(self.recall_sums, other.recall_sums, fillvalue=0.0)
        self.rejected = self.rejected or other.rejected
        self.recall_sums = [mine + theirs for mine, theirs in pairs]
        return self

    @property
    def recall(self) -> tuple[float, ...]:
        return tuple(total / self.recall_trajectories for total in self.recall_sums)

    @property
    def mean_steps(self) -> float:
        return self.steps / self.with_steps if self.with_steps else 0.0

    def counts(self) -> dict[str, dict[str, int]]:
        """The counters in a fixed order."""
        return {
            "dropped": dict(sorted(self.dropped.items())),
            "examples": {ability.value: self.examples[ability.value] for ability in Ability},
            "stop_reasons": dict(sorted(self.stop_reasons.items())),
        }
