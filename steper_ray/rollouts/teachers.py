"""Samples, second chances and earlier teachers: what is asked of whom, and where a question ends.

Reads committed shards; knows no engine and no Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from steper_ray.reasoning import Reasoner
from steper_ray.rollouts.shards import DamagedShardError, Owed, ShardManifest
from steper_ray.rollouts.spec import Asking, RolloutSpec
from steper_ray.schema import Question, StopReason, Trajectory

logger = logging.getLogger(__name__)

#: (sample, attempt) of a question.
Number = tuple[int, int]


class Teacher(Protocol):
    """One sample of one teacher: a Reasoner, or the annotations."""

    @property
    def sample(self) -> int: ...

    async def run(self, question: Question) -> Trajectory: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """The result of one group of samples of a question: its final trajectories, and what is owed."""

    finals: tuple[Trajectory, ...]
    owed: Owed | None = None


@dataclass(frozen=True, slots=True)
class Earlier:
    """The committed part of a shard: its final trajectories, and what earlier teachers leave to ask.

    `unwanted` questions have a right answer from an earlier teacher, or are still owed by one; `before` are the
    SHA-256 of the earlier teachers' files.
    """

    manifest: ShardManifest | None
    finals: tuple[Trajectory, ...]
    before: tuple[str, ...]
    unwanted: frozenset[str]

    @classmethod
    def read(cls, spec: RolloutSpec, digest: str) -> Earlier:
        """Of the shard whose questions have this digest. A damaged shard is as one that was never made."""
        shard = spec.store.shard_id(digest)
        manifest, finals = spec.store.manifest(shard), tuple[Trajectory, ...]()
        if manifest is not None:
            try:
                finals = tuple(spec.store.read(shard))
            except DamagedShardError as error:
                logger.warning("%s", error)
                manifest = None
        before, unwanted = list[str](), set[str]()
        for store in spec.before if spec.asking.until_right else ():
            other = store.manifest(store.shard_id(digest))
            if other is None:
                continue
            before.append(other.sha256)
            unwanted |= {owed.question for owed in other.owed}
            unwanted |= {t.question.id for t in store.read(other.id) if spec.asking.is_right(t)}
        return cls(manifest, finals, tuple(before), frozenset(unwanted))

    @property
    def is_complete(self) -> bool:
        return self.manifest is not None and not self.manifest.owed and self.manifest.before == self.before

    def of(self, question: str) -> tuple[dict[Number, Trajectory], dict[Number, int]]:
        """The final trajectories of a question, and how often what is owed of it was asked."""
        finals = {(t.sample, t.attempt): t for t in self.finals if t.question.id == question}
        owed = self.manifest.owed if self.manifest is not None else ()
        return finals, {(one.sample, one.attempt): one.attempts for one in owed if one.question == question}


def groups(teachers: Sequence[Teacher], asking: Asking) -> list[Sequence[Teacher]]:
    """The samples of one teacher, in groups that may be asked at the same time."""
    return [teachers] if asking.until_right else [[teacher] for teacher in teachers]


async def ask(
    question: Question,
    group: Sequence[Teacher],
    asking: Asking,
    finals: Mapping[Number, Trajectory],
    attempts: Mapping[Number, int],
) -> Asked:
    """Asks one group, one sample after the other; a second chance follows its first attempt.

    What is among `finals` is not asked again. The group ends at the first trajectory that is owed: what is asked after
    it depends on how it ends. `attempts` counts earlier ones.
    """
    found = list[Trajectory]()

    async def one(teacher: Teacher, number: Number) -> Owed | None:
        final = finals.get(number)
        if final is None:
            final = await teacher.run(question)
            if final.stop_reason.is_owed:
                why = final.error or final.stop_reason.value
                return Owed(question.id, *number, why, attempts.get(number, 0) + 1)
        found.append(final)
        return None

    for teacher in group:
        owed = await one(teacher, (teacher.sample, 0))
        if (
            owed is None
            and asking.self_correct
            and isinstance(teacher, Reasoner)
            and _is_wrong(found[-1], asking)
        ):
            owed = await one(teacher.second_chance(found[-1]), (teacher.sample, 1))
        if owed is not None:
            return Asked(tuple(found), owed)
        if asking.until_right and asking.is_right(found[-1]):
            break
    return Asked(tuple(found))


def _is_wrong(trajectory: Trajectory, asking: Asking) -> bool:
    return trajectory.stop_reason is StopReason.ANSWERED and not asking.is_right(trajectory)
