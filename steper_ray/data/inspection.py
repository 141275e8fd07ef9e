"""A built data set, looked at: what was kept and why not, lengths, recall, what the teacher cost, and its trajectories.

Reads what the build left under run_dir/data, a shard at a time. No engine, no Ray.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from steper_ray.core.errors import DataError
from steper_ray.data.measures import ExampleLengths, Repeats, StepCost, add_examples
from steper_ray.data.seal import damaged, read_seal
from steper_ray.rollouts.shards import ShardStore
from steper_ray.schema import SCHEMA_VERSION, Ability, Trajectory

T = TypeVar("T")
KEPT = "kept"
_AGAIN = "Build again: finished shards are kept"


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
        path, sealed = self.folder / "manifest.json", read_seal(self.folder)
        for name in (path.name, "dropped.jsonl"):
            if (wrong := damaged(self.folder, sealed, name)) is not None:
                raise DataError(wrong)
        self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = self.manifest.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{path}: written in version {version} of the schema, this is version {SCHEMA_VERSION}: build again"
            )
        self._store = ShardStore(self.folder / "trajectories", "")

    @property
    def in_flight(self) -> int:
        """Most trajectories side by side in an engine, by the last build's setting and count."""
        build, counts = self.manifest["config"]["build"], self.manifest["counts"]
        return int(max(1, min(build["in_flight"], counts["trajectories"] // build["engines"])))

    @property
    def recall(self) -> list[float]:
        """Mean share of the gold passages found after each step; empty where none are known."""
        return next((v["after_step"] for k, v in self.manifest.items() if k.startswith("recall@")), [])

    def __iter__(self) -> Iterator[Seen]:
        """Every trajectory, in the order of the questions; one shard is in memory at a time."""
        path = self.folder / "dropped.jsonl"
        with path.open(encoding="utf-8") as lines:
            dropped = map(json.loads, lines)  # in the order of the trajectories, as the build wrote them
            row = next(dropped, None)
            for trajectory in self._trajectories():
                if row is not None and row["id"] == trajectory.id:
                    yield Seen(trajectory, row["reason"], row["error"])
                    row = next(dropped, None)
                else:
                    yield Seen(trajectory, KEPT, None)
        if row is not None:
            raise DataError(f"{path}: names {row['id']!r}, which is no trajectory here. {_AGAIN}")

    def _trajectories(self) -> Iterator[Trajectory]:
        """Question by question, the first teacher's first: as the build judged them."""
        shards = [teacher["shards"] for teacher in self.manifest["teachers"]]
        for of_teachers in zip(*shards, strict=True):
            found: dict[str, list[Trajectory]] = {}
            for shard in of_teachers:
                for trajectory in self._store.read(shard):
                    found.setdefault(trajectory.question.id, []).append(trajectory)
            yield from chain.from_iterable(found.values())


@dataclass(slots=True)
class Inspection:
    """Counts over a data set. `hops[h]` is (trajectories, kept) of questions with h hops, None where not known."""

    fates: Counter[str] = field(default_factory=Counter)
    hops: dict[int | None, tuple[int, int]] = field(default_factory=dict)
    steps_kept: Counter[int] = field(default_factory=Counter)
    costs: list[StepCost] = field(default_factory=list)
    words: Counter[int] = field(default_factory=Counter)
    """Histogram of the words of a step's reasoning, in kept trajectories."""
    passages: Counter[int] = field(default_factory=Counter)
    """Different passages of each kept trajectory."""
    sources: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(trajectories, kept) of each teacher."""
    lengths: dict[Ability, ExampleLengths] = field(default_factory=dict)
    repeats: Repeats = field(default_factory=Repeats)

    def add(self, seen: Seen) -> None:
        trajectory = seen.trajectory
        kept = seen.fate == KEPT
        self.fates[seen.fate] += 1
        _count(self.hops, trajectory.question.hops, kept)
        _count(self.sources, trajectory.source, kept)
        if not trajectory.sample:
            self.repeats.add_question(trajectory.question)
        for number, step in enumerate(trajectory.steps):
            if number == len(self.costs):
                self.costs.append(StepCost())
            self.costs[number].add(step)
        if kept:
            self.steps_kept[len(trajectory.steps)] += 1
            self.words.update(len(step.reasoning.split()) for step in trajectory.steps)
            self.passages[len(trajectory.passages)] += 1
            add_examples(self.lengths, trajectory)
            self.repeats.add_chain(trajectory)

    @property
    def cost(self) -> StepCost:
        """All steps together."""
        return StepCost.total(self.costs)

    @property
    def trajectories(self) -> int:
        return self.fates.total()


def inspect(data: DataSet) -> Inspection:
    """Reads every trajectory once."""
    found = Inspection()
    for seen in data:
        found.add(seen)
    return found


def _count(counts: dict[T, tuple[int, int]], key: T, kept: bool) -> None:
    trajectories, of_them = counts.get(key, (0, 0))
    counts[key] = (trajectories + 1, of_them + kept)
