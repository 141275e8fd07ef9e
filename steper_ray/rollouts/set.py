"""A set of rollouts: the shards of one spec over a file of questions, read in order. Pure files: no engine, no Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from steper_ray.rollouts.questions import QuestionFile
from steper_ray.rollouts.scores import ScoreStore
from steper_ray.rollouts.shards import Owed, ShardManifest
from steper_ray.rollouts.spec import RolloutSpec
from steper_ray.schema import Trajectory

SHOWN = 3  # reasons that a message spells out


@dataclass(frozen=True, slots=True)
class OwedReport:
    """Owed questions of a run: asked in all, owed, and the most frequent reasons."""

    questions: int
    owed: dict[str, str]
    """Question id -> the error of its last attempt."""

    def __str__(self) -> str:
        counts = Counter(self.owed.values()).most_common()
        reasons = "; ".join(f"{error} ({count})" for error, count in counts[:SHOWN])
        more = f"; and {len(counts) - SHOWN} other reasons" if len(counts) > SHOWN else ""
        return f"{len(self.owed)} of {self.questions} questions are owed: {reasons}{more}"


@dataclass(frozen=True, slots=True)
class RolloutSet:
    """The trajectories of `spec`, one shard for each shard of `questions`."""

    spec: RolloutSpec
    questions: QuestionFile

    @property
    def shards(self) -> list[str]:
        """The ids of the shards, in the order of the questions."""
        return [self.spec.store.shard_id(digest) for digest in self.questions.digests]

    def missing(self) -> list[int]:
        """The numbers of the shards that are not committed, owe something, or rest on earlier teachers' old answers."""
        spec, digests = self.spec, self.questions.digests
        before = spec.before if spec.asking.until_right else ()
        earlier = [store.manifests([store.shard_id(digest) for digest in digests]) for store in before]
        return [
            number
            for number, manifest in enumerate(spec.store.manifests(self.shards))
            if not self._is_done(manifest, [one[number] for one in earlier])
        ]

    def owed(self) -> Iterator[Owed]:
        """Questions without a final trajectory or a model's scores, of committed shards."""
        shards = self.shards
        for shard, manifest in zip(shards, self.spec.store.manifests(shards), strict=True):
            yield from manifest.owed if manifest is not None else ()
            for verifier, folder in self.spec.scores.items():
                for question in ScoreStore(folder).owed(shard):
                    yield Owed(question, 0, 0, f"the {verifier} has not scored its steps", 1)

    def __iter__(self) -> Iterator[Trajectory]:
        """Every final trajectory, in the order of the questions. Raises DamagedShardError."""
        for shard in self.shards:
            yield from self.spec.store.read(shard)

    def _is_done(self, manifest: ShardManifest | None, earlier: Sequence[ShardManifest | None]) -> bool:
        """`earlier` are the manifests of the same questions' shards of the teachers before."""
        if manifest is None or manifest.owed:
            return False
        rests_on = tuple(other.sha256 for other in earlier if other is not None)
        if self.spec.asking.until_right and manifest.before != rests_on:
            return False
        stores = map(ScoreStore, self.spec.scores.values())
        return all(store.is_complete(manifest.id, manifest.sha256) for store in stores)


def owed_report(sets: list[RolloutSet]) -> OwedReport:
    """Owed questions over several sets of the same questions: a question counts once a set."""
    owed = {
        f"{number}:{one.question}": one.error for number, found in enumerate(sets) for one in found.owed()
    }
    return OwedReport(sum(found.questions.count for found in sets), owed)
