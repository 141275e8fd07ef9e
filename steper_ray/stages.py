"""The stages of a run as functions of a config: the public API, the command line, jobs/ and the demo call them.

- Each stage reads what the one before wrote under `run_dir`: index/, data/, models/, eval/, report.html.
- Each uses the Ray that is initialised, joins the cluster of RAY_ADDRESS, or starts a Ray of this process.
- Heavy imports wait inside the functions, so that `--dry-run` and `--help` answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steper_ray.cluster import connect
from steper_ray.config import Config
from steper_ray.core.errors import DataError, NothingKeptError, SteperError

if TYPE_CHECKING:
    from steper_ray.data.report import BuildReport
    from steper_ray.evaluation.predictions import Predictions
    from steper_ray.evaluation.results import Results
    from steper_ray.evaluation.scores import EvalScores
    from steper_ray.training.job import Rollouts
    from steper_ray.training.trainer import TrainResult
    from steper_ray.training.watch import Judge


def trajectories_folder(config: Config) -> Path:
    """The kept trajectories of the build, in the form of `train.form`: what training reads."""
    if config.train.form == "chain":
        return config.run_dir / "data" / "kept"
    from steper_ray.data.single_step import form_folder

    return form_folder(config.run_dir, config.train.form)


def training_name(config: Config) -> str:
    return config.train.name or config.train.method


def model_folder(config: Config) -> Path:
    return config.run_dir / "models" / training_name(config)


def index(config: Config) -> Path:
    """Builds the index of the corpus where it is missing; returns its folder."""
    return _index(config)[0]


def _index(config: Config) -> tuple[Path, str]:
    """The folder of the index, and the fingerprint of its corpus."""
    from steper_ray.corpora import open_corpus
    from steper_ray.retrieval import ensure_index, index_folder

    corpus = open_corpus(config.corpus)
    fingerprint = corpus.fingerprint()
    folder = index_folder(config.retrieval, config.run_dir, fingerprint)
    ensure_index(corpus.passages(), config.retrieval, folder, fingerprint)
    return folder, fingerprint


def make_form(config: Config) -> None:
    """Writes the kept trajectories in the form of `train.form`, where it is another than the build's.

    Raises SteperError.
    """
    if config.train.form != "chain":
        from steper_ray.data.single_step import make_form as make

        connect(config.run_dir)
        make(config)


def long_passages(config: Config, folder: Path) -> str:
    """A line on the passages of an index that are longer than a prompt takes; empty where there are none."""
    from steper_ray.retrieval import long_passages as count

    found = count(folder, config.reasoning.max_passage_chars)
    return found.summary(config.reasoning.long_passages) if found else ""


def build(config: Config) -> BuildReport:
    """Questions and passages -> kept trajectories in run_dir/data/kept. Continues where an earlier run stopped.

    Raises SteperError; its subclass OwedError where more than `build.max_failed` of the questions are owed, and
    NothingKeptError where the filters refused every trajectory.
    """
    from steper_ray.data.build import build_data

    connect(config.run_dir)
    config.save(config.run_dir / "data")
    report = build_data(config)
    if report.trajectories and not report.kept:
        refused = ", ".join(f"{reason} {count}" for reason, count in report.dropped.items())
        raise NothingKeptError(
            f"{report.folder}: none of {report.trajectories} trajectories is kept ({refused}), so there is nothing to "
            f"train on. Read some with `steper inspect {config.run_dir} --show 3`, then change the teacher, its prompt "
            "(reasoning.demonstrations) or the filters (build.match, build.verify)",
            report.summary(),
        )
    return report


def train(config: Config, *, replace: bool = False) -> TrainResult:
    """Kept trajectories -> one student in run_dir/models/NAME, a Hugging Face folder (`train.name`).

    Continues from its last checkpoint. Raises SteperError; also where that folder holds another training's student,
    unless it may `replace` it.
    """
    from steper_ray.frameworks import framework_of
    from steper_ray.training.job import make_task, refuse_other
    from steper_ray.training.trainer import TrainJob
    from steper_ray.training.trainer import train as run

    kept, trajectories = config.run_dir / "data" / "kept", trajectories_folder(config)
    if not kept.exists():
        raise DataError(
            f"{kept}: no kept trajectories here: run the build stage with the same run_dir first (or again, "
            "where an earlier version built: finished shards are kept)"
        )
    framework_of(config.reasoning.framework)  # its layout is then known to the tokens' writer
    folder, prompt = model_folder(config), config.reasoning.prompt
    job = TrainJob(training_name(config), config.train, trajectories, folder, prompt, rollouts(config))
    make_form(config)
    if not replace:
        refuse_other(make_task(job, config.run_dir))
    connect(config.run_dir)
    return run([job], run_dir=config.run_dir, judge=judge(config))[0]


def rollouts(config: Config) -> Rollouts | None:
    """The settings of a student's own rollouts in `train.method=on_policy`; None otherwise. Raises SteperError."""
    if config.train.method != "on_policy":
        return None
    from steper_ray.rollouts.sampler import student_rollouts

    return student_rollouts(config, *_index(config))


def judge(config: Config) -> Judge | None:
    """The judge that asks a student questions while it learns, where `train.validation` wants any."""
    if not config.train.validation.questions:
        return None
    from steper_ray.evaluation.watch import question_judge

    return question_judge(config)


def train_memory(config: Config) -> None:
    """Tells on stderr how much memory a worker of the training is estimated to need."""
    from steper_ray.models import resolve_model
    from steper_ray.training.fit import print_estimates

    print_estimates([(resolve_model(config.train.student), config.train)])


def evaluate(config: Config, models: Sequence[str] = ()) -> dict[str, dict[str, EvalScores]]:
    """Scores of models in every unit of `evaluate.units`, by name and unit; by default those of `engine.model`.

    A model is NAME=PATH, or a folder or hub name alone, whose last part is then its name. Raises SteperError; also
    where run_dir/eval has the scores of another model by that name.
    """
    from steper_ray.evaluation.pipeline import EvalJob
    from steper_ray.evaluation.pipeline import evaluate as run
    from steper_ray.evaluation.store import refuse_other

    jobs = [EvalJob(*named_model(model), unit) for model in models or [config.engine.model]
            for unit in config.evaluate.units]  # fmt: skip
    refuse_other(config.run_dir, jobs)
    connect(config.run_dir)
    return run(config, jobs)


def predict(config: Config, model: str | None = None) -> Predictions:
    """Answers to the test set's questions, which need no gold answers, as files in run_dir/predictions.

    `model` is NAME=PATH, a folder or a hub name; by default `engine.model`. Raises SteperError.
    """
    from steper_ray.evaluation.pipeline import EvalJob
    from steper_ray.evaluation.pipeline import predict as run
    from steper_ray.evaluation.store import refuse_other

    job = EvalJob(*named_model(model or config.engine.model), config.reasoning.unit)
    refuse_other(config.run_dir, [job])
    connect(config.run_dir)
    return run(config, job)


def named_model(text: str) -> tuple[str, str]:
    """NAME=PATH -> name and path; a path alone is named by its last part. Raises SteperError."""
    name, equals, path = text.partition("=")
    if not equals:
        return Path(text).name, text
    if not name or not path:
        raise SteperError(f"--model {text}: give NAME=PATH, or a path alone")
    return name, path


def report(run_dir: Path) -> str:
    """Writes report.html from run_dir/results.json, or from the logs of its trainings where there is none; returns
    the table and the path of sigma for a terminal."""
    from steper_ray.evaluation.report import format_comparisons, format_sigma, format_table, write_report
    from steper_ray.evaluation.results import load_results

    results = load_results(run_dir) or _trainings(run_dir)
    write_report(results, run_dir)
    parts = (format_table(results), format_comparisons(results.comparisons), format_sigma(results))
    return "\n".join(text for text in parts if text)


def compare(run_dir: Path, one: str, other: str, show: int = 0) -> str:
    """Two evaluations of a run, by name, as text: differences with intervals and p values, and `show` questions where
    they part. Names with commas between are training seeds. Raises DataError."""
    from steper_ray.evaluation.report import format_comparisons
    from steper_ray.evaluation.side_by_side import compare_evaluations
    from steper_ray.evaluation.statistics import holm

    found = compare_evaluations(run_dir, one, other, show)
    rows = holm([row for unit in found for row in unit.comparisons])
    return "\n".join([format_comparisons(rows), *(unit.summary(one, other) for unit in found)])


def judge_chains(config: Config, names: Sequence[str], *, planted: bool = False) -> str:
    """Two evaluations of a run, by name, rated by the model of `evaluate.judge`, as text; or with `planted` how well it
    sees the faults that are planted in the right chains of one. Raises SteperError."""
    from steper_ray.evaluation.judging import find_planted, judge_evaluations

    if len(names) != (1 if planted else 2):
        raise SteperError(
            "name two evaluations to judge, or one with --planted; `steper evaluate` names them"
        )
    if planted:
        return "\n".join(f"{unit}: {found.summary()}" for unit, found in find_planted(config, names[0]))
    return "\n".join(judged.summary(*names) for judged in judge_evaluations(config, *names))


def _trainings(run_dir: Path) -> Results:
    """The results document of a run that was trained and not compared."""
    from steper_ray.evaluation.results import assemble_results, read_metrics

    logs = sorted((run_dir / "training").glob("*/metrics.jsonl"))
    if not logs:
        raise DataError(
            f"{run_dir}: neither results nor a training here: run `steper demo` or `steper train` first"
        )
    trainings = [read_metrics(log, log.parent.name, 0) for log in logs]
    return assemble_results(
        {}, {}, trainings=trainings, provenance={"title": f"Training, {run_dir.resolve().name}"}
    )
