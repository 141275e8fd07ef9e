"""Answers as files: JSONL with chains and passages, and the official submission formats of the three data sets.

Sources: the evaluation scripts of HotpotQA (hotpot_evaluate_v1.py), 2WikiMultiHopQA (2wikimultihop_evaluate_v1.1.py)
and MuSiQue (evaluate_v1.0.py). Supporting facts and evidences are not predicted: their fields are there and empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from steper_ray.core.files import write_file
from steper_ray.schema import Question, Trajectory


@dataclass(frozen=True, slots=True)
class Predicted:
    """A question and its trajectory, or the error of its last attempt where it is owed."""

    question: Question
    trajectory: Trajectory | None
    error: str | None = None


@dataclass(slots=True)
class Predictions:
    """The written files, and how many questions there are, have an answer and are owed."""

    files: list[Path] = field(default_factory=list)
    questions: int = 0
    answered: int = 0
    owed: int = 0

    def summary(self) -> str:
        owed = f", {self.owed} are owed" if self.owed else ""
        counts = f"{self.answered} of {self.questions} questions have an answer{owed}"
        return "\n".join((counts, *(f"  {file}" for file in self.files)))


def data_set(name: str) -> str | None:
    """The official set that a question's `dataset` names, as people write it (hotpot_qa, 2WikiMultihopQA)."""
    letters = "".join(filter(str.isalnum, name.lower()))
    return next((known for known in _SUBMISSIONS if letters.startswith(known.removesuffix("qa"))), None)


def write_predictions(stem: Path, read: Callable[[], Iterable[Predicted]]) -> Predictions:
    """Writes `<stem>.jsonl`, and `<stem>.<set>.json[l]` for each official set among the questions.

    `read` is called once a file and must give the same each time. Raises StorageError.
    """
    found, sets = Predictions(), dict[str, None]()

    def rows() -> Iterator[str]:
        for one in read():
            found.questions += 1
            found.answered += bool(one.trajectory and one.trajectory.answer)
            found.owed += one.trajectory is None
            if (name := data_set(one.question.dataset)) is not None:
                sets[name] = None
            yield _line(_row(one))

    _write(stem.with_name(f"{stem.name}.jsonl"), rows(), found)
    for name in sets:
        suffix, submission = _SUBMISSIONS[name]
        answers = (
            (one.question.id, _answer(one)) for one in read() if data_set(one.question.dataset) == name
        )
        _write(stem.with_name(f"{stem.name}.{name}.{suffix}"), submission(answers), found)
    return found


def _write(path: Path, parts: Iterable[str], found: Predictions) -> None:
    def write(fresh: Path) -> None:
        with fresh.open("w", encoding="utf-8") as stream:
            stream.writelines(parts)

    write_file(path, write)
    found.files.append(path)


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _answer(one: Predicted) -> str:
    return one.trajectory.answer if one.trajectory else ""


def _row(one: Predicted) -> dict[str, object]:
    """`step` of a passage is the step that found it, from 1."""
    found = one.trajectory
    steps = found.steps if found else ()
    return {
        "id": one.question.id,
        "question": one.question.text,
        "answer": _answer(one),
        "stop_reason": found.stop_reason.value if found else None,
        "error": found.error if found else one.error,
        "chain": list(found.chain) if found else [],
        "passages": [
            {"id": hit.passage.id, "title": hit.passage.title, "text": hit.passage.text,
             "score": hit.score, "step": step.index}
            for step in steps for hit in step.hits
        ],
    }  # fmt: skip


Answers = Iterable[tuple[str, str]]
"""Question id and answer; an owed question's answer is empty."""


def _hotpotqa(answers: Answers) -> Iterator[str]:
    found = dict(answers)
    yield _line({"answer": found, "sp": {key: [] for key in found}})


def _twowiki(answers: Answers) -> Iterator[str]:
    found = dict(answers)
    empty: dict[str, list[object]] = {key: [] for key in found}
    yield _line({"answer": found, "sp": empty, "evidence": empty})


def _musique(answers: Answers) -> Iterator[str]:
    """One line a question, in the order of the questions, which its script compares."""
    for key, answer in answers:
        yield _line(
            {
                "id": key,
                "predicted_answer": answer,
                "predicted_support_idxs": [],
                "predicted_answerable": True,
            }
        )


_SUBMISSIONS: dict[str, tuple[str, Callable[[Answers], Iterator[str]]]] = {
    "hotpotqa": ("json", _hotpotqa),
    "2wiki": ("json", _twowiki),
    "musique": ("jsonl", _musique),
}
