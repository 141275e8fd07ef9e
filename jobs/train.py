"""Kept trajectories -> one student, by Ray Train and DeepSpeed ZeRO-3.

Run as: ray job submit --working-dir . -- python jobs/train.py --config FILE run_dir=/shared/run1
Overrides follow (`run_dir=/shared/run1 train.workers=8`); `--dry-run` prints the resolved config. A job that was
stopped continues when it is submitted again. `run_dir` must be a folder that all nodes see.
"""

from steper_ray.cli.main import run_job, train

if __name__ == "__main__":
    run_job(train)
