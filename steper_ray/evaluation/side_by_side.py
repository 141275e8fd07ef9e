"""Two evaluations of a run, question by question: their scores compared, and the questions that one alone got right.

- An evaluation is given by its name, or by the names of several training seeds with commas between them.
- Both must have been asked the same questions; one that is owed counts as 0, as it does in the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steper_ray.core.errors import DataError
from steper_ray.evaluation.scores import judge
from steper_ray.evaluation.statistics import Comparison, compare
from steper_ray.evaluation.store import (
    Answers,
    EvalJob,
    clusters_among,
    evaluated,
    job_files,
    read_answers,
    read_trajectories,
)
from steper_ray.schema import Trajectory

METRICS = ("em", "f1", "acc")


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Two evaluations in one step unit, by exact match of the first seed of each."""

    unit: str
    comparisons: tuple[Comparison, ...]
    both_right: int
    both_wrong: int
    one_alone: int
    other_alone: int
    parted: tuple[tuple[Trajectory, Trajectory], ...]
    """The trajectories of some of the questions that one of them alone got right."""

    def summary(self, one: str, other: str) -> str:
        """A few lines for a person, and the shown questions with both chains."""
        lines = [
            f"{self.unit}: both right {self.both_right}, both wrong {self.both_wrong}, {one} alone right "
            f"{self.one_alone}, {other} alone right {self.other_alone}"
        ]
        for pair in self.parted:
            question = pair[0].question
            lines += ["", f"{question.id}: {question.text}", f"  gold: {' | '.join(question.answers)}"]
            for name, trajectory in zip((one, other), pair, strict=True):
                verdict = "right" if judge(trajectory).em else "wrong"
                chain = " / ".join(step.reasoning.strip() for step in trajectory.steps)
                lines.append(
                    f"  {name} ({verdict}): {trajectory.answer or 'no answer'} < {chain or 'no steps'}"
                )
        return "\n".join(lines) + "\n"


def compare_evaluations(run_dir: Path, one: str, other: str, show: int = 0) -> list[SideBySide]:
    """Compares two evaluations in every step unit that both have, with `show` questions where they part in each.

    Raises DataError where one is missing, or was asked other questions.
    """
    ours, theirs = one.split(","), other.split(",")
    units = shared_units(run_dir, ours, theirs)
    return [_in_unit(run_dir, (one, ours), (other, theirs), unit, show) for unit in units]


def shared_units(run_dir: Path, ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """The step units that all of these evaluations have. Raises DataError where one is missing, or there is none."""
    units, names = evaluated(run_dir), (*ours, *theirs)
    for name in names:
        if name not in units:
            known = ", ".join(sorted(units)) or "none"
            raise DataError(f"{run_dir / 'eval'}: no evaluation named '{name}'; there are: {known}")
    shared = [unit for unit in units[ours[0]] if all(unit in units[name] for name in names)]
    if not shared:
        raise DataError(f"{run_dir / 'eval'}: {', '.join(names)} share no step unit: set evaluate.units")
    return shared


def _in_unit(
    run_dir: Path, one: tuple[str, Sequence[str]], other: tuple[str, Sequence[str]], unit: str, show: int
) -> SideBySide:
    (name, seeds), (other_name, other_seeds) = one, other
    ours = [read_answers(run_dir, seed, unit) for seed in seeds]
    theirs = [read_answers(run_dir, seed, unit) for seed in other_seeds]
    _check_same(run_dir, unit, dict(zip((*seeds, *other_seeds), (*ours, *theirs), strict=True)))
    right = [{id: bool(score.em) for id, score in scores[0].scores.items()} for scores in (ours, theirs)]
    clusters = clusters_among((*ours, *theirs))
    ids = list(dict.fromkeys((*right[0], *right[1])))
    pairs = [(right[0].get(id, False), right[1].get(id, False)) for id in ids]
    parted = [id for id, (mine, yours) in zip(ids, pairs, strict=True) if mine != yours][:show]
    shown = [_trajectories(run_dir, seed, unit, set(parted)) for seed in (seeds[0], other_seeds[0])]
    return SideBySide(
        unit,
        tuple(
            compare(
                name,
                other_name,
                unit,
                metric,
                [seed.metric(metric) for seed in ours],
                [seed.metric(metric) for seed in theirs],
                clusters,
            )
            for metric in METRICS
        ),
        both_right=pairs.count((True, True)),
        both_wrong=pairs.count((False, False)),
        one_alone=pairs.count((True, False)),
        other_alone=pairs.count((False, True)),
        parted=tuple((shown[0][id], shown[1][id]) for id in parted if id in shown[0] and id in shown[1]),
    )


def _check_same(run_dir: Path, unit: str, answers: dict[str, Answers]) -> None:
    """A question without a score must be owed: else the two were asked other questions."""
    every = {id for one in answers.values() for id in one.scores}
    for name, one in answers.items():
        missing, owed = len(every - one.scores.keys()), job_files(run_dir, EvalJob(name, "", unit)).owed()
        if missing > owed:
            raise DataError(
                f"{name} and {', '.join(other for other in answers if other != name)} were asked other questions "
                f"({missing} of {len(every)} are not among those of {name}): evaluate them on the same "
                "`evaluate.corpus`"
            )


def _trajectories(run_dir: Path, name: str, unit: str, ids: set[str]) -> dict[str, Trajectory]:
    if not ids:
        return {}
    found = read_trajectories(job_files(run_dir, EvalJob(name, "", unit)))
    return {one.question.id: one for one in found if one.question.id in ids}
