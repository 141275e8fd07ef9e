"""Students trained on Ray Train: all jobs one after another in one group of workers. The room's door to Ray.

Workers, imports and process groups start once for all jobs. A job that was exported is skipped, a killed worker
brings the group back to the last checkpoint of the job it was in, and an error that a user must mend is not
retried. Every worker must see the same examples, models and output folders (one machine, or shared storage).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    get_checkpoint,
    get_context,
    report,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from steper_ray.errors import SteperError, TrainingError
from steper_ray.training.job import Task, TrainJob, TrainResult, finished, make_task
from steper_ray.training.metrics import ProgressBars
from steper_ray.training.students import Students
from steper_ray.training.tracking import Tracking, check_trackers
from steper_ray.training.watch import Judge, Watcher

if TYPE_CHECKING:
    from steper_ray.training.engine import Worker
    from steper_ray.training.loop import Save

__all__ = ["TrainJob", "TrainResult", "train"]

_POSITION = "position.json"
_GROUP = ("workers", "use_gpu", "num_cpus", "max_failures")


def train(
    jobs: Sequence[TrainJob], *, run_dir: Path, progress: bool = True, judge: Judge | None = None
) -> list[TrainResult]:
    """Trains and exports every job that is not finished yet; returns the results in the order of `jobs`.

    `run_dir` takes metrics (training/<name>/metrics.jsonl) and checkpoints (training/ray). With `progress` a bar
    a job is drawn on stderr. `judge` asks a student the questions of `train.validation`, in a thread of this process;
    what it says goes to training/<name>/validation.jsonl. Raises TrainingError or ModelError; a call with the same
    jobs goes on where this one stopped.
    """
    run_dir = run_dir.resolve()
    tasks = [make_task(_absolute(job), run_dir) for job in jobs]
    _check(tasks)
    check_trackers(tasks)
    left = [task for task in tasks if finished(task) is None]
    for task in left:
        Students(task).tidy()
    with ExitStack() as beside:
        if left:
            beside.enter_context(Tracking(left))
        if progress and left:
            beside.enter_context(ProgressBars([(task.name, task.metrics) for task in left]))
        if watched := [task for task in tasks if task.job.config.validation.questions]:
            if judge is None:
                raise TrainingError("train.validation.questions: this call of train() was given no `judge`")
            beside.enter_context(Watcher(watched, judge))
        if left:
            _fit(tasks, run_dir)
    results = [finished(task) for task in tasks]
    for task, result in zip(tasks, results, strict=True):
        if result is None:
            raise TrainingError(f"job '{task.name}': training ended without an export in {task.job.output}")
    return [result for result in results if result is not None]


def _absolute(job: TrainJob) -> TrainJob:
    """Workers run in another folder than the caller."""
    config, validation = job.config, job.config.validation
    if validation.examples is not None:
        validation = validation.model_copy(update={"examples": validation.examples.resolve()})
        config = config.model_copy(update={"validation": validation})
    return TrainJob(job.name, config, job.examples.resolve(), job.output.resolve())


def _check(tasks: Sequence[Task]) -> None:
    if not tasks:
        raise TrainingError("no jobs to train")
    for what, given in (
        ("name", [task.name for task in tasks]),
        ("output", [str(task.job.output) for task in tasks]),
    ):
        if len(set(given)) < len(given):
            raise TrainingError(f"two jobs have the same {what}: {', '.join(given)}")
    for field in _GROUP:
        values = {getattr(task.job.config, field) for task in tasks}
        if len(values) > 1:
            raise TrainingError(
                f"train.{field} differs between jobs ({', '.join(map(str, sorted(values)))}): "
                "jobs that share a worker group need the same one"
            )


def _fit(tasks: Sequence[Task], run_dir: Path) -> None:
    config = tasks[0].job.config
    resources = {"CPU": config.num_cpus} | ({"GPU": 1.0} if config.use_gpu else {})
    # The same tasks have the same name, which is how Ray Train finds the checkpoints of a run that was cut off.
    digest = hashlib.sha256("\n".join(task.fingerprint for task in tasks).encode()).hexdigest()
    trainer = TorchTrainer(
        _run_worker,  # type: ignore[arg-type]  # Ray's stubs do not know that a worker may return a value
        train_loop_config={"tasks": list(tasks)},
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers, use_gpu=config.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=digest[:16],
            storage_path=str(run_dir / "training" / "ray"),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=max(task.job.config.keep_checkpoints for task in tasks)
            ),
        ),
    )
    try:
        outcome = trainer.fit().return_value  # type: ignore[attr-defined]  # the stubs are those of Train v1
    except TrainingFailedError as error:
        raise TrainingError(
            f"training failed and was not brought back by {config.max_failures} restarts: {error}. Run it again to "
            f"go on from the last checkpoint below {run_dir / 'training' / 'ray'}"
        ) from error
    if outcome is not None:
        raise TrainingError(outcome)


def _run_worker(config: dict[str, Any]) -> str | None:
    """One worker's whole life. Returns the message of an error that no retry can mend."""
    tasks: list[Task] = config["tasks"]
    settings = tasks[0].job.config
    if not settings.use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # before deepspeed is imported
    import torch
    import torch.distributed as dist
    from transformers.utils.logging import disable_progress_bar

    from steper_ray.training.engine import Worker
    from steper_ray.training.loop import Trainer

    disable_progress_bar()
    # From torch about DeepSpeed's calls of it, a few for every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    torch.set_num_threads(max(1, int(settings.num_cpus)))
    context = get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), get_device())
    if settings.use_gpu:
        torch.cuda.set_device(worker.device)
    # What this group was started from. Read once: later it would be a checkpoint of this group's own.
    checkpoint = get_checkpoint()
    for task in tasks:
        done = [finished(task) is not None]
        dist.broadcast_object_list(done)
        if done[0]:
            continue
        try:
            with _resume_folder(checkpoint, task, worker.size) as folder:
                trainer = Trainer(task, worker, folder)
            trainer.run(_saver(task, worker))
            trainer.close()
        except SteperError as error:
            return str(error)
    return None


@contextmanager
def _resume_folder(checkpoint: Checkpoint | None, task: Task, workers: int) -> Iterator[Path | None]:
    """The folder of the checkpoint if it is one of this task, whole and of as many workers."""
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        position = json.loads((Path(folder) / _POSITION).read_text(encoding="utf-8"))
        if position["fingerprint"] != task.fingerprint:
            yield None
        elif position["workers"] != workers:
            raise TrainingError(
                f"job '{task.name}': its checkpoint of step {position['step']} was written by "
                f"{position['workers']} workers, this run has {workers}: ZeRO's shards are bound to their number. "
                f"Set train.workers={position['workers']}, or delete {checkpoint.path} to start the job anew"
            )
        else:
            yield Path(folder)


def _saver(task: Task, worker: Worker) -> Save:
    """Every worker writes its shard into a folder of its own; Ray Train merges and stores them in the background."""

    def save(write_shard: Callable[[Path], None], step: int) -> None:
        folder = Path(tempfile.mkdtemp(prefix="steper-checkpoint-"))
        write_shard(folder)
        if worker.rank == 0:
            position = {"fingerprint": task.fingerprint, "workers": worker.size, "step": step}
            (folder / _POSITION).write_text(json.dumps(position), encoding="utf-8")
        report(
            {"job": task.name, "step": step},
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    return save
