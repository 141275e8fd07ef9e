"""Tables and figures of the StepER paper, beside its values, in RUN_DIR/paper.

Run as: ray job submit --working-dir . -- python jobs/paper.py table2 --scale full run_dir=/shared/paper
Experiments are named first, or `all`; overrides follow; `--dry-run` prints the plan, GPU hours and disk. A job that was
stopped continues when it is submitted again. `run_dir` must be a folder that all nodes see.
"""

from steper_ray.cli.main import run_job
from steper_ray.cli.results import paper

if __name__ == "__main__":
    run_job(paper)
