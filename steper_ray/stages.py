"""The stages of a run as functions of a config: what the command line, jobs/ and the demo all call.

Each stage reads what the one before left under `run_dir` and writes below it: index/, data/, models/, eval/,
report.html. Heavy imports wait inside the functions, so that `--dry-run` and `--help` answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steper_ray.config import Config
from steper_ray.errors import DataError

if TYPE_CHECKING:
    from steper_ray.distillation.report import BuildReport
    from steper_ray.evaluation.scores import EvalScores
    from steper_ray.training.trainer import TrainResult
    from steper_ray.training.watch import Judge


def trajectories_folder(config: Config) -> Path:
    """The kept trajectories of the build: what training reads."""
    return config.run_dir / "data" / "kept"


def model_folder(config: Config) -> Path:
    return config.run_dir / "models" / config.train.method


def index(config: Config) -> Path:
    """Builds the index of the corpus where it is missing; returns its folder."""
    from steper_ray.corpora import open_corpus
    from steper_ray.retrieval import ensure_index, index_folder

    corpus = open_corpus(config.corpus)
    fingerprint = corpus.fingerprint()
    folder = index_folder(config.retrieval, config.run_dir, fingerprint)
    ensure_index(corpus.passages(), config.retrieval, folder, fingerprint)
    return folder


def long_passages(config: Config, folder: Path) -> str:
    """A line on the passages of an index that are longer than a prompt takes; empty where there are none."""
    from steper_ray.retrieval import long_passages as count

    found = count(folder, config.reasoning.max_passage_chars)
    return found.summary(config.reasoning.long_passages) if found else ""


def build(config: Config) -> BuildReport:
    """Questions and passages -> kept trajectories. Continues where an earlier run stopped."""
    from steper_ray.distillation.build import build_data

    config.save(config.run_dir / "data")
    return build_data(config)


def train(config: Config) -> TrainResult:
    """Kept trajectories -> one student, exported under run_dir/models/<method>."""
    from steper_ray.training.trainer import TrainJob
    from steper_ray.training.trainer import train as run

    trajectories = trajectories_folder(config)
    if not trajectories.exists():
        raise DataError(
            f"{trajectories}: no kept trajectories here: run the build stage with the same run_dir first (or again, "
            "where an earlier version built: finished shards are kept)"
        )
    job = TrainJob(config.train.method, config.train, trajectories, model_folder(config))
    return run([job], run_dir=config.run_dir, judge=judge(config))[0]


def judge(config: Config) -> Judge | None:
    """What asks a student questions while it learns, where `train.validation` wants any."""
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
    """Scores of models (folders or names; by default the engine's) in every unit of the config."""
    from steper_ray.evaluation.pipeline import EvalJob
    from steper_ray.evaluation.pipeline import evaluate as run

    names = models or [config.engine.model]
    jobs = [EvalJob(Path(name).name, name, unit) for name in names for unit in config.evaluate.units]
    return run(config, jobs)


def report(run_dir: Path) -> str:
    """Writes report.html from run_dir/results.json, or from the logs of its trainings where there is none; returns
    the table and the path of sigma for a terminal."""
    from steper_ray.evaluation.report import format_sigma, format_table, write_report
    from steper_ray.evaluation.results import load_results

    results = load_results(run_dir) or _trainings(run_dir)
    write_report(results, run_dir)
    return "\n".join(text for text in (format_table(results), format_sigma(results)) if text)


def _trainings(run_dir: Path) -> dict[str, Any]:
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
