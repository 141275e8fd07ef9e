"""Settings of inference chosen on held-out questions: successive halving over every combination (`steper tune`).

- Each round asks the candidates that are left more questions, and keeps the best of them; what was asked before is
  not asked again (Jamieson and Talwalkar, 2016).
- The run's own settings are a candidate that is never dropped: the winner is compared with them question by question.
- The winner was chosen on these questions, so its score on them flatters it: evaluate it on the test set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import yaml

from steper_ray import stages
from steper_ray.config import Config
from steper_ray.config.file import with_overrides
from steper_ray.core.errors import DataError
from steper_ray.core.files import write_text
from steper_ray.core.splits import draw
from steper_ray.corpora import open_corpus
from steper_ray.evaluation.pipeline import EvalJob, evaluate
from steper_ray.evaluation.report import format_comparisons
from steper_ray.evaluation.scores import EvalScores
from steper_ray.evaluation.statistics import Comparison, compare
from steper_ray.evaluation.store import clusters_among, read_answers
from steper_ray.schema import Question

OWN = "as it is"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A combination of settings, as overrides; none for the run's own."""

    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return ", ".join(self.overrides) or OWN


@dataclass(frozen=True, slots=True)
class Tried:
    """The scores of one candidate after one round."""

    candidate: str
    questions: int
    em: float
    f1: float
    acc: float
    mean_steps: float
    tokens: float
    """Written, a question."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """All rounds, each with its candidates from best to worst; the winner; and how it compares with the run's own."""

    rounds: tuple[tuple[Tried, ...], ...]
    winner: tuple[str, ...]
    comparison: Comparison | None

    def summary(self) -> str:
        """For a person."""
        lines = []
        for number, tried in enumerate(self.rounds, 1):
            lines.append(f"round {number}, {tried[0].questions} questions")
            lines += [f"  {_scores(one)}  {one.candidate}" for one in tried]
        if self.comparison is None:
            return "\n".join([*lines, "the run's own settings are the best of these"])
        lines += ["", format_comparisons([self.comparison])]
        lines.append("chosen on these questions, which flatters it; score it on the test set with")
        return "\n".join([*lines, "  " + " ".join(self.winner)])


def tune(config: Config, model: str | None = None) -> Tuned:
    """Runs the rounds for a model (NAME=PATH, a folder or hub name; by default `engine.model`), on the Ray at hand.

    Writes run_dir/tune/tuned.json and tuned.yaml (the winner's settings). Raises DataError where there is nothing to
    try or nothing to ask, ConfigError for a combination that no run can have, and what `evaluate` raises.
    """
    name, path = stages.named_model(model or config.engine.model)
    questions = _questions(config)
    left = _candidates(config)
    runs = {one: _run(config, one) for one in left}
    rounds = list[tuple[Tried, ...]]()
    size = config.tune.first
    while True:
        asked = questions[:size]
        scores = _ask({one: runs[one] for one in left}, name, path, asked)
        ranked = sorted(left, key=lambda one: _rank(scores[one], config.tune.by))
        rounds.append(tuple(_tried(one, scores[one]) for one in ranked))
        if size >= min(config.tune.questions, len(questions)):
            break
        kept = ranked[: max(1, round(len(ranked) * config.tune.keep))]
        left = [one for one in left if one in kept or not one.overrides]
        size = min(max(size + 1, round(size / config.tune.keep)), config.tune.questions)
    best = ranked[0]
    comparison = _compared(config, runs, best, name) if best.overrides else None
    tuned = Tuned(tuple(rounds), best.overrides, comparison)
    write_text(config.run_dir / "tune" / "tuned.json", json.dumps(asdict(tuned), indent=1) + "\n")
    write_text(config.run_dir / "tune" / "tuned.yaml", _as_yaml(best.overrides))
    return tuned


def _candidates(config: Config) -> list[Candidate]:
    settings = config.tune.settings
    if not settings:
        raise DataError("nothing to tune: set tune.settings, such as {reasoning.k: [2, 4, 8]}")
    values = [[f"{name}={json.dumps(value)}" for value in given] for name, given in settings.items()]
    return [Candidate(()), *map(Candidate, product(*values))]


def _questions(config: Config) -> list[Question]:
    """In the order of their draws, so that each round's questions begin with those of the one before."""
    source, share = config.tune.corpus or config.corpus, config.train.validation.share
    questions = sorted(open_corpus(source).questions(), key=lambda question: draw(question.id))
    if config.tune.corpus is None:
        questions = [question for question in questions if draw(question.id) < share]
    if not questions:
        raise DataError(
            "tune: no question is held out of `corpus`, which students learn from: set tune.corpus to other questions, "
            "or train with train.validation.share"
        )
    return questions


def _run(config: Config, candidate: Candidate) -> Config:
    """The candidate's run: its index where it belongs, its answers below run_dir/tune."""
    own = with_overrides(config, candidate.overrides)
    source = config.tune.corpus or config.corpus
    own = own.model_copy(update={"corpus": source})
    retrieval = own.retrieval.model_copy(update={"index_dir": stages.index(own)})
    settings = own.evaluate.model_copy(update={"corpus": None, "chunk_size": config.tune.first})
    update = {"retrieval": retrieval, "evaluate": settings, "run_dir": config.run_dir / "tune"}
    return own.model_copy(update=update)


def _ask(
    runs: Mapping[Candidate, Config], name: str, path: str, questions: Sequence[Question]
) -> dict[Candidate, EvalScores]:
    """The scores of all candidates; those that search alike share their engines."""
    groups: dict[str, list[Candidate]] = {}
    for one, run in runs.items():
        groups.setdefault(run.retrieval.model_dump_json(), []).append(one)
    found: dict[Candidate, EvalScores] = {}
    for group in groups.values():
        base = runs[group[0]]
        jobs = {one: _job(base, runs[one], f"{name}, {one.name}", path) for one in group}
        scores = evaluate(base, list(jobs.values()), questions=questions)
        found |= {one: scores[job.name][job.unit] for one, job in jobs.items()}
    return found


def _job(base: Config, run: Config, name: str, path: str) -> EvalJob:
    """The evaluation of a candidate in a run that differs by its reasoning alone."""
    own = {
        field: value
        for field in type(run.reasoning).model_fields
        if (value := getattr(run.reasoning, field)) != getattr(base.reasoning, field) and field != "unit"
    }
    return EvalJob(name, path, run.reasoning.unit, tuple(own.items()))


def _rank(scores: EvalScores, by: str) -> tuple[float, float]:
    """The highest score first; of equals who writes least."""
    return -float(getattr(scores, by)), scores.completion_tokens


def _tried(candidate: Candidate, scores: EvalScores) -> Tried:
    return Tried(
        candidate.name,
        scores.n,
        scores.em,
        scores.f1,
        scores.acc,
        scores.mean_steps,
        scores.completion_tokens,
    )


def _compared(config: Config, runs: dict[Candidate, Config], best: Candidate, name: str) -> Comparison:
    own = next(one for one in runs if not one.overrides)
    sides = [
        read_answers(config.run_dir / "tune", f"{name}, {one.name}", runs[one].reasoning.unit)
        for one in (best, own)
    ]
    by, unit = config.tune.by, runs[best].reasoning.unit
    mine, yours = (side.metric(by) for side in sides)
    return compare(best.name, OWN, unit, by, [mine], [yours], clusters_among(sides))


def _scores(one: Tried) -> str:
    shares = "  ".join(
        f"{name} {100 * value:5.1f}" for name, value in (("EM", one.em), ("F1", one.f1), ("Acc", one.acc))
    )
    return f"{shares}  steps {one.mean_steps:.2f}  tokens {one.tokens:5.0f}"


def _as_yaml(overrides: Sequence[str]) -> str:
    found: dict[str, Any] = {}
    for override in overrides:
        name, _, value = override.partition("=")
        *sections, field = name.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = json.loads(value)
    return yaml.safe_dump(found, sort_keys=False) if found else "{}\n"
