"""The result of a build: what the manifest, the command line and tests see of it. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from steper_ray.data.tally import FactCount, SourceCount, VerifierCount
from steper_ray.schema import StopReason

_RARE = 0.01  # share of chains that may find nothing without a word


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
    owed: int = 0
    """Questions without an end: they are asked again by the next build."""
    rejected: str = ""
    """Why the first rejected question could not be asked; empty where there is none."""
    passages: str = ""
    """How many passages of the index are longer than a prompt takes; empty where none is."""
    found_nothing: int = 0
    """Trajectories whose question found no passage."""
    verifiers: dict[str, VerifierCount] = field(default_factory=dict)
    sources: dict[str, SourceCount] = field(default_factory=dict)
    facts: FactCount = field(default_factory=FactCount)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values without what belongs to one call (folder, shards_run); `from_json` reads it back."""
        return {name: value for name, value in asdict(self).items() if name not in ("folder", "shards_run")}

    @classmethod
    def from_json(cls, data: dict[str, Any], *, folder: Path, shards_run: int) -> BuildReport:
        """Raises TypeError or KeyError for what `to_json` did not write."""
        verifiers = {name: VerifierCount(**count) for name, count in data["verifiers"].items()}
        sources = {name: SourceCount(**count) for name, count in data["sources"].items()}
        facts = FactCount(**data["facts"])
        fields = {
            **data,
            "verifiers": verifiers,
            "sources": sources,
            "facts": facts,
            "recall": tuple(data["recall"]),
        }
        return cls(**fields, folder=folder, shards_run=shards_run)

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
        if any(self.facts.stated):
            put = f"; {self.facts.injected} of these were put there" if self.facts.injected else ""
            lines.insert(
                -2,
                f"supported   {self.facts.share:.1%} of {sum(self.facts.stated)} facts have their passage in the prompt"
                f"{put} (build.annotation.missing)",
            )
        for name, count in self.verifiers.items():
            mean = "no score" if count.mean is None else f"mean {count.mean:.3f} over {count.steps} steps"
            lines.insert(-2, f"{name:11} {count.below} of {count.trajectories} below {count.least:g}, {mean}")
        if len(self.sources) > 1 or any(count.corrected for count in self.sources.values()):
            for source, chains in self.sources.items():
                second = f", {chains.corrected} of them at the second chance" if chains.corrected else ""
                lines.insert(
                    -2, f"teacher     {source}: {chains.trajectories} chains, kept {chains.kept}{second}"
                )
        if self.found_nothing > _RARE * self.trajectories:
            lines.insert(
                1,
                f"not found   {self.found_nothing} of {self.trajectories} chains found no passage for their question: "
                "are questions and passages in one language (retrieval.language)?",
            )
        if self.passages:
            lines.insert(1, f"passages    {self.passages}")
        if self.rejected:
            lines.insert(
                1,
                f"rejected    {self.stop_reasons[StopReason.REJECTED]} questions, the first: {self.rejected}",
            )
        if self.owed:
            lines.insert(1, f"owed        {self.owed} questions: build again to ask them")
        if self.skipped:
            named = self.folder.parent / "questions" / "skipped-*.jsonl"
            lines.insert(1, f"skipped     {self.skipped} records of the corpus, named in {named}")
        return "\n".join(lines)
