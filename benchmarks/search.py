"""Search over steps: right answers and tokens a question, greedy and with each way to choose among candidates.

python benchmarks/search.py MODEL --json PATH [--candidates 4] [SECTION.FIELD=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from steper_ray.cluster import connect
from steper_ray.config import SearchConfig
from steper_ray.config.file import load_config
from steper_ray.evaluation.pipeline import EvalJob, evaluate, format_scores
from steper_ray.evaluation.statistics import compare
from steper_ray.evaluation.store import clusters_among, read_answers
from steper_ray.rollouts.spec import at_fixed_steps

#: Each way's name, and its settings beside the number of candidates.
WAYS = {
    "logprob": {"score": "logprob"},
    "grounding": {"score": "grounding"},
    "agreement": {"score": "agreement"},
    "beams": {"score": "logprob", "beams": 2},
    "beams-grounding": {"score": "grounding", "beams": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/miniature.yaml"))
    parser.add_argument("--run-dir", type=Path, default=Path("runs/search"))
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    config = at_fixed_steps(load_config(args.config, [*args.overrides, f"run_dir={args.run_dir}"]))
    connect(config.run_dir)
    jobs = [EvalJob("greedy", args.model, unit) for unit in config.evaluate.units]
    for way, settings in WAYS.items():
        own = (("search", SearchConfig(candidates=args.candidates, **settings)),)
        jobs += [EvalJob(way, args.model, unit, own) for unit in config.evaluate.units]
    scores = evaluate(config, jobs)
    print(format_scores(scores))
    figures: dict[str, dict] = {}
    for name, units in scores.items():
        for unit, one in units.items():
            both = [read_answers(config.run_dir, way, unit) for way in (name, "greedy")]
            said = compare(
                name, "greedy", unit, "em", *([a.metric("em")] for a in both), clusters_among(both)
            )
            figures.setdefault(name, {})[unit] = {
                "em": one.em, "n": one.n, "tokens": one.completion_tokens, "recall": one.recall,
                "less_greedy": said.difference, "low": said.low, "high": said.high, "p": said.p,
            }  # fmt: skip
            print(name, unit, figures[name][unit], flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
