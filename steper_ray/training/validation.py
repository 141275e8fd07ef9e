"""The loss on held-out examples while a student learns, and the student of the step where it was lowest.

All workers run the forward passes together, as ZeRO-3 needs it; what comes out is the same on all of them, however the
examples are cut into rows and over workers. Nothing of the training is touched. No Ray.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

import torch
import torch.distributed as dist

from steper_ray.config import TrainConfig, ValidationConfig
from steper_ray.core.files import remove_folder
from steper_ray.schema.records import Look, LookAt, StepRecord
from steper_ray.training.data import Item, batch_of
from steper_ray.training.engine import Engine, Worker
from steper_ray.training.job import BEST, Task, provenance
from steper_ray.training.objective import N_TASKS, by_task, task_divisors, task_sums
from steper_ray.training.packing import Tree
from steper_ray.training.shares import split


def sum_over_workers(values: torch.Tensor, worker: Worker) -> torch.Tensor:
    """The sum of every worker's `values`, equal to the bit on all of them: each adds the same numbers in rank order."""
    parts = [torch.empty_like(values, device=worker.device) for _ in range(worker.size)]
    dist.all_gather(parts, values.to(worker.device))
    return torch.stack(parts).sum(dim=0).cpu()


class HeldOut:
    """The examples that are not learned from. `filler` is what a worker without rows runs."""

    def __init__(self, items: Iterable[Item], config: TrainConfig, worker: Worker, filler: Tree) -> None:
        batch = batch_of(items)
        self._worker, self._filler, self._counts = worker, filler, batch.counts
        self._share = split(batch, worker.size, config)[worker.rank]
        self._divisors = task_divisors(config, batch.counts, len(batch.items))

    def losses(self, engine: Engine) -> Look:
        """Each ability's loss as the objective has it, over all examples (None without any), and their plain sum."""
        sums = torch.zeros(N_TASKS, dtype=torch.float64)
        with engine.evaluating():
            for packed in self._share.packed(self._filler):
                losses = engine.losses(packed)
                task, weight = packed.task.to(losses.device), packed.weight.to(losses.device)
                sums += task_sums(losses, task, weight).cpu()
        means = (sum_over_workers(sums, self._worker) / self._divisors).tolist()
        known = [mean if count else None for mean, count in zip(means, self._counts, strict=True)]
        return {"loss": math.fsum(mean for mean in known if mean is not None), "losses": by_task(known)}


def score(look: Look, config: ValidationConfig) -> float:
    """The score of which the best step has least; not a number where no example has the ability."""
    value = look["loss"] if config.by == "sum" else look["losses"][config.by]
    return math.nan if value is None else value


def best_and_last(records: Iterable[StepRecord], config: ValidationConfig) -> dict[str, LookAt] | None:
    """The `best` and the `last` look at the held-out examples in a log of steps; None where there is none."""
    looks: list[LookAt] = [{"step": r["step"], **r["validation"]} for r in records if "validation" in r]
    if not looks:
        return None
    return {"best": min(looks, key=lambda look: score(look, config)), "last": looks[-1]}


class Best:
    """Beside the metrics, until the training ends: the student with the lowest score so far, one model folder.

    It lies outside Ray Train's checkpoints, whose retention knows nothing of it, and is replaced as a whole. What is
    there counts after a restart, also where the training continues from an earlier step than it is of.
    """

    def __init__(self, task: Task) -> None:
        self.folder = task.metrics.parent / BEST
        self._config = task.job.config.validation
        look = None
        if dist.get_rank() == 0:
            record = provenance(self.folder)
            if record is not None and record.get("fingerprint") == task.fingerprint:
                look = record["validation"]
        found = [json.dumps(look)]
        dist.broadcast_object_list(found)
        self.look: LookAt | None = json.loads(found[0])

    def improved(self, step: int, look: Look) -> bool:
        """Whether this step is better than all before, which it then is: its student must be written to `folder`."""
        value = score(look, self._config)
        if not math.isfinite(value) or (self.look is not None and value >= score(self.look, self._config)):
            return False
        self.look = {"step": step, **look}
        return True

    def remove(self) -> None:
        """Once it was exported. On rank 0 alone."""
        remove_folder(self.folder)


def due(step: int, steps: int, every: int) -> bool:
    """Whether an action due every `every` steps, and after the last, is due after `step` (from 1)."""
    return step % every == 0 or step == steps
