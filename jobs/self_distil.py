"""A student's own right trajectories -> the next student, `self_distil.rounds` times, with no teacher.

Run as: ray job submit --working-dir . -- python jobs/self_distil.py --config FILE run_dir=/shared/run1
Overrides follow (`run_dir=/shared/run1 self_distil.student=/shared/run1/models/vanilla_kd`); `--dry-run` prints the
resolved config. A job that was stopped continues when it is submitted again. `run_dir` must be a folder
that all nodes see.
"""

from steper_ray.cli.main import run_job, self_distil

if __name__ == "__main__":
    run_job(self_distil)
