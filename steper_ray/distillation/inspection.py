"""A built data set, looked at: what was kept and why not, lengths, recall, what the teacher cost, and its trajectories.

Reads what the build left under run_dir/data, a shard at a time. No engine, no Ray.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from steper_ray.answers import normalize
from steper_ray.distillation.shards import ShardStore
from steper_ray.errors import DataError
from steper_ray.schema import Step, Trajectory

KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Seen:
    """One trajectory and what became of it: `fate` is `kept` or the reason it was dropped for, `error` its message."""

    trajectory: Trajectory
    fate: str
    error: str | None


class DataSet:
    """The data of one run. Raises DataError where a build is missing or was not finished."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "data"
        path = self.folder / "manifest.json"
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: no data set here: run the build stage with this run_dir first"
            ) from error
        except ValueError as error:
            raise DataError(
                f"{path}: not valid JSON: {error}. Build again: finished shards are kept"
            ) from error
        lines = (self.folder / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
        self._dropped = {row["id"]: row for row in map(json.loads, lines)}
        self._store = ShardStore(self.folder / "trajectories", "")

    def __iter__(self) -> Iterator[Seen]:
        """Every trajectory, in the order of the questions."""
        for shard in self.manifest["shards"]:
            for trajectory in self._store.read(shard):
                row = self._dropped.get(trajectory.id)
                yield Seen(trajectory, row["reason"] if row else KEPT, row["error"] if row else None)


@dataclass(slots=True)
class StepCost:
    """What all generations at one step read and wrote, in tokens and seconds; requests run side by side, so the
    seconds are waits added up and not time on a clock."""

    n: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    retrieval_seconds: float = 0.0
    generation_seconds: float = 0.0

    def add(self, step: Step) -> None:
        self.n += 1
        self.prompt_tokens += step.usage.prompt_tokens
        self.cached_tokens += step.usage.cached_tokens
        self.completion_tokens += step.usage.completion_tokens
        self.retrieval_seconds += step.retrieval_seconds
        self.generation_seconds += step.generation_seconds

    @property
    def cached(self) -> float:
        """Share of the prompt tokens that came from the engine's prefix cache, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(slots=True)
class Inspection:
    """Counts over a data set. `hops[h]` is (trajectories, kept) of questions with h hops, None where not known."""

    fates: Counter[str] = field(default_factory=Counter)
    hops: dict[int | None, tuple[int, int]] = field(default_factory=dict)
    steps_kept: Counter[int] = field(default_factory=Counter)
    costs: list[StepCost] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    """Of each step's reasoning, in kept trajectories."""
    passages: list[int] = field(default_factory=list)
    """Different passages of each kept trajectory."""
    repeated_questions: int = 0
    """Questions whose text, normalised as answers are, came before."""

    @property
    def trajectories(self) -> int:
        return self.fates.total()


def inspect(data: DataSet) -> Inspection:
    """Reads every trajectory once."""
    found, texts = Inspection(), set[str]()
    for seen in data:
        trajectory = seen.trajectory
        kept = seen.fate == KEPT
        found.fates[seen.fate] += 1
        asked, of_them = found.hops.get(trajectory.question.hops, (0, 0))
        found.hops[trajectory.question.hops] = (asked + 1, of_them + kept)
        if not trajectory.sample:
            text = normalize(trajectory.question.text)
            found.repeated_questions += text in texts
            texts.add(text)
        for number, step in enumerate(trajectory.steps):
            if number == len(found.costs):
                found.costs.append(StepCost())
            found.costs[number].add(step)
        if kept:
            found.steps_kept[len(trajectory.steps)] += 1
            found.words.extend(len(step.reasoning.split()) for step in trajectory.steps)
            found.passages.append(len(trajectory.passages))
    return found


def spread(values: list[int]) -> tuple[int, int, int] | None:
    """Median, 95th percentile and largest; None of nothing."""
    if len(values) < 2:
        return (values[0],) * 3 if values else None
    cuts = quantiles(values, n=20, method="inclusive")
    return round(cuts[9]), round(cuts[18]), max(values)
