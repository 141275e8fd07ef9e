"""The whole path in one call: trajectories, students by vanilla-KD and StepER from one base, scores, report.

- Vanilla-KD is trained at StepER's epochs (the same questions, fewer examples, so fewer optimiser steps) and at its
  optimiser steps (the same number of equally large steps, so more epochs).
- All models are scored on the same questions with each step unit; the last student is compared with every other one.
- A teacher that is a model is scored too; chains from annotations have none.
- A rerun continues where it stopped.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steper_ray import stages
from steper_ray.config import Config, TrainConfig
from steper_ray.core.errors import SteperError

if TYPE_CHECKING:
    from steper_ray.evaluation.results import Results
    from steper_ray.evaluation.statistics import Comparison
    from steper_ray.evaluation.store import Answers

_PACKAGES = ("steper-ray", "ray", "torch", "transformers", "deepspeed")


def run_demo(config: Config) -> Results:
    """Runs everything that is missing under `config.run_dir`; writes results.json and report.html there."""
    from steper_ray.evaluation.pipeline import EvalJob, evaluate
    from steper_ray.evaluation.report import write_report
    from steper_ray.evaluation.results import assemble_results, read_metrics, save_results
    from steper_ray.evaluation.store import pick_samples
    from steper_ray.rollouts.spec import at_fixed_steps
    from steper_ray.training.trainer import train

    if config.train.form != "chain":
        raise SteperError(
            f"train.form={config.train.form}: the demo compares ways to learn chains: leave it out"
        )
    started = time.monotonic()
    config = at_fixed_steps(config)  # as in the paper: students are compared, not ways to stop
    config.save(config.run_dir)
    built = stages.build(config)
    jobs = student_jobs(config)
    trained = train(list(jobs.values()), run_dir=config.run_dir, judge=stages.judge(config))
    models: dict[str, str] = {"base": config.train.student, **{r.name: str(r.model_dir) for r in trained}}
    students = config.demo.students
    groups: dict[str, list[str]] = {
        "base": ["base"],
        **{student: [_name(student, seed) for seed in _seeds(config, student)] for student in students},
    }
    if config.build.teacher == "engine":
        models["teacher"], groups["teacher"] = config.engine.model, ["teacher"]
    shown = (("few_shot", True),) if config.demo.few_shot_base else ()
    evaluations = evaluate(
        config,
        [
            EvalJob(name, model, unit, reasoning=shown if name == "base" else ())
            for name, model in models.items()
            for unit in config.evaluate.units
        ],
    )
    logs = [
        read_metrics(result.metrics_path, result.name.rpartition("-seed")[0], jobs[result.name].config.seed)
        for result in trained
    ]
    results = assemble_results(
        evaluations,
        groups,
        trainings=logs,
        samples=pick_samples(
            config.run_dir,
            {student: groups[student][0] for student in dict.fromkeys((students[0], students[-1]))},
            config.evaluate.units,
        ),
        comparisons=_comparisons(config, groups),
        data=json.loads((built.folder / "manifest.json").read_text(encoding="utf-8")),
        config=json.loads(config.model_dump_json()),
        provenance=_provenance(time.monotonic() - started),
    )
    save_results(config.run_dir, results)
    write_report(results, config.run_dir)
    return results


def student_folder(config: Config) -> Path:
    """The last student of the first seed: the one to serve."""
    return config.run_dir / "models" / _name(config.demo.students[-1], config.demo.seeds[0])


def _comparisons(config: Config, groups: Mapping[str, Sequence[str]]) -> list[Comparison]:
    """The last student with every other model, in each unit by EM and F1."""
    from steper_ray.evaluation.statistics import compare, holm
    from steper_ray.evaluation.store import clusters_among, read_answers

    answers: dict[tuple[str, str], list[Answers]] = {
        (model, unit): [read_answers(config.run_dir, name, unit) for name in names]
        for model, names in groups.items()
        for unit in config.evaluate.units
    }
    clusters = clusters_among(one for seeds in answers.values() for one in seeds)

    def by_question(model: str, unit: str, metric: str) -> list[dict[str, float]]:
        return [seed.metric(metric) for seed in answers[model, unit]]

    mine = config.demo.students[-1]
    return holm(
        [
            compare(
                mine,
                other,
                unit,
                metric,
                by_question(mine, unit, metric),
                by_question(other, unit, metric),
                clusters,
            )
            for unit in config.evaluate.units
            for other in groups
            if other != mine
            for metric in ("em", "f1")
        ]
    )


def student_jobs(config: Config) -> dict[str, Any]:
    """One training job a student and seed, by name."""
    from steper_ray.training.trainer import TrainJob

    trajectories = stages.trajectories_folder(config)
    steps = _steps(config)
    jobs = {}
    for student in config.demo.students:
        for seed in _seeds(config, student):
            name = _name(student, seed)
            settings = _settings(config.train, student, seed, steps)
            folder, prompt = config.run_dir / "models" / name, config.reasoning.prompt
            jobs[name] = TrainJob(name, settings, trajectories, folder, prompt)
    return jobs


def _steps(config: Config) -> int:
    """The optimiser steps that StepER takes on the data, from the token files that the workers read too."""
    from steper_ray.models import context_limit, resolve_model
    from steper_ray.pretrained import load_shape
    from steper_ray.training.data import load_data
    from steper_ray.training.tokenising import tokenise

    model = resolve_model(config.train.student)
    shape = load_shape(model, config.train.trust_remote_code).get_text_config()
    limit = context_limit(shape) or config.train.row_tokens
    steper = config.train.model_copy(update={"method": "steper"})
    data = load_data(tokenise(stages.trajectories_folder(config), model, config.run_dir), steper, limit)
    return steper.max_steps or steper.epochs * data.steps_per_epoch


def _settings(train: TrainConfig, student: str, seed: int, steps: int) -> TrainConfig:
    if student.startswith("steper"):
        weighting = "uniform" if student == "steper_uniform" else train.weighting
        return train.model_copy(update={"method": "steper", "weighting": weighting, "seed": seed})
    limit = steps if student == "vanilla_kd_equal_steps" else train.max_steps
    return train.model_copy(update={"method": "vanilla_kd", "steps": "all", "seed": seed, "max_steps": limit})


def _seeds(config: Config, student: str) -> Sequence[int]:
    own = config.demo.equal_steps_seeds if student == "vanilla_kd_equal_steps" else None
    return config.demo.seeds if own is None else own


def _name(student: str, seed: int) -> str:
    return f"{student}-seed{seed}"


def _provenance(seconds: float) -> dict[str, Any]:
    return {
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "seconds": round(seconds),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in _PACKAGES},
    }
