"""Jobs of trainings for the tests: their tasks, and the folder of a finished one. No Ray, no model."""

import json

from steper_ray.config import TrainConfig
from steper_ray.core.sums import PROVENANCE, write_sums
from steper_ray.training.job import TrainJob, make_task


def task_of(tmp_path, examples, **settings):
    job = TrainJob("student", TrainConfig(**settings), examples, tmp_path / "models" / "student")
    return make_task(job, tmp_path)


def export_of(task, **record):
    task.job.output.mkdir(parents=True)
    (task.job.output / PROVENANCE).write_text(
        json.dumps({"fingerprint": task.fingerprint, "steps": 7} | record)
    )
    write_sums(task.job.output)
