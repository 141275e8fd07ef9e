"""A larger model for the doubted steps: right answers against the share of tokens that it writes.

A student of a config's test set is asked alone, then with `reasoning.escalate` at each threshold, and the larger model
alone. Shares are of the tokens that both wrote.

    python benchmarks/escalation.py STUDENT --json PATH [--larger MODEL] [--below 0.3,0.5,0.7] [SECTION.FIELD=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from steper_ray.cluster import connect
from steper_ray.config import EscalateConfig
from steper_ray.config.file import load_config
from steper_ray.evaluation.pipeline import EvalJob, evaluate, format_scores
from steper_ray.rollouts.spec import at_fixed_steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("student")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/miniature.yaml"))
    parser.add_argument("--run-dir", type=Path, default=Path("runs/escalation"))
    parser.add_argument("--larger", default="miniature:teacher")
    parser.add_argument("--below", default="0.3,0.5,0.7,0.9,0.97")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    config = at_fixed_steps(load_config(args.config, [*args.overrides, f"run_dir={args.run_dir}"]))
    connect(config.run_dir)
    larger = config.engine.model_copy(update={"model": args.larger})
    jobs = [EvalJob("alone", args.student, unit) for unit in config.evaluate.units]
    jobs += [EvalJob("larger", args.larger, unit) for unit in config.evaluate.units]
    for below in map(float, args.below.split(",")):
        own = (("escalate", EscalateConfig(engine=larger, below=below)),)
        jobs += [EvalJob(f"below-{below:g}", args.student, unit, own) for unit in config.evaluate.units]
    scores = evaluate(config, jobs)
    print(format_scores(scores))
    if args.json is not None:
        figures = {
            name: {
                unit: {"em": one.em, "share": one.larger_tokens / one.completion_tokens, "n": one.n}
                for unit, one in units.items()
            }
            for name, units in scores.items()
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
