"""Who is asked what, and how often: several teachers, several samples, and second chances. Pure: no engine, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from steper_ray.config import BuildConfig, Config, TeacherConfig
from steper_ray.distillation.filtering import WRONG_ANSWER, Match, drop_reason
from steper_ray.reasoning import Reasoner
from steper_ray.schema import Question, Trajectory


@dataclass(frozen=True, slots=True)
class TeacherRun:
    """One teacher: the config as if it were the only one, and the number of its first sample."""

    config: Config
    first_sample: int = 0


def at_fixed_steps(config: Config) -> Config:
    """The config of a build: its chains are learned from as they were written, so nothing in them is taken back."""
    return config.model_copy(update={"reasoning": config.reasoning.model_copy(update={"stop": "fixed"})})


def teacher_runs(config: Config) -> tuple[TeacherRun, ...]:
    """The teachers of a build in the order they are asked in."""
    runs, first = list[TeacherRun](), 0
    for teacher in config.build.teachers:
        runs.append(TeacherRun(_alone(config, teacher), first))
        first += teacher.samples
    return tuple(runs) or (TeacherRun(config),)


def _alone(config: Config, teacher: TeacherConfig) -> Config:
    own = {
        name: value
        for name in ("samples", "engines", "in_flight", "num_cpus", "num_gpus")
        if (value := getattr(teacher, name)) is not None
    }
    sampling = config.sampling
    if teacher.temperature is not None:
        sampling = sampling.model_copy(update={"temperature": teacher.temperature})
    build = config.build.model_copy(update={"teachers": (), **own})
    return config.model_copy(update={"engine": teacher.engine, "sampling": sampling, "build": build})


class Teacher(Protocol):
    """One sample of one teacher: a Reasoner, or the annotations."""

    async def run(self, question: Question) -> Trajectory: ...

    def give_up(self, question: Question, error: str) -> Trajectory: ...


def turns(teachers: Sequence[Teacher], build: BuildConfig) -> list[Sequence[Teacher]]:
    """The samples of one teacher, as groups that may be asked at the same time."""
    return [teachers] if build.until_right else [[teacher] for teacher in teachers]


async def ask(question: Question, teachers: Sequence[Teacher], build: BuildConfig) -> list[Trajectory]:
    """The trajectories of one group, one sample after the other; a second chance follows its first attempt."""
    found = list[Trajectory]()
    for teacher in teachers:
        found.append(await teacher.run(question))
        wrong = drop_reason(found[-1], build.match) == WRONG_ANSWER
        if wrong and build.self_correct and isinstance(teacher, Reasoner):
            found.append(await teacher.second_chance(found[-1]).run(question))
        if build.until_right and is_answered(found[-1:], build.match):
            break
    return found


def is_answered(trajectories: Sequence[Trajectory], match: Match) -> bool:
    """Whether one of them states a right answer, whatever verifiers say of its steps."""
    return any(drop_reason(trajectory, match) is None for trajectory in trajectories)
