"""Ways to distil, side by side: students of the same questions, steps and seeds, asked the same held-out questions.

    steper               StepER: cross-entropy on the teacher's chains
    steper_soft          half of it a forward KL divergence to the teacher's distributions (train.soft_targets)
    steper_stored        the same by what the build's teacher said at its own words (build.logits=8)
    on_policy            the teacher's distributions over the student's own chains, from the base
    steper_twice         StepER, and as many steps of StepER again: the baseline of those below
    steper_on_policy     StepER, then as many steps on-policy, by the reverse KL divergence (beta 1)
    steper_forward       the same by the forward one (beta 0)
    steper_reward        the same, with reward where the answer is right (train.on_policy.reward=exact)
    steper_self          the same, with itself as teacher, which sees the build's right chain

The teacher is the config's engine.model. Scored on the config's test set in every unit, and compared question by
question (clusters of questions, permutation test, Holm) with steper; those of two stages with steper_twice.

    python benchmarks/distillation.py --json PATH [--run-dir FOLDER] [--students NAME,...] [SECTION.FIELD=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steper_ray import stages
from steper_ray.cluster import connect
from steper_ray.config import BUILD, Config, TrainConfig
from steper_ray.config.file import load_config
from steper_ray.evaluation.pipeline import EvalJob, evaluate, format_scores
from steper_ray.evaluation.report import format_comparisons
from steper_ray.evaluation.side_by_side import compare_evaluations
from steper_ray.evaluation.statistics import Comparison, holm
from steper_ray.rollouts.spec import at_fixed_steps
from steper_ray.training.trainer import TrainJob, train

#: The settings of each student, with `teacher` to fill in; those of SECOND start from StepER's of the same seed.
FIRST: dict[str, dict[str, Any]] = {
    "steper": {},
    "steper_soft": {"soft_targets": {"share": 0.5, "beta": 0}},
    "steper_stored": {"soft_targets": {"teacher": BUILD, "share": 0.5, "beta": 0}},
    "on_policy": {"method": "on_policy", "soft_targets": {"beta": 1}},
}
SECOND: dict[str, dict[str, Any]] = {
    "steper_twice": {},
    "steper_on_policy": {"method": "on_policy", "soft_targets": {"beta": 1}},
    "steper_forward": {"method": "on_policy", "soft_targets": {"beta": 0}},
    "steper_self": {
        "method": "on_policy",
        "soft_targets": {"teacher": "self", "privileged": True, "beta": 1},
    },
    "steper_reward": {"method": "on_policy", "soft_targets": {"beta": 1}, "on_policy": {"reward": "exact"}},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="settings, such as train.epochs=3")
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/miniature.yaml"))
    parser.add_argument("--run-dir", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--students", default=",".join([*FIRST, *SECOND]))
    parser.add_argument(
        "--on-policy-lr", type=float, help="learning rate of what is on-policy; by default train.lr"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    logits = ["build.logits=8"] if "steper_stored" in args.students else []
    overrides = [*logits, *args.overrides, f"run_dir={args.run_dir}"]
    config = at_fixed_steps(load_config(args.config, overrides))
    stages.build(config)
    connect(config.run_dir)
    names, seeds = args.students.split(","), [int(seed) for seed in args.seeds.split(",")]
    first = [
        job(config, name, FIRST[name], seed, args.on_policy_lr)
        for name in FIRST
        if name in names
        for seed in seeds
    ]
    second = [
        job(config, name, SECOND[name], seed, args.on_policy_lr, model_of(config, "steper", seed))
        for name in SECOND
        if name in names
        for seed in seeds
    ]
    trained = [result for jobs in (first, second) if jobs for result in train(jobs, run_dir=config.run_dir)]
    asked = [EvalJob(one.name, str(one.model_dir), unit) for one in trained for unit in config.evaluate.units]
    scores = evaluate(config, asked)
    print(format_scores(scores))
    found = holm([row for name in names for row in against_baseline(config, name, names, seeds)])
    print(format_comparisons(found))
    if args.json is not None:
        units = config.evaluate.units
        em = {
            name: {unit: [scores[f"{name}-seed{seed}"][unit].em for seed in seeds] for unit in units}
            for name in names
        }
        figures = {"em": em, "comparisons": [asdict(row) for row in found]}
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def job(
    config: Config,
    name: str,
    own: dict[str, Any],
    seed: int,
    on_policy_lr: float | None,
    student: Path | None = None,
) -> TrainJob:
    settings = config.train.model_dump() | {"method": "steper", **own, "seed": seed}
    if "soft_targets" in own:
        settings["soft_targets"] = {"teacher": config.engine.model, **own["soft_targets"]}
    if settings["method"] == "on_policy" and on_policy_lr is not None:
        settings["lr"] = on_policy_lr
    if student is not None:
        settings["student"] = str(student)
    train_config = TrainConfig.model_validate(settings)
    return TrainJob(
        f"{name}-seed{seed}",
        train_config,
        stages.trajectories_folder(config),
        model_of(config, name, seed),
        config.reasoning.prompt,
        stages.rollouts(config.model_copy(update={"train": train_config})),
    )


def model_of(config: Config, name: str, seed: int) -> Path:
    return config.run_dir / "models" / f"{name}-seed{seed}"


def against_baseline(config: Config, name: str, names: list[str], seeds: list[int]) -> list[Comparison]:
    baseline = "steper_twice" if name in SECOND else "steper"
    if name == baseline or baseline not in names:
        return []
    sides = [",".join(f"{one}-seed{seed}" for seed in seeds) for one in (name, baseline)]
    return [row for unit in compare_evaluations(config.run_dir, *sides) for row in unit.comparisons]


if __name__ == "__main__":
    main()
