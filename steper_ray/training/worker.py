"""One worker of a training on Ray Train: the jobs one after the other, each from its newest whole checkpoint."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import Checkpoint, CheckpointUploadMode, get_context, report
from ray.train.torch import get_device

from steper_ray.config import TrainConfig
from steper_ray.core.copies import local
from steper_ray.core.errors import SteperError, TrainingError
from steper_ray.core.files import remove_folder
from steper_ray.core.storage import for_arrow
from steper_ray.training.agreement import one_for_all
from steper_ray.training.checkpoints import Checkpoints, Saver, WriteError, newest
from steper_ray.training.job import Task, finished
from steper_ray.training.metrics import WarningLog

if TYPE_CHECKING:
    from steper_ray.training.engine import Worker

logger = logging.getLogger(__name__)


def run_worker(config: dict[str, Any]) -> str | None:
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
    from steper_ray.training.loop import Trainer
    from steper_ray.training.together import first_message

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
    from steper_ray.training.together import first_message

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
