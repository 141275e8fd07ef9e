"""Soft targets against none: students of the same chains, steps and seeds, with a teacher's distributions and without.

StepER's students of a config, of `--seeds`; the teacher that gives the distributions is the config's engine.model, or
`--teacher`. Scored on the config's test set in both units, and compared question by question (clusters of questions,
permutation test). A run_dir that `steper demo` filled has the students without already.

    python benchmarks/soft_targets.py --json PATH [--run-dir FOLDER] [--beta 0] [SECTION.FIELD=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from steper_ray import stages
from steper_ray.cluster import connect
from steper_ray.config import SoftTargetsConfig
from steper_ray.config.file import load_config
from steper_ray.evaluation.pipeline import EvalJob, evaluate, format_scores
from steper_ray.evaluation.report import format_comparisons
from steper_ray.evaluation.side_by_side import compare_evaluations
from steper_ray.evaluation.statistics import holm
from steper_ray.rollouts.spec import at_fixed_steps
from steper_ray.training.trainer import TrainJob, train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="settings, such as train.epochs=3")
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/miniature.yaml"))
    parser.add_argument("--run-dir", type=Path, default=Path("runs/soft_targets"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--teacher", help="by default engine.model")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    config = at_fixed_steps(load_config(args.config, [*args.overrides, f"run_dir={args.run_dir}"]))
    stages.build(config)
    connect(config.run_dir)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    targets = SoftTargetsConfig(teacher=args.teacher or config.engine.model, share=args.share, beta=args.beta)
    soft = f"soft_{args.share:g}_{args.beta:g}"
    settings = {"steper": {}, soft: {"soft_targets": targets}}
    jobs = [
        TrainJob(
            f"{name}-seed{seed}",
            config.train.model_copy(update={"method": "steper", **own, "seed": seed}),
            stages.trajectories_folder(config),
            config.run_dir / "models" / f"{name}-seed{seed}",
            config.reasoning.prompt,
        )
        for name, own in settings.items()
        for seed in seeds
    ]
    trained = train(jobs, run_dir=config.run_dir)
    evaluations = [
        EvalJob(result.name, str(result.model_dir), unit)
        for result in trained
        for unit in config.evaluate.units
    ]
    scores = evaluate(config, evaluations)
    print(format_scores(scores))
    sides = [",".join(f"{name}-seed{seed}" for seed in seeds) for name in (soft, "steper")]
    found = holm([row for unit in compare_evaluations(config.run_dir, *sides) for row in unit.comparisons])
    print(format_comparisons(found))
    if args.json is not None:
        figures = {
            "em": {
                name: {
                    unit: [scores[f"{name}-seed{seed}"][unit].em for seed in seeds]
                    for unit in config.evaluate.units
                }
                for name in settings
            },
            "comparisons": [asdict(row) for row in found],
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
