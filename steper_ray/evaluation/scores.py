"""Scores over trajectories. Pure: trajectories in, numbers out.

Answers are judged by the data sets' official rules (`answers.score`); this module adds what only a trajectory
shows: retrieval recall after each step (Table 7), steps used (Table 6), hops, stop reasons and tokens. A question
that failed with an error counts as wrong, and is counted. Knows no file, no engine and no Ray.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from steper_ray.core.answers import Score, contains, score
from steper_ray.core.claims import Ground
from steper_ray.core.errors import DataError
from steper_ray.schema import Question, StopReason, Trajectory

FAILED = frozenset((StopReason.RETRIEVER_FAILED, StopReason.GENERATOR_FAILED, StopReason.REJECTED))
_WRONG = Score(em=0.0, f1=0.0, acc=0.0, acc_words=0.0)
#: What is averaged over seeds.
METRICS = (
    *("em", "f1", "acc", "acc_words", "recall", "duplicates", "mean_steps"),
    *("prompt_tokens", "completion_tokens", "larger_tokens"),
    *("grounded", "sub_answers", "started", "deviation"),
)


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

    em, f1, acc, acc_words (acc on whole words), recall and duplicates lie between 0 and 1; mean_steps is in steps; the
    tokens are the mean of one question's sum over its steps (`larger_tokens` are those that the model of
    `reasoning.escalate` wrote). `recall` is None where no question names its gold
    passages; `duplicates` is the share of found passages that were found before, or came after the prompt was full.
    `grounded` is the share of a chain's steps of whose names and numbers each stands in the question or in a passage of
    the prompt, as the stated answer in a passage; None where no step claims anything.
    Of questions with a gold decomposition (None where there are none): `sub_answers`, the share of sub-questions whose
    answer the chain states; `started`, the share of chains whose first step states one that needs no other;
    `deviation`, by how many steps the chain is longer or shorter than the decomposition.
    `recall_by_step[s - 1]` is the recall after step s; a question that ended earlier keeps its last recall.
    `errors` questions failed and count as wrong; `owed` of them have no end yet and are asked again by a rerun.
    """

    n: int
    em: float
    f1: float
    acc: float
    acc_words: float
    recall: float | None
    mean_steps: float
    errors: int
    owed: int
    recall_by_step: tuple[float, ...]
    duplicates: float
    prompt_tokens: float
    completion_tokens: float
    stop_reasons: Mapping[str, int]
    by_hops: Mapping[str, GroupScores]
    by_steps: Mapping[str, GroupScores]
    larger_tokens: float
    grounded: float | None
    sub_answers: float | None
    started: float | None
    deviation: float | None


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


def grounded_share(trajectory: Trajectory) -> float | None:
    """`grounded` of EvalScores for one trajectory."""
    ground, standing = Ground(trajectory.question.text, ()), list[bool]()
    for step in trajectory.steps:
        ground.add(hit.passage for hit in step.hits)
        if (shares := ground.shares(step.reasoning)) is not None:
            standing.append(shares.grounding == 1)
    return sum(standing) / len(standing) if standing else None


def follows_decomposition(trajectory: Trajectory) -> tuple[float, float, float] | None:
    """`sub_answers`, `started` and `deviation` of EvalScores for one trajectory; None without a gold decomposition."""
    subs = trajectory.question.decomposition
    if not subs:
        return None
    steps = [step.reasoning for step in trajectory.steps]
    chain, first = " ".join(steps), steps[0] if steps else ""
    stated = [contains(chain, sub.answer) for sub in subs]
    started = max((contains(first, sub.answer) for sub in subs if "#" not in sub.question), default=0.0)
    # The final answer may share the step of the last hop, or have a step of its own.
    off = max(len(subs) - len(steps), len(steps) - len(subs) - 1, 0)
    return sum(stated) / len(subs), started, float(off)


def score_trajectories(trajectories: Iterable[Trajectory]) -> EvalScores:
    """The scores of one evaluation. Raises DataError where there is nothing to score."""
    scored = Scored()
    for trajectory in trajectories:
        scored.add(trajectory)
    return scored.scores()


class Scored:
    """The scores of each question as columns of numbers, some 100 bytes a question; parts are joined by `extend`."""

    _COLUMNS = (
        "em",
        "f1",
        "acc",
        "acc_words",
        "recall",
        "steps",
        "hops",
        "prompt",
        "completion",
        "larger",
        "new",
        "repeated",
        "grounded",
        "sub_answers",
        "started",
        "deviation",
        "failed",
        "owed",
    )

    def __init__(self) -> None:
        self._columns = {name: array("d") for name in self._COLUMNS}
        self._reasons: Counter[str] = Counter()
        self.rejected = ""
        """Why the first rejected question could not be asked."""
        self._at_step: list[array[float]] = []
        """Recalls after step s of the trajectories that took it."""
        self._ended: list[array[float]] = []
        """Last recalls of the trajectories that ended after s steps."""

    def add(self, trajectory: Trajectory) -> None:
        """Raises DataError for a question without a gold answer."""
        usages = [step.usage for step in trajectory.steps]
        recalls = recall_after_steps(trajectory)
        self._reasons[trajectory.stop_reason.value] += 1
        if trajectory.stop_reason is StopReason.REJECTED:
            self.rejected = self.rejected or (trajectory.error or "no reason given")
        self._row(
            trajectory.question,
            judge(trajectory),
            recall=None if recalls is None else recalls[-1] if recalls else 0.0,
            steps=len(trajectory.steps),
            prompt=sum(usage.prompt_tokens for usage in usages),
            completion=sum(usage.completion_tokens for usage in usages),
            larger=sum(usage.larger_tokens for usage in usages),
            new=len(trajectory.passages),
            repeated=sum(step.duplicates for step in trajectory.steps),
            failed=failed(trajectory),
            grounded=grounded_share(trajectory),
            follows=follows_decomposition(trajectory),
        )
        if recalls is not None:
            for step, recall in enumerate(recalls):
                _at(self._at_step, step).append(recall)
            _at(self._ended, len(recalls)).append(recalls[-1] if recalls else 0.0)

    def add_owed(self, question: Question) -> None:
        """A question without an end: wrong, and asked again by a rerun."""
        self._row(question, _WRONG, failed=True, owed=True, follows=None)

    def extend(self, other: Scored) -> None:
        for name, column in self._columns.items():
            column.extend(other._columns[name])
        self._reasons.update(other._reasons)
        self.rejected = self.rejected or other.rejected
        for mine, theirs in ((self._at_step, other._at_step), (self._ended, other._ended)):
            for step, recalls in enumerate(theirs):
                _at(mine, step).extend(recalls)

    def scores(self) -> EvalScores:
        """Raises DataError where there is nothing to score."""
        if not self._columns["em"]:
            raise DataError("no trajectories to score: the test set is empty")
        rows = range(len(self._columns["em"]))
        whole = self._group(rows)
        found = self._sum("new", rows) + self._sum("repeated", rows)
        ended = [row for row in rows if not self._columns["owed"][row]]
        return EvalScores(
            n=whole.n,
            em=whole.em,
            f1=whole.f1,
            acc=whole.acc,
            acc_words=self._mean("acc_words", rows),
            recall=whole.recall,
            mean_steps=self._mean("steps", ended),
            errors=int(self._sum("failed", rows)),
            owed=whole.n - len(ended),
            recall_by_step=self._recall_by_step(),
            duplicates=self._sum("repeated", rows) / found if found else 0.0,
            prompt_tokens=self._mean("prompt", ended),
            completion_tokens=self._mean("completion", ended),
            stop_reasons=dict(sorted(self._reasons.items())),
            by_hops=self._grouped("hops", [row for row in rows if self._columns["hops"][row] >= 0]),
            by_steps=self._grouped("steps", ended),
            larger_tokens=self._mean("larger", ended),
            grounded=self._mean_known("grounded", rows),
            sub_answers=self._mean_known("sub_answers", rows),
            started=self._mean_known("started", rows),
            deviation=self._mean_known("deviation", rows),
        )

    def _row(
        self,
        question: Question,
        score: Score,
        *,
        follows: tuple[float, float, float] | None,
        recall: float | None = None,
        grounded: float | None = None,
        **numbers: float,
    ) -> None:
        sub_answers, started, deviation = follows or (math.nan, math.nan, math.nan)
        row = {
            "em": score.em,
            "f1": score.f1,
            "acc": score.acc,
            "acc_words": score.acc_words,
            "recall": math.nan if recall is None else recall,
            "hops": -1 if question.hops is None else question.hops,
            "grounded": math.nan if grounded is None else grounded,
            "sub_answers": sub_answers,
            "started": started,
            "deviation": deviation,
            **numbers,
        }
        for name, column in self._columns.items():
            column.append(row.get(name, 0.0))

    def _group(self, rows: Sequence[int]) -> GroupScores:
        return GroupScores(
            n=len(rows),
            em=self._mean("em", rows),
            f1=self._mean("f1", rows),
            acc=self._mean("acc", rows),
            recall=self._mean_known("recall", rows),
            mean_steps=self._mean("steps", rows),
        )

    def _grouped(self, name: str, rows: Sequence[int]) -> dict[str, GroupScores]:
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault(int(self._columns[name][row]), []).append(row)
        return {str(number): self._group(groups[number]) for number in sorted(groups)}

    def _recall_by_step(self) -> tuple[float, ...]:
        """A trajectory that ended before step s counts there with its last recall, 0 where it had no step."""
        found, before = list[float](), list[float]()
        for step, recalls in enumerate(self._at_step):
            before.extend(self._ended[step] if step < len(self._ended) else ())
            values = [*recalls, *before]
            found.append(math.fsum(values) / len(values))
        return tuple(found)

    def _sum(self, name: str, rows: Sequence[int]) -> float:
        column = self._columns[name]
        return math.fsum(column[row] for row in rows)

    def _mean_known(self, name: str, rows: Sequence[int]) -> float | None:
        known = [row for row in rows if not math.isnan(self._columns[name][row])]
        return self._mean(name, known) if known else None

    def _mean(self, name: str, rows: Sequence[int]) -> float:
        return self._sum(name, rows) / len(rows) if rows else 0.0


def _at(columns: list[array[float]], number: int) -> array[float]:
    while number >= len(columns):
        columns.append(array("d"))
    return columns[number]
