"""What a build came to: counts, and retrieval recall after each step. Pure.

`Tally` reads the trajectories one by one, `BuildReport` is what the manifest, the command line and tests see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steper_ray.schema import Ability, StepExample, StepScore, Trajectory


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


@dataclass(slots=True)
class SourceCount:
    """What one teacher gave: its trajectories, those learned from, and how many of these were second chances."""

    trajectories: int = 0
    kept: int = 0
    corrected: int = 0

    def add(self, trajectory: Trajectory, *, kept: bool) -> None:
        self.trajectories += 1
        self.kept += kept
        self.corrected += kept and trajectory.attempt > 0


@dataclass(frozen=True, slots=True)
class BuildReport:
    """Counts over all questions and trajectories of a build; `kept` + the sum of `dropped` = `trajectories`.

    `recall[s-1]` is the mean share of a question's gold passages among those of its steps 1..s, over the
    `recall_trajectories` whose questions have gold ids and at least one step; a trajectory that ended before step s
    counts with all it found. `mean_steps` is over the trajectories with at least one step. `verifiers` are those
    that were set, by name, `sources` the teachers.
    """

    questions: int
    questions_kept: int
    trajectories: int
    kept: int
    dropped: dict[str, int]
    examples: dict[str, int]
    stop_reasons: dict[str, int]
    recall: tuple[float, ...]
    recall_trajectories: int
    mean_steps: float
    k: int
    skipped: int
    shards: int
    shards_run: int
    folder: Path
    verifiers: dict[str, VerifierCount] = field(default_factory=dict)
    sources: dict[str, SourceCount] = field(default_factory=dict)
    passages: str = ""
    """How many passages of the index are longer than a prompt takes; empty where none is, or the index is gone."""

    def summary(self) -> str:
        """A few lines for a person."""
        dropped = ", ".join(f"{reason} {count}" for reason, count in self.dropped.items()) or "none"
        examples = ", ".join(f"{ability} {count}" for ability, count in self.examples.items())
        recall = ", ".join(f"{share:.3f}" for share in self.recall)
        n_dropped = self.trajectories - self.kept
        lines = [
            f"questions   {self.questions}, kept {self.questions_kept}",
            f"chains      {self.trajectories}, kept {self.kept}, dropped {n_dropped} ({dropped})",
            f"examples    {sum(self.examples.values())} ({examples})",
            f"steps       {self.mean_steps:.2f} a trajectory",
            f"recall@{self.k}    after each step: {recall or 'nothing to measure'}"
            + (f" ({self.recall_trajectories} trajectories)" if recall else ""),
            f"shards      {self.shards}, {self.shards_run} of them made in this run",
            f"written to  {self.folder}",
        ]
        for name, count in self.verifiers.items():
            mean = "no score" if count.mean is None else f"mean {count.mean:.3f} over {count.steps} steps"
            lines.insert(-2, f"{name:11} {count.below} of {count.trajectories} below {count.least:g}, {mean}")
        if len(self.sources) > 1 or any(count.corrected for count in self.sources.values()):
            for source, told in self.sources.items():
                second = f", {told.corrected} of them at the second chance" if told.corrected else ""
                lines.insert(
                    -2, f"teacher     {source}: {told.trajectories} chains, kept {told.kept}{second}"
                )
        if self.passages:
            lines.insert(1, f"passages    {self.passages}")
        if self.skipped:
            lines.insert(1, f"skipped     {self.skipped} records of the corpus")
        return "\n".join(lines)


@dataclass(slots=True)
class Tally:
    """Adds up trajectories; `max_steps` is S."""

    max_steps: int
    questions: int = 0
    questions_kept: int = 0
    trajectories: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: Counter[str] = field(default_factory=Counter)
    stop_reasons: Counter[str] = field(default_factory=Counter)
    verifiers: dict[str, VerifierCount] = field(default_factory=dict)
    sources: dict[str, SourceCount] = field(default_factory=dict)
    _steps: int = 0
    _with_steps: int = 0
    _recall: list[float] = field(default_factory=list)
    recall_trajectories: int = 0

    def add(self, trajectory: Trajectory, reason: str | None, examples: tuple[StepExample, ...]) -> None:
        """Counts one trajectory: `reason` is why it was dropped, or None."""
        self.trajectories += 1
        self.stop_reasons[trajectory.stop_reason.value] += 1
        self.sources.setdefault(trajectory.source, SourceCount()).add(trajectory, kept=reason is None)
        if reason is None:
            self.kept += 1
        else:
            self.dropped[reason] += 1
        self.examples.update(example.ability.value for example in examples)
        if trajectory.steps:
            self._steps += len(trajectory.steps)
            self._with_steps += 1
            if trajectory.question.gold_ids:
                self._add_recall(trajectory)

    def add_question(self, *, kept: bool) -> None:
        """Counts one question, of which something is learned or nothing."""
        self.questions += 1
        self.questions_kept += kept

    def add_scores(self, scores: Sequence[StepScore]) -> None:
        """The verifiers' scores of one trajectory with a right answer."""
        for name, count in self.verifiers.items():
            count.add([s.score for s in scores if s.verifier == name and s.score is not None])

    def _add_recall(self, trajectory: Trajectory) -> None:
        gold = set(trajectory.question.gold_ids)
        found: set[str] = set()
        self._recall = self._recall or [0.0] * self.max_steps
        self.recall_trajectories += 1
        for step in range(self.max_steps):
            if step < len(trajectory.steps):
                found |= gold & {hit.passage.id for hit in trajectory.steps[step].hits}
            self._recall[step] += len(found) / len(gold)

    @property
    def recall(self) -> tuple[float, ...]:
        return tuple(total / self.recall_trajectories for total in self._recall)

    @property
    def mean_steps(self) -> float:
        return self._steps / self._with_steps if self._with_steps else 0.0

    def counts(self) -> dict[str, dict[str, int]]:
        """The counters in a fixed order."""
        return {
            "dropped": dict(sorted(self.dropped.items())),
            "examples": {ability.value: self.examples[ability.value] for ability in Ability},
            "stop_reasons": dict(sorted(self.stop_reasons.items())),
        }
