"""Builds that are disturbed, seen from outside: their settings, how far they are, and what they came to."""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steper_ray.config.file import load_config
from steper_ray.rollouts.shards import ShardStore
from steper_ray.schema import Trajectory

N_QUESTIONS, SHARD_SIZE = 16, 2
N_SHARDS = N_QUESTIONS // SHARD_SIZE
SETTINGS = [
    "corpus.miniature.worlds=2",
    "corpus.miniature.questions_per_world=8",
    f"build.shard_size={SHARD_SIZE}",
    "build.in_flight=3",
    "build.match=contains",
    "reasoning.max_steps=3",
    "sampling.max_tokens=24",
]


def config(run_dir: Path):
    return load_config(None, [*SETTINGS, f"run_dir={run_dir}"])


class Watched:
    """A build's folder. Its shards' manifests say what is committed."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.data = run_dir / "data"

    def committed(self) -> dict[str, tuple[int, int]]:
        """Shard -> its file's inode and time, both of which change when it is written again."""
        folder = self.data / "trajectories"
        files = {note.stem: (folder / _file(note)).stat() for note in folder.glob("shard-*.json")}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in files.items()}

    def kept(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.data / "kept").glob("*.parquet")}

    def owed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.data / "owed.jsonl").read_text().splitlines()]

    def trajectories(self) -> list[Trajectory]:
        """In input order."""
        shards = json.loads((self.data / "manifest.json").read_text())["teachers"][0]["shards"]
        store = ShardStore(self.data / "trajectories", "")
        return [trajectory for shard in shards for trajectory in store.read(shard)]


def _file(note: Path) -> str:
    """The Parquet file that a shard's manifest names."""
    name: str = json.loads(note.read_text())["file"]
    return name


@dataclass(frozen=True, slots=True)
class Moment:
    """When `count` shards are first seen committed: others are in the middle then."""

    count: int

    @classmethod
    def drawn(cls, rng: random.Random) -> "Moment":
        return cls(rng.randint(1, N_SHARDS - 3))

    def has_come(self, build: Watched) -> bool:
        return len(build.committed()) >= self.count


def timeless(trajectory: Trajectory) -> Trajectory:
    """Without what depends on who else was in the engine: timings, what its cache gave, and the last bits of the
    log-probabilities."""
    steps = [
        replace(
            step,
            usage=replace(step.usage, cached_tokens=0),
            retrieval_seconds=0.0,
            generation_seconds=0.0,
            mean_logprob=None if step.mean_logprob is None else round(step.mean_logprob, 4),
            confidence=None if step.confidence is None else round(step.confidence, 4),
        )
        for step in trajectory.steps
    ]
    return replace(trajectory, steps=tuple(steps))


def same_data(build: Watched, whole: Watched) -> bool:
    """The kept trajectories are equal to the byte, all trajectories in all that `timeless` leaves."""
    assert whole.kept()
    assert build.kept() == whole.kept()
    found, wanted = ([timeless(t) for t in each.trajectories()] for each in (build, whole))
    assert [t.id for t in found] == [t.id for t in wanted]
    assert len({t.id for t in found}) == N_QUESTIONS
    assert found == wanted
    return True
