"""Students trained on Ray Train: all jobs one after another in one group of workers. The room's door to Ray.

Workers, imports and process groups start once for all jobs. A job that was exported is skipped, a killed worker
brings the group back to the last checkpoint of the job it was in, and an error that a user must correct is not
retried. Every worker must see the same data, models and output folders (one machine, or shared storage).
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.train import (
    Checkpoint,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
    get_context,
    report,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from steper_ray.cluster import Need, lacking
from steper_ray.config import TrainConfig
from steper_ray.core.copies import local
from steper_ray.core.errors import SteperError, TrainingError
from steper_ray.core.files import remove_folder
from steper_ray.core.locks import locked
from steper_ray.core.storage import for_arrow
from steper_ray.training.agreement import one_for_all
from steper_ray.training.checkpoints import Checkpoints, Saver, WriteError, newest, writing
from steper_ray.training.job import BEST, Task, TrainJob, TrainResult, finished, lost, make_task, note_sources
from steper_ray.training.metrics import ProgressBars, WarningLog
from steper_ray.training.students import Students
from steper_ray.training.tokenising import with_tokens
from steper_ray.training.tracking import Tracking, check_trackers
from steper_ray.training.watch import Judge, Watcher

if TYPE_CHECKING:
    from steper_ray.training.engine import Worker

logger = logging.getLogger(__name__)

__all__ = ["TrainJob", "TrainResult", "train"]

_GROUP = ("workers", "use_gpu", "num_cpus", "max_failures")
_ABORT_S = 30.0  # for the workers to end when a training is stopped


def train(
    jobs: Sequence[TrainJob], *, run_dir: Path, progress: bool = True, judge: Judge | None = None
) -> list[TrainResult]:
    """Trains and exports every job that is not finished yet; returns the results in the order of `jobs`.

    `run_dir` takes metrics (training/<name>/metrics.jsonl) and checkpoints (training/ray). With `progress` stderr
    shows how much memory a worker is estimated to need, and a bar a job. `judge` asks a student the questions of
    `train.validation`, in a thread of this process; what it says goes to training/<name>/validation.jsonl. An export
    that was damaged since is made again. Raises TrainingError or ModelError, and LockedError where another call works
    on one of the jobs; a call with the same jobs continues where this one stopped.
    """
    run_dir = run_dir.resolve()
    tasks = [make_task(_absolute(job), run_dir) for job in jobs]
    _check(tasks)
    check_trackers(tasks)
    left = [task for task in tasks if finished(task) is None]
    with ExitStack() as beside:
        if left:
            for task in left:
                beside.enter_context(locked(task.metrics.parent, "training"))
            for task in left:
                if (wrong := lost(task)) is not None:
                    _make_again(task, wrong, run_dir / "training" / "ray")
                with writing("what the job is made from", task.metrics.parent):
                    note_sources(task)
                    Students(task).tidy()
        # A finished one's students may still be asked.
        beside.enter_context(Tracking(tasks))
        if progress and left:
            from steper_ray.training.fit import print_estimates  # and with it transformers

            print_estimates([(task.model, task.job.config) for task in left])
            beside.enter_context(ProgressBars([(task.name, task.metrics) for task in left]))
        if watched := [task for task in tasks if task.job.config.validation.questions]:
            if judge is None:
                raise TrainingError("train.validation.questions: this call of train() was given no `judge`")
            beside.enter_context(Watcher(watched, judge))
        if left:
            ready = {task.name: task for task in with_tokens(left, run_dir, progress)}
            _fit([ready.get(task.name, task) for task in tasks], run_dir)
    results = [finished(task) for task in tasks]
    for task, result in zip(tasks, results, strict=True):
        if result is None:
            raise TrainingError(f"job '{task.name}': training ended without an export in {task.job.output}")
    return [result for result in results if result is not None]


def _make_again(task: Task, wrong: str, store: Path) -> None:
    """Reports that a trained student is damaged or gone, and from where it is trained again."""
    start = "its last checkpoint"
    if task.job.config.validation.keep == "best" and not (task.metrics.parent / BEST).exists():
        # The best student of steps before the checkpoint was removed when it was exported.
        Checkpoints(store, store, task.name, task.fingerprint).clear_beyond(0)
        start = "the start: checkpoints do not hold the best student"
    logger.warning("job '%s' was trained, but %s. It is trained again from %s", task.name, wrong, start)


def _absolute(job: TrainJob) -> TrainJob:
    """Workers run in another folder than the caller."""
    config, validation = job.config, job.config.validation
    if validation.trajectories is not None:
        validation = validation.model_copy(update={"trajectories": validation.trajectories.resolve()})
        config = config.model_copy(update={"validation": validation})
    return TrainJob(job.name, config, job.trajectories.resolve(), job.output.resolve(), job.prompt)


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
    store = run_dir / "training" / "ray"
    if old := sorted(store.glob("*/checkpoint_*/position.json")):
        logger.warning("%s and others like it are of an earlier version of steper_ray, which saved in another way: "
                       "they are not read, delete them", old[0].parent)  # fmt: skip
    name = hashlib.sha256("\n".join(task.fingerprint for task in tasks).encode()).hexdigest()[:16]
    # Ray Train's own list of checkpoints is written in place, and a list that was cut short, or that names a folder
    # which is gone, stops every later run. What counts here are the seals in the checkpoints (checkpoints.py).
    (store / name / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME).unlink(missing_ok=True)
    if missing := lacking(
        Need(
            config.workers,
            config.num_cpus,
            float(config.use_gpu),
            ("train.workers", "train.num_cpus", "train.use_gpu"),
        )
    ):
        logger.warning("training: %s", missing)
    storage_path, storage_filesystem = for_arrow(store)
    trainer = _Trainer(
        _run_worker,  # type: ignore[arg-type]  # Ray's stubs do not know that a worker may return a value
        train_loop_config={"tasks": list(tasks), "store": store, "home": store / name},
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers, use_gpu=config.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            storage_filesystem=storage_filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    try:
        outcome = trainer.fit().return_value  # type: ignore[attr-defined]  # the stubs are those of Train v1
    except KeyboardInterrupt:
        trainer.abort()
        raise
    except TrainingFailedError as error:
        if (cause := _write_error(error)) is not None:
            raise TrainingError(str(cause)) from error
        raise TrainingError(
            f"training failed and was not brought back by {config.max_failures} restarts: {error}. Run it again to "
            f"go on from the last checkpoint below {store}"
        ) from error
    if outcome is not None:
        raise TrainingError(outcome)


class _Trainer(TorchTrainer):
    """Ctrl-C is this process's own: Ray Train's handler ends it with status 0, and stays when the training is done."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """Ends the workers, where they have begun; what they committed stays."""
        if self._controller is not None:
            with suppress(RayError):  # the controller ends with it
                ray.get(self._controller.abort.remote(), timeout=_ABORT_S)


def _write_error(error: TrainingFailedError) -> WriteError | None:
    """A worker's error that says it all; the others failed because that worker was gone."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    causes = (getattr(failure, "_base_exc", failure) for failure in failures)
    return next((cause for cause in causes if isinstance(cause, WriteError)), None)


def _run_worker(config: dict[str, Any]) -> str | None:
    """Runs one worker. Returns the message of an error that no retry can correct."""
    tasks: list[Task] = config["tasks"]
    settings = tasks[0].job.config
    if not settings.use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # before deepspeed is imported
    # Where MLflow is installed, DeepSpeed's autotuner would import it: over a second. Trackers are the driver's.
    sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]
    import torch
    import torch.distributed as dist
    from transformers.utils.logging import disable_progress_bar

    from steper_ray.training.engine import Worker
    from steper_ray.training.loop import Trainer, first_message

    disable_progress_bar()
    # From torch about DeepSpeed's calls of it, a few for every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    torch.set_num_threads(max(1, int(settings.num_cpus)))
    context = get_context()
    worker = Worker(
        context.get_world_rank(), context.get_world_size(), get_device(), context.get_local_world_size()
    )
    if settings.use_gpu:
        torch.cuda.set_device(worker.device)
    for task in tasks:
        done = [finished(task) is not None]
        dist.broadcast_object_list(done)
        if done[0]:
            continue
        checkpoints = Checkpoints(config["store"], config["home"], task.name, task.fingerprint)
        saver = Saver(
            checkpoints,
            worker.rank,
            worker.size,
            task.job.config.keep_checkpoints,
            first_message,
            _reporter(task),
        )
        try:
            with WarningLog(task.metrics) if worker.rank == 0 else nullcontext():
                with _resume_folder(checkpoints, task.job.config, worker) as folder:
                    trainer = Trainer(task, worker, folder)
                trainer.run(saver)
                trainer.close()
        except WriteError:
            raise
        except SteperError as error:
            saver.close()
            return str(error)
        saver.close()
    return None


@contextmanager
def _resume_folder(checkpoints: Checkpoints, config: TrainConfig, worker: Worker) -> Iterator[Path | None]:
    """The folder of the newest whole checkpoint, converted if another number of workers wrote it."""
    from steper_ray.training.loop import first_message

    stored = newest(checkpoints, worker.rank, worker.size, first_message)
    if worker.rank == 0:
        checkpoints.clear_beyond(stored.step if stored else 0)
    first_message(None)  # before a new one is written
    # Without ZeRO every worker has the whole state, and any number of them can read it as it is.
    if stored is None or stored.workers == worker.size or config.zero_stage == 0:
        yield None if stored is None else local(stored.folder)
        return
    from steper_ray.training.resharding import to_any_world

    recut, work = stored.folder.with_name(f"{stored.folder.name}-of-any-world"), None
    if worker.rank == 0:
        logger.warning(
            "%s was written by %d workers, this run has %d: it is converted first, which takes its room once more, and "
            "for a large student takes some time", stored.folder, stored.workers, worker.size,
        )  # fmt: skip
        work = partial(to_any_world, stored.folder, recut)
    try:
        if (message := one_for_all(work, first_message)) is not None:
            raise TrainingError(
                f"{stored.folder} was written by {stored.workers} workers, this run has {worker.size}, and it cannot "
                f"be converted: {message}. Set train.workers={stored.workers}, or delete it to train from the start"
            )
        yield local(recut)
        first_message(None)  # all have read it
    finally:
        if worker.rank == 0:
            remove_folder(recut)


def _reporter(task: Task) -> Callable[[Path, int], None]:
    """Tells Ray Train of a checkpoint that is whole; it lies where it stays."""

    def stored(folder: Path, step: int) -> None:
        report(
            {"job": task.name, "step": step},
            checkpoint=Checkpoint(*for_arrow(folder)),
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    return stored
