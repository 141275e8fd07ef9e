"""Scores over trajectories, and their mean and spread over seeds. Pure: trajectories in, numbers out.

Answers are judged by the data sets' official rules (`answers.score`); this module adds what only a trajectory
shows: retrieval recall after each step (Table 7), steps used (Table 6), hops, stop reasons and tokens. A question
that failed with an error counts as wrong, and the number of them is told. Knows no file, no engine and no Ray.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steper_ray.answers import Score, score
from steper_ray.errors import DataError
from steper_ray.schema import StopReason, Trajectory

FAILED = frozenset((StopReason.RETRIEVER_FAILED, StopReason.GENERATOR_FAILED, StopReason.REJECTED))
_WRONG = Score(em=0.0, f1=0.0, acc=0.0)
#: What is averaged over seeds.
METRICS = ("em", "f1", "acc", "recall", "duplicates", "mean_steps", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class GroupScores:
    """Scores of some of the questions: em, f1, acc and recall from 0 to 1, mean_steps in steps."""

    n: int
    em: float
    f1: float
    acc: float
    recall: float | None
    mean_steps: float


@dataclass(frozen=True, slots=True)
class EvalScores:
    """Scores of one model with one step unit over a test set.

    em, f1, acc, recall and duplicates lie between 0 and 1; mean_steps is in steps; the tokens are the mean of one
    question's sum over its steps. `recall` is None where no question names its gold passages, `duplicates` (the
    share of found passages that were found before, or came after the prompt was full) where it was not counted.
    `recall_by_step[s - 1]` is the recall after step s; a question that ended earlier keeps its last recall.
    `errors` questions failed and count as wrong.
    """

    n: int
    em: float
    f1: float
    acc: float
    recall: float | None
    mean_steps: float
    errors: int
    recall_by_step: tuple[float, ...]
    duplicates: float | None
    prompt_tokens: float
    completion_tokens: float
    stop_reasons: Mapping[str, int]
    by_hops: Mapping[str, GroupScores]
    by_steps: Mapping[str, GroupScores]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads it back."""
        return {**asdict(self), "recall_by_step": list(self.recall_by_step)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvalScores:
        groups = {
            key: {name: GroupScores(**group) for name, group in data[key].items()}
            for key in ("by_hops", "by_steps")
        }
        return cls(**{**data, "recall_by_step": tuple(data["recall_by_step"]), **groups})


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric over several seeds. `std` is the sample standard deviation, 0 for a single seed."""

    mean: float
    min: float
    max: float
    std: float
    n: int


@dataclass(frozen=True, slots=True)
class _Judged:
    """What one trajectory came to."""

    score: Score
    recalls: tuple[float, ...] | None
    steps: int
    hops: int | None
    failed: bool

    @property
    def recall(self) -> float | None:
        if self.recalls is None:
            return None
        return self.recalls[-1] if self.recalls else 0.0


def judge(trajectory: Trajectory) -> Score:
    """The scores of one trajectory's answer; all 0 where the question failed.

    Raises DataError for a question without a gold answer.
    """
    question = trajectory.question
    if not question.answers:
        raise DataError(
            f"question '{question.id}' has no gold answer and cannot be scored: evaluate on a labelled split"
        )
    return _WRONG if failed(trajectory) else score(trajectory.answer, question.answers, question.dataset)


def failed(trajectory: Trajectory) -> bool:
    """Whether the question ended in an error. A deadline is none: it has the best answer so far."""
    return trajectory.error is not None or trajectory.stop_reason in FAILED


def recall_after_steps(trajectory: Trajectory) -> tuple[float, ...] | None:
    """The share of the gold passages found up to each step; None where the question names none."""
    gold = frozenset(trajectory.question.gold_ids)
    if not gold:
        return None
    found: set[str] = set()
    recalls = []
    for step in trajectory.steps:
        found.update(hit.passage.id for hit in step.hits)
        recalls.append(len(gold & found) / len(gold))
    return tuple(recalls)


def score_trajectories(
    trajectories: Sequence[Trajectory], repeats: Sequence[int] | None = None
) -> EvalScores:
    """The scores of one evaluation; `repeats` is, for each trajectory, how many found passages were not new.

    Raises DataError where there is nothing to score.
    """
    if not trajectories:
        raise DataError("no trajectories to score: the test set is empty")
    judged = [_judge_fully(trajectory) for trajectory in trajectories]
    whole = _group(judged)
    usages = [[step.usage for step in trajectory.steps] for trajectory in trajectories]
    return EvalScores(
        n=whole.n,
        em=whole.em,
        f1=whole.f1,
        acc=whole.acc,
        recall=whole.recall,
        mean_steps=whole.mean_steps,
        errors=sum(one.failed for one in judged),
        recall_by_step=_recall_by_step(judged),
        duplicates=None if repeats is None else _duplicates(trajectories, repeats),
        prompt_tokens=_mean(sum(usage.prompt_tokens for usage in steps) for steps in usages),
        completion_tokens=_mean(sum(usage.completion_tokens for usage in steps) for steps in usages),
        stop_reasons=dict(sorted(Counter(t.stop_reason.value for t in trajectories).items())),
        by_hops=_grouped(judged, lambda one: one.hops),
        by_steps=_grouped(judged, lambda one: one.steps),
    )


def aggregate(scores: Sequence[EvalScores]) -> dict[str, Spread]:
    """Mean and spread over seeds of each metric that all of them have; at least one seed."""
    values = {metric: [getattr(one, metric) for one in scores] for metric in METRICS}
    return {metric: spread(seeds) for metric, seeds in values.items() if None not in seeds}


def aggregate_groups(seeds: Sequence[Mapping[str, GroupScores]]) -> dict[str, GroupScores]:
    """The groups of several seeds as one: each score is the mean weighted by the group's questions, n their sum."""
    names = sorted({name for groups in seeds for name in groups}, key=int)
    return {name: _merge([groups[name] for groups in seeds if name in groups]) for name in names}


def spread(values: Sequence[float]) -> Spread:
    """Mean, range and sample standard deviation of at least one value."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return Spread(mean, min(values), max(values), math.sqrt(variance), len(values))


def _judge_fully(trajectory: Trajectory) -> _Judged:
    return _Judged(
        score=judge(trajectory),
        recalls=recall_after_steps(trajectory),
        steps=len(trajectory.steps),
        hops=trajectory.question.hops,
        failed=failed(trajectory),
    )


def _group(judged: Sequence[_Judged]) -> GroupScores:
    recalls = [one.recall for one in judged if one.recall is not None]
    return GroupScores(
        n=len(judged),
        em=_mean(one.score.em for one in judged),
        f1=_mean(one.score.f1 for one in judged),
        acc=_mean(one.score.acc for one in judged),
        recall=_mean(recalls) if recalls else None,
        mean_steps=_mean(one.steps for one in judged),
    )


def _grouped(judged: Sequence[_Judged], key: Callable[[_Judged], int | None]) -> dict[str, GroupScores]:
    groups: dict[int, list[_Judged]] = {}
    for one in judged:
        number = key(one)
        if number is not None:
            groups.setdefault(number, []).append(one)
    return {str(number): _group(groups[number]) for number in sorted(groups)}


def _merge(groups: Sequence[GroupScores]) -> GroupScores:
    total = sum(group.n for group in groups)

    def mean(values: Iterable[float]) -> float:
        return sum(value * group.n for value, group in zip(values, groups, strict=True)) / total

    recalls = [group.recall for group in groups]
    known = [recall for recall in recalls if recall is not None]
    return GroupScores(
        n=total,
        em=mean(group.em for group in groups),
        f1=mean(group.f1 for group in groups),
        acc=mean(group.acc for group in groups),
        recall=mean(known) if len(known) == len(groups) else None,
        mean_steps=mean(group.mean_steps for group in groups),
    )


def _recall_by_step(judged: Sequence[_Judged]) -> tuple[float, ...]:
    recalls = [one.recalls for one in judged if one.recalls is not None]
    longest = max(map(len, recalls), default=0)
    return tuple(_mean(r[min(s, len(r) - 1)] if r else 0.0 for r in recalls) for s in range(longest))


def _duplicates(trajectories: Sequence[Trajectory], repeats: Sequence[int]) -> float | None:
    new = sum(len(trajectory.passages) for trajectory in trajectories)
    again = sum(repeats)
    if len(repeats) != len(trajectories):
        raise ValueError(f"{len(repeats)} counts of repeated passages for {len(trajectories)} trajectories")
    return again / (new + again) if new + again else 0.0


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
