"""Students trained on Ray Train: all jobs one after another in one group of workers. The room's door to Ray.

Workers, imports and process groups start once for all jobs. A job that was exported is skipped, a killed worker
brings the group back to the last checkpoint of the job it was in, and an error that a user must correct is not
retried. Every worker must see the same data, models and output folders (one machine, or shared storage).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import (
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from steper_ray.cluster import Need, lacking
from steper_ray.core.errors import TrainingError, in_one_line
from steper_ray.core.locks import locked
from steper_ray.core.storage import for_arrow
from steper_ray.training.checkpoints import Checkpoints, WriteError, writing
from steper_ray.training.job import BEST, Task, TrainJob, TrainResult, finished, lost, make_task, note_sources
from steper_ray.training.metrics import ProgressBars
from steper_ray.training.students import Students
from steper_ray.training.tokenising import with_tokens
from steper_ray.training.tracking import Tracking, check_trackers
from steper_ray.training.watch import Judge, Watcher
from steper_ray.training.worker import run_worker

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
    return replace(job, config=config, trajectories=job.trajectories.resolve(), output=job.output.resolve())


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
        run_worker,  # type: ignore[arg-type]  # Ray's stubs do not know that a worker may return a value
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
            f"training failed and was not brought back by {config.max_failures} restarts: {reason(error)}. Run it "
            f"again to go on from the last checkpoint below {store}"
        ) from error
    except RayError as error:
        raise TrainingError(
            f"the training lost its Ray ({in_one_line(error)}). Run it again to go on from the last checkpoint below "
            f"{store}"
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


def _causes(error: TrainingFailedError) -> list[Exception]:
    """What the workers raised, by rank; empty where the training failed outside of them."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    found = [failures[rank] for rank in sorted(failures)]
    return [getattr(one, "_base_exc", getattr(one, "health_check_failure", one)) for one in found]


def _write_error(error: TrainingFailedError) -> WriteError | None:
    """A worker's error that says it all; the others failed because that worker was gone."""
    return next((cause for cause in _causes(error) if isinstance(cause, WriteError)), None)


def reason(error: TrainingFailedError) -> str:
    """In one line: Ray's own words are a traceback of each worker, or pages about the node."""
    if causes := _causes(error):
        return f"{type(causes[0]).__name__} in a worker: {in_one_line(causes[0])}"
    return in_one_line(error.controller_failure if isinstance(error, ControllerError) else error)
