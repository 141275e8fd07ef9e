"""Runs experiments: builds, trains and evaluates what they need once, and compares what their rows answered.

- One folder a data set and framework, ROOT/DATA[-FRAMEWORK], is a run like any other: `steper report`, `compare` and
  `inspect` read it, and what it has already done is not done again.
- The table of an experiment is counted from the evaluations on disk alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steper_ray import stages
from steper_ray.cluster import connect
from steper_ray.config import Config, TrainConfig
from steper_ray.core.errors import ModelError
from steper_ray.data.estimate import model_size
from steper_ray.evaluation.judging import Judged, judge_evaluations
from steper_ray.evaluation.pipeline import EvalJob, evaluate
from steper_ray.evaluation.results import Curves, assemble_results, read_metrics
from steper_ray.evaluation.scores import EvalScores, GroupScores
from steper_ray.evaluation.spread import Spread, aggregate, aggregate_groups
from steper_ray.evaluation.statistics import Comparison, Interval, compare, holm, interval
from steper_ray.evaluation.store import Answers, clusters_among, read_answers
from steper_ray.evaluation.timing import Timing, time_jobs
from steper_ray.experiments.plan import BASE, STUDENTS, TEACHER, Arm, Experiment
from steper_ray.rollouts.spec import at_fixed_steps
from steper_ray.training.trainer import TrainJob, train


@dataclass(frozen=True, slots=True)
class Setting:
    """A data set in a framework: one run."""

    data: str
    framework: str = ""

    @property
    def folder(self) -> str:
        return f"{self.data}-{self.framework}" if self.framework else self.data


@dataclass(frozen=True, slots=True)
class Student:
    """One training: a recipe of STUDENTS in a setting, from a model of a size, with a seed."""

    setting: Setting
    recipe: str
    size: str
    seed: int

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.recipe, self.size, f"seed{self.seed}") if part)


@dataclass(frozen=True, slots=True)
class Row:
    """The scores of one arm on one data set in one step unit: means over seeds with their spread, the 95 % interval of
    accuracy, and the groups of questions by the steps they used."""

    data: str
    label: str
    unit: str
    scores: Mapping[str, Spread]
    acc: Interval
    by_steps: Mapping[str, GroupScores]
    timing: Timing | None = None
    """Of the first seed's model, where the experiment times its rows."""
    parameters: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an experiment found."""

    experiment: Experiment
    rows: Sequence[Row]
    comparisons: Sequence[tuple[str, Comparison]]
    """Each with its data set."""
    sigma: Mapping[str, Sequence[Curves]]
    """By data set, a curve a seed."""
    judged: Sequence[tuple[str, str, str, Judged]] = ()
    """Data set, row, the row it is held against, and what the judge said of both."""


class Paper:
    """Experiments over data sets: `configs` by the names of the data sets, all below `root`; `sizes` maps the names of
    Fig. 4's students to models."""

    def __init__(self, root: Path, configs: Mapping[str, Config], sizes: Mapping[str, str]) -> None:
        self._root, self._configs, self._sizes = root, configs, sizes

    def config(self, setting: Setting) -> Config:
        """The run of a setting: the data set's config, in its framework, below `root`."""
        config = at_fixed_steps(self._configs[setting.data])
        update: dict[str, object] = {"run_dir": self._root / setting.folder}
        if setting.framework:
            reasoning = config.reasoning.model_copy(update={"framework": setting.framework})
            update["reasoning"] = reasoning
            if config.engine.model.startswith("miniature:"):  # its teacher knows IRCoT alone
                update["build"] = config.build.model_copy(update={"teacher": "annotation"})
        return config.model_copy(update=update)

    def arms(self, experiment: Experiment, data: str) -> list[Arm]:
        """The rows of an experiment on a data set; a teacher that is no model has none."""
        return [
            arm
            for arm in experiment.arms
            if arm.model != TEACHER or self.config(self._asked(arm, data)).build.teacher == "engine"
        ]

    def students(self, chosen: Iterable[tuple[Experiment, str]]) -> list[Student]:
        """The trainings that experiments on data sets need, each once."""
        found = [
            student
            for experiment, data in chosen
            for arm in self.arms(experiment, data)
            for student in self._students(arm, data)
        ]
        return list(dict.fromkeys(found))

    def jobs(self, chosen: Iterable[tuple[Experiment, str]]) -> dict[Setting, list[EvalJob]]:
        """The evaluations that experiments on data sets need, each once, by the run that asks them."""
        found: dict[Setting, dict[EvalJob, None]] = {}
        for experiment, data in chosen:
            for arm in self.arms(experiment, data):
                jobs = found.setdefault(self._asked(arm, data), {})
                jobs |= dict.fromkeys(
                    job for unit in self._units(arm, data) for job in self._jobs(arm, data, unit)
                )
        return {setting: list(jobs) for setting, jobs in found.items()}

    def run(self, chosen: Sequence[tuple[Experiment, str]]) -> list[Outcome]:
        """Does what is missing, and returns an outcome an experiment. Raises SteperError; a rerun continues."""
        students = self.students(chosen)
        for setting in dict.fromkeys(student.setting for student in students):
            config = self.config(setting)
            config.save(config.run_dir)
            stages.build(config)
            own = [student for student in students if student.setting == setting]
            for settings in {student.recipe: self._settings(student) for student in own}.values():
                stages.make_form(config.model_copy(update={"train": settings}))
            jobs = [self.training(student) for student in own]
            train(jobs, run_dir=config.run_dir, judge=stages.judge(config))
        scores: dict[Setting, dict[str, dict[str, EvalScores]]] = {}
        for setting, wanted in self.jobs(chosen).items():
            config = self.config(setting)
            connect(config.run_dir)
            scores[setting] = evaluate(config, wanted)
        timings = {
            setting: time_jobs(self.config(setting), wanted)
            for setting, wanted in self._timed_jobs(chosen).items()
        }
        experiments = {experiment.name: experiment for experiment, _ in chosen}
        return [
            self._outcome(experiment, [data for one, data in chosen if one is experiment], scores, timings)
            for experiment in experiments.values()
        ]

    def _timed_jobs(self, chosen: Iterable[tuple[Experiment, str]]) -> dict[Setting, list[EvalJob]]:
        """Of each row of a timed experiment and unit, the first seed's evaluation."""
        found: dict[Setting, dict[EvalJob, None]] = {}
        for experiment, data in chosen:
            for arm in self.arms(experiment, data) if experiment.timed else ():
                jobs = found.setdefault(self._asked(arm, data), {})
                jobs |= {self._jobs(arm, data, unit)[0]: None for unit in self._units(arm, data)}
        return {setting: list(jobs) for setting, jobs in found.items()}

    def _asked(self, arm: Arm, data: str) -> Setting:
        return Setting(data, arm.framework)

    def _units(self, arm: Arm, data: str) -> tuple[str, ...]:
        return arm.units or tuple(self._configs[data].evaluate.units)

    def _students(self, arm: Arm, data: str) -> list[Student]:
        if arm.model not in STUDENTS:
            return []
        setting = Setting(arm.data or data, arm.framework)
        return [Student(setting, arm.model, arm.size, seed) for seed in self._configs[data].demo.seeds]

    def training(self, student: Student) -> TrainJob:
        """The training of a student."""
        settings = self._settings(student)
        config = self.config(student.setting).model_copy(update={"train": settings})
        folder = config.run_dir / "models" / student.name
        return TrainJob(
            student.name, settings, stages.trajectories_folder(config), folder, config.reasoning.prompt
        )

    def _settings(self, student: Student) -> TrainConfig:
        own = {"seed": student.seed} | ({"student": self._sizes[student.size]} if student.size else {})
        train = self.config(student.setting).train
        return train.model_copy(update={**STUDENTS[student.recipe], **own})

    def _jobs(self, arm: Arm, data: str, unit: str) -> list[EvalJob]:
        """One evaluation a seed; of a model that is not trained, one."""
        config = self.config(self._asked(arm, data))
        models = {
            "-".join(part for part in (arm.data, student.name) if part): str(
                self.config(student.setting).run_dir / "models" / student.name
            )
            for student in self._students(arm, data)
        }
        if arm.model == TEACHER:
            models = {TEACHER: config.engine.model}
        elif arm.model == BASE:
            name = f"{BASE}-{arm.size}" if arm.size else BASE
            models = {name: self._sizes[arm.size] if arm.size else config.train.student}
        own = tuple(pair for pair in arm.reasoning if getattr(config.reasoning, pair[0]) != pair[1])
        said = "".join(f"-{name}_{value}" for name, value in own)
        return [EvalJob(name + said, model, unit, own) for name, model in models.items()]

    def _outcome(
        self,
        experiment: Experiment,
        datasets: Sequence[str],
        scores: Mapping[Setting, Mapping[str, Mapping[str, EvalScores]]],
        timings: Mapping[Setting, Mapping[EvalJob, Timing]],
    ) -> Outcome:
        rows, comparisons = list[Row](), list[tuple[str, Comparison]]()
        for data in datasets:
            answers: dict[tuple[str, str], list[Answers]] = {}
            for arm in self.arms(experiment, data):
                asked = self._asked(arm, data)
                for unit in self._units(arm, data):
                    jobs = self._jobs(arm, data, unit)
                    run_dir = self.config(asked).run_dir
                    found = [read_answers(run_dir, job.name, unit) for job in jobs]
                    answers[arm.label, unit] = found
                    row = _row(data, arm.label, unit, [scores[asked][job.name][unit] for job in jobs], found)
                    if experiment.timed:
                        row = replace(
                            row, timing=timings[asked][jobs[0]], parameters=_parameters(jobs[0].model)
                        )
                    rows.append(row)
            comparisons += [(data, one) for one in _compared(experiment, answers)]
        corrected = holm([one for _, one in comparisons])
        named = [(data, one) for (data, _), one in zip(comparisons, corrected, strict=True)]
        sigma = {data: self._sigma(experiment, data) for data in datasets if experiment.shows == "sigma"}
        judged = [said for data in datasets for said in self._judged(experiment, data)]
        return Outcome(experiment, rows, named, sigma, judged)

    def _judged(self, experiment: Experiment, data: str) -> list[tuple[str, str, str, Judged]]:
        if not experiment.judged or self._configs[data].evaluate.judge is None:
            return []
        names = {
            arm.label: ",".join(job.name for job in self._jobs(arm, data, self._units(arm, data)[0]))
            for arm in self.arms(experiment, data)
        }
        config = self.config(Setting(data))
        return [
            (data, one, other, said)
            for one, other in experiment.pairs
            for said in judge_evaluations(config, names[one], names[other])
        ]

    def _sigma(self, experiment: Experiment, data: str) -> Sequence[Curves]:
        logs = []
        for student in self.students([(experiment, data)]):
            log = self.config(student.setting).run_dir / "training" / student.name / "metrics.jsonl"
            logs.append(read_metrics(log, student.recipe, student.seed))
        return assemble_results({}, {}, trainings=logs).sigma


def _parameters(model: str) -> float | None:
    try:
        return model_size(model)
    except ModelError:  # behind an endpoint
        return None


def _row(data: str, label: str, unit: str, seeds: Sequence[EvalScores], answers: Sequence[Answers]) -> Row:
    acc = interval([one.metric("acc") for one in answers], clusters_among(answers))
    return Row(data, label, unit, aggregate(seeds), acc, aggregate_groups([one.by_steps for one in seeds]))


def _compared(experiment: Experiment, answers: Mapping[tuple[str, str], list[Answers]]) -> list[Comparison]:
    """Accuracy of the experiment's pairs, in the units that both have, or else in their only ones."""
    found = []
    for one, other in experiment.pairs:
        units = [[unit for label, unit in answers if label == row] for row in (one, other)]
        for unit in units[0]:
            theirs = unit if unit in units[1] else units[1][0] if units[1] else None
            if theirs is None:
                continue
            sides = [answers[one, unit], answers[other, theirs]]
            clusters = clusters_among(seed for side in sides for seed in side)
            mine, yours = ([seed.metric("acc") for seed in side] for side in sides)
            compared = compare(one, other, unit, "acc", mine, yours, clusters)
            found.append(compared if unit == theirs else replace(compared, other=f"{other} ({theirs})"))
    return found
