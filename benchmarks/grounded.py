"""Compares evaluations of the same questions by exact match and by the share of grounded steps, question by question.

python benchmarks/grounded.py RUN_DIR:NAME-UNIT RUN_DIR:NAME-UNIT ...

Prints the means with 95 % intervals over clusters of questions, and the first less each of the others.
"""

from __future__ import annotations

import sys
from pathlib import Path

from steper_ray.evaluation.scores import grounded_share, judge
from steper_ray.evaluation.statistics import clusters_of, compare, interval
from steper_ray.evaluation.store import EvalJob, job_files, read_trajectories


def main(evaluations: list[str]) -> None:
    first: dict[str, dict[str, float]] = {}
    for named in evaluations:
        run_dir, _, evaluation = named.rpartition(":")
        name, _, unit = evaluation.rpartition("-")
        found = list(read_trajectories(job_files(Path(run_dir), EvalJob(name, "", unit))))
        shares = {t.question.id: share for t in found if (share := grounded_share(t)) is not None}
        values = {"EM": {t.question.id: judge(t).em for t in found}, "grounded": shares}
        clusters = clusters_of({t.question.id: t.question.gold_ids for t in found})
        for metric, ours in values.items():
            mean = interval([ours], clusters)
            print(f"{named}  {metric} {_points(mean.mean, mean.low, mean.high)}  n {mean.n}")
            if metric in first:
                both = first[metric].keys() & ours.keys()
                sides = [{id: side[id] for id in both} for side in (first[metric], ours)]
                one = compare("first", named, unit, metric, [sides[0]], [sides[1]], clusters)
                print(f"  first less this: {_points(one.difference, one.low, one.high)}  p {one.p:.3f}")
            else:
                first[metric] = ours


def _points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
