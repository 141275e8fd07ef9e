"""Self-distillation: rounds in which a student's own right trajectories join the next student's data, with no teacher.

Round r is a separate run below run_dir/rounds/r: its data (`steper inspect` reads it), its training, its student. A
round takes over the trajectories of the ones before, so a question is asked until a student gets it right and no more.
What was stopped continues where it stopped.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steper_ray import stages
from steper_ray.config import Config, TeacherConfig
from steper_ray.core.errors import DataError, NothingKeptError
from steper_ray.core.files import write_text
from steper_ray.core.storage import has_scheme
from steper_ray.data.tally import SourceCount
from steper_ray.models import resolve_model

if TYPE_CHECKING:
    from steper_ray.data.report import BuildReport
    from steper_ray.evaluation.scores import EvalScores


@dataclass(frozen=True, slots=True)
class Round:
    """The result of one round. Round 0 is the first student: it has scores alone.

    The student before wrote `trajectories`, of which `won` joined the data; `kept` trajectories and `examples` are all
    that `student` learned from. `scores` holds EM, F1, Acc and mean steps by step unit.
    """

    number: int
    student: str
    trajectories: int = 0
    won: int = 0
    kept: int = 0
    examples: int = 0
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def self_distil(config: Config) -> list[Round]:
    """Runs `config.self_distil.rounds` rounds, scores all students, and writes run_dir/rounds/rounds.json.

    Rounds end early where one wins no question. Raises DataError if the first student is missing or gets no question
    right, and what the stages raise.
    """
    students = [_first_student(config)]
    rounds = [Round(0, students[0])]
    for number in range(1, config.self_distil.rounds + 1):
        own = _round_config(config, number, students)
        try:
            report = _build(own, number)
        except NothingKeptError as error:
            raise DataError(
                f"{own.run_dir / 'data'}: the first student gets no question right, so there is nothing to learn: see "
                "dropped.md there, set self_distil.samples and a temperature, or begin with another student"
            ) from error
        last = report.sources.get(students[-1], SourceCount())
        if not last.kept:
            break
        student = str(stages.train(own, replace=True).model_dir)
        students.append(student)
        examples = sum(report.examples.values())
        rounds.append(Round(number, student, last.trajectories, last.kept, report.kept, examples))
    return _scored(config, rounds)


def round_folder(config: Config, number: int) -> Path:
    return config.run_dir / "rounds" / str(number)


def format_rounds(rounds: list[Round]) -> str:
    """A table for a terminal, scores in %."""
    heads = ("round", "trajectories", "won", "kept", "examples", *(f"EM {unit}" for unit in rounds[0].scores))
    lines = [" ".join(f"{head:>12}" for head in heads)]
    for row in rounds:
        counts = (row.number, row.trajectories, row.won, row.kept, row.examples)
        shares = (f"{100 * scores['em']:.1f}" for scores in row.scores.values())
        lines.append(" ".join(f"{value:>12}" for value in (*counts, *shares)))
    return "\n".join(lines)


def _first_student(config: Config) -> str:
    if config.self_distil.student is not None:
        found = resolve_model(config.self_distil.student)
        return config.self_distil.student if has_scheme(config.self_distil.student) else found
    folder = stages.model_folder(config)
    if not folder.exists():
        raise DataError(
            f"{folder}: no student here to begin with: train one (`steper train`), or name one in self_distil.student"
        )
    return str(folder)


def _round_config(config: Config, number: int, students: list[str]) -> Config:
    """The config of one round: the students so far are its teachers, the first one first."""
    rounds = config.self_distil
    engine = rounds.engine or config.engine
    teachers = tuple(
        TeacherConfig(
            engine=engine.model_copy(update={"model": student, "tokenizer": None}),
            samples=rounds.samples,
            temperature=rounds.temperature,
        )
        for student in students
    )
    build: dict[str, Any] = {
        "teacher": "engine",
        "teachers": teachers,
        "samples": 1,
        "keep": "first",
        "ask": None,
    }
    update = {
        "run_dir": round_folder(config, number),
        "retrieval": config.retrieval.model_copy(update={"index_dir": stages.index(config)}),
        "build": config.build.model_copy(update=build),
    }
    return Config.model_validate(config.model_copy(update=update).model_dump())


def _build(config: Config, number: int) -> BuildReport:
    from steper_ray.rollouts.shards import ShardStore

    before = config.run_dir.parent / str(number - 1) / "data" / "trajectories"
    ShardStore(config.run_dir / "data" / "trajectories", "").adopt(before)
    return stages.build(config)


def _scored(config: Config, rounds: list[Round]) -> list[Round]:
    """The rounds with their students' scores, written down."""
    from steper_ray.evaluation.pipeline import EvalJob, evaluate

    engine = config.self_distil.engine or config.engine
    jobs = [
        EvalJob(f"round-{row.number}", row.student, unit) for row in rounds for unit in config.evaluate.units
    ]
    scores = evaluate(config.model_copy(update={"engine": engine}), jobs)
    scored = [replace(row, scores=_figures(scores[f"round-{row.number}"])) for row in rounds]
    text = json.dumps([asdict(row) for row in scored], indent=1) + "\n"
    write_text(config.run_dir / "rounds" / "rounds.json", text)
    return scored


def _figures(scores: dict[str, EvalScores]) -> dict[str, dict[str, float]]:
    return {
        unit: {"em": of.em, "f1": of.f1, "acc": of.acc, "mean_steps": of.mean_steps}
        for unit, of in scores.items()
    }
