"""Scores of one or more models (`--model FOLDER`, may be repeated) over the test set of the config.

Run as: ray job submit --working-dir . -- python jobs/evaluate.py --config FILE run_dir=/shared/run1
Overrides follow (`run_dir=/shared/run1 evaluate.engines=8`); `--dry-run` prints the resolved config. A job that was
stopped continues when it is submitted again. `run_dir` must be a folder that all nodes see.
"""

from steper_ray.cli.main import evaluate, run_job

if __name__ == "__main__":
    run_job(evaluate)
