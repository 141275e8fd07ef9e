"""What verified data does to a student: the miniature's StepER student, learned from versions of one data set.

clean        the miniature teacher's right trajectories
answers      of a third of them a step is made wrong under the right answer (as in bench_verification.py), which the
             answer filter does not see
verified     the same, with a threshold for grounding and support
confident    the same, with one for the teacher's confidence, too: no engine wrote a step made wrong, so its
             confidence is that of the teacher in the words put into its mouth

python benchmarks/verified_data.py [--seeds 0,1] [--versions clean,answers]      # five minutes a version on two cores
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")

from bench_verification import CONFIDENT, PURE, Spoken
from planted import KINDS, planted

from steper_ray import stages
from steper_ray.cluster import connect
from steper_ray.config import Config
from steper_ray.config.file import load_config
from steper_ray.data.assemble import assemble
from steper_ray.data.build import _spec, _teachers
from steper_ray.data.inspection import KEPT, DataSet
from steper_ray.evaluation.pipeline import EvalJob, evaluate
from steper_ray.rollouts.questions import write_questions
from steper_ray.rollouts.set import RolloutSet
from steper_ray.schema import Trajectory
from steper_ray.training.trainer import TrainJob, train

SPOILED = 1 / 3
#: Each version's thresholds.
VERSIONS: dict[str, dict[str, float]] = {
    "clean": {},
    "answers": {},
    "verified": PURE,
    "confident": PURE | CONFIDENT,
}
# Shorter than the demo's: there are four versions of the data to learn from, each with every seed.
TRAINING = (
    "train.epochs=1",
    "train.batch_examples=40",
    "train.sigma_lr=0.02",
    "train.log_sigma_bounds=[-1.5,1.5]",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--versions", default=",".join(VERSIONS))
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    versions = {name: VERSIONS[name] for name in args.versions.split(",")}
    connect()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # Other test worlds than the demo's, on which nothing was chosen.
        config = load_config(
            "jobs/configs/miniature.yaml",
            [f"run_dir={root / 'teacher'}", "evaluate.corpus.miniature.seed=11", *TRAINING],
        )
        stages.build(config)
        right = [seen.trajectory for seen in DataSet(config.run_dir) if seen.fate == KEPT]
        rng, spoken = Random(0), Spoken()
        spoiled = [
            spoken(planted(t, rng.choice(KINDS), rng)) if len(t.steps) > 1 and rng.random() < SPOILED else t
            for t in right
        ]
        n_spoiled = sum(a is not b for a, b in zip(right, spoiled, strict=True))
        print(f"{len(right)} trajectories, {n_spoiled} of them spoiled", flush=True)
        jobs = []
        for version, least in versions.items():
            run_dir = assembled(root / version, config, right if version == "clean" else spoiled, least)
            jobs += [
                TrainJob(
                    f"{version}-{seed}",
                    config.train.model_copy(update={"seed": seed}),
                    run_dir / "data" / "kept",
                    root / "models" / f"{version}-{seed}",
                )
                for seed in seeds
            ]
        trained = train(jobs, run_dir=root)
        models = {result.name: str(result.model_dir) for result in trained}
        units = config.evaluate.units
        found = evaluate(
            config, [EvalJob(name, model, unit) for name, model in models.items() for unit in units]
        )
        for version in versions:
            ems = {unit: [100 * found[f"{version}-{seed}"][unit].em for seed in seeds] for unit in units}
            told = ", ".join(
                f"{unit} {statistics.mean(values):.1f} ({', '.join(f'{v:.0f}' for v in values)})"
                for unit, values in ems.items()
            )
            print(f"{version:9} EM: {told}", flush=True)


def assembled(
    run_dir: Path, config: Config, trajectories: Sequence[Trajectory], least: dict[str, float]
) -> Path:
    """A data set of these trajectories."""
    verify = config.build.verify.model_copy(update=least)
    build = config.build.model_copy(update={"verify": verify})
    own = config.model_copy(update={"run_dir": run_dir, "build": build})
    spec, _ = _spec(own, _teachers(own)[0], run_dir, "", [])
    found = RolloutSet(
        spec, write_questions(run_dir / "questions", [t.question for t in trajectories], build.shard_size)
    )
    made = {t.question.id: t for t in trajectories}
    for number, shard in enumerate(found.shards):
        spec.store.commit(shard, [made[question.id] for question in found.questions.read(number)])
    report = assemble(own, [found], run=len(found.shards), skipped=0)
    print(f"{run_dir.name:9} keeps {report.kept}, drops {report.dropped}", flush=True)
    return run_dir


if __name__ == "__main__":
    main()
