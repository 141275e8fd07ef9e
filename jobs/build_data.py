"""Questions and passages -> teacher trajectories -> those that are kept, on Ray Data.

Run as: ray job submit --working-dir . -- python jobs/build_data.py --config FILE run_dir=/shared/run1
Overrides follow (`run_dir=/shared/run1 build.engines=8`); `--dry-run` prints the resolved config. A job that was
stopped continues when it is submitted again. `run_dir` must be a folder that all nodes see.
"""

from steper_ray.cli.main import build, run_job

if __name__ == "__main__":
    run_job(build)
