"""The training loop of one worker: batches -> losses -> gradients -> steps, checkpoints, metrics, the export.

All workers run it together on one job. It promises that the gradient of a step is that of the objective over the
global batch, however the batch is cut; that all workers hold the same sigmas; and that a run resumed from a
checkpoint continues as if it had never stopped. It knows no Ray: saving and agreeing are passed in or done with
torch.distributed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from steper_ray.config import TrainConfig
from steper_ray.core.errors import SteperError, TrainingError
from steper_ray.core.probes import Probes
from steper_ray.pretrained import load_shape, load_tokenizer
from steper_ray.schema.records import LookAt, OwnChains, StepRecord
from steper_ray.training.checkpoints import writing
from steper_ray.training.data import Batch
from steper_ray.training.difficulty import DifficultyWeights, too_few_steps
from steper_ray.training.engine import Engine, Worker
from steper_ray.training.exactness import check_exactness, probe, short_trees
from steper_ray.training.export import export, export_kept
from steper_ray.training.job import Task
from steper_ray.training.metrics import MetricsLog, read_steps
from steper_ray.training.objective import (
    N_TASKS,
    by_task,
    task_divisors,
    task_sums,
    task_weights,
    total_loss,
    weighted_sum,
)
from steper_ray.training.own_chains import StudentBatches
from steper_ray.training.packing import Packed
from steper_ray.training.shares import Share, filler, split
from steper_ray.training.soft_targets import Teacher, stored_losses
from steper_ray.training.students import Students
from steper_ray.training.telemetry import Telemetry
from steper_ray.training.together import first_message, load_together
from steper_ray.training.validation import Best, HeldOut, best_and_last, due, sum_over_workers

logger = logging.getLogger(__name__)

#: Called by every worker with a function that writes its shard into a folder, and with the step it is of.
Save = Callable[[Callable[[Path], None], int], None]

_NAMED = 20  # question ids that an error spells out


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Of optimiser step `step` (from 0): linear warm-up over `warmup_ratio` of the steps, then a cosine to 0."""
    warmup = round(config.warmup_ratio * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


@dataclass(slots=True)
class StepResult:
    """The figures of one optimiser step over the global batch; the same on every worker."""

    loss: float
    task_losses: torch.Tensor
    grad_norm: float | None


class Trainer:
    """One job on one worker. `resume` is the folder of a checkpoint of this job, if there is one."""

    def __init__(self, task: Task, worker: Worker, resume: Path | None) -> None:
        self._task, self._config, self._worker = task, task.job.config, worker
        trusted = self._config.trust_remote_code
        self._data = load_together(task)
        self._steps = self._config.max_steps or self._config.epochs * self._data.steps_per_epoch
        self._engine = Engine(task.model, self._config, worker)
        items = self._data.items
        self._sample = short_trees((items[0], items[len(items) - 1]))
        check_exactness(self._engine, self._sample, self._config, self._config.student)
        self._teacher: Teacher | None = None
        self._losses: Callable[[Packed], torch.Tensor] = self._engine.losses
        self._own = StudentBatches(task, self._data, worker) if self._config.method == "on_policy" else None
        if (targets := self._config.soft_targets) is not None and (name := self._config.teacher) is not None:
            self._teacher = Teacher(name, targets, task.model, self._config, worker)
            check_exactness(self._teacher, self._sample, self._config, name)
            self._losses = partial(self._teacher.losses_of, self._engine)
        elif targets is not None:
            self._losses = partial(stored_losses, targets, self._engine)
        self._difficulty = DifficultyWeights(N_TASKS, self._config.sigma_lr, self._config.log_sigma_bounds)
        if (
            worker.rank == 0
            and self._learns_sigma
            and (said := too_few_steps(self._steps, self._config.sigma_lr))
        ):
            logger.warning(said)
        self._filler = filler(load_tokenizer(task.model, trusted).eos_token_id)
        self._telemetry = Telemetry(load_shape(task.model, trusted), self._config, worker)
        held_out, validation = self._data.held_out, self._config.validation
        self._held_out = HeldOut(held_out, self._config, worker, self._filler) if held_out else None
        self._best = Best(task) if validation.keep == "best" else None
        self._students = Students(task) if validation.questions else None
        self._step = 0
        self._saved: int | None = None
        if resume is not None:
            state = self._engine.load(resume)
            self._step = self._saved = int(state["step"])
            self._difficulty.load_state_dict(state["difficulty"])

    @property
    def _learns_sigma(self) -> bool:
        return self._config.method != "vanilla_kd" and self._config.weighting == "difficulty"

    def run(self, save: Save) -> int:
        """Trains to the end and exports; returns the number of optimiser steps."""
        with writing("the log", self._task.metrics.parent):
            log = MetricsLog(self._task.metrics, self._step) if self._worker.rank == 0 else None
        while self._step < self._steps:
            batch, chains = self._batch()
            started = time.monotonic()
            log_sigma = self._difficulty.log_sigma
            result = self._train_step(batch, log_sigma)
            record = self._record(batch, result, log_sigma, time.monotonic() - started)
            if chains is not None:
                record["own_chains"] = chains
            self._step += 1
            self._look(record)
            if log is not None:
                with writing("the log", self._task.metrics.parent):
                    log.write(record)
            if self._step % self._config.checkpoint_every == 0 and self._step < self._steps:
                if log is not None:
                    log.flush()  # a training goes on from a checkpoint with the lines of all its steps
                save(self._write_shard, self._step)
                self._saved = self._step
        trouble = None
        try:
            if log is not None:
                log.close()
            with writing("the student", self._task.job.output.parent):
                self._export()
        except SteperError as error:
            trouble = str(error)
        if (message := first_message(trouble)) is not None:
            raise TrainingError(message)
        return self._steps

    def _look(self, record: StepRecord) -> None:
        """Between two steps: the loss on held-out examples, which joins the record, and students that are kept.

        Before the checkpoint of the same step: a run that continues from there has it behind it.
        """
        validation, folders = self._config.validation, list[Path]()
        if self._held_out is not None and due(self._step, self._steps, validation.every):
            record["validation"] = self._held_out.losses(self._engine)
            if self._best is not None and self._best.improved(self._step, record["validation"]):
                folders.append(self._best.folder)
        if self._students is not None and due(
            self._step, self._steps, validation.questions_every or validation.every
        ):
            wanted = [self._worker.rank == 0 and self._students.wanted(self._step, self._steps)]
            dist.broadcast_object_list(wanted)
            folders += [self._students.folder(self._step)] if wanted[0] else []
        if not folders:
            return
        state, probes = self._engine.whole_state(), self._probes()
        for folder in folders if self._worker.rank == 0 else ():
            with writing("the student", folder.parent):
                export(
                    self._task,
                    self._engine.module,
                    state,
                    self._step,
                    record,
                    probes,
                    folder=folder,
                    validation=self._looked(record),
                )

    def _looked(self, record: StepRecord) -> LookAt | None:
        return {"step": self._step, **record["validation"]} if "validation" in record else None

    def _export(self) -> None:
        """The student of the last step, or of the best one."""
        best = None if self._best is None else self._best.look
        state, probes = (self._engine.whole_state(), self._probes()) if best is None else ({}, None)
        if self._worker.rank != 0:
            return
        records = read_steps(self._task.metrics)
        looks = best_and_last(records, self._config.validation)
        if best is None:
            export(self._task, self._engine.module, state, self._steps, records[-1], probes, validation=looks)
            return
        assert self._best is not None
        seen: dict[str, LookAt | None] = {"best": best, "last": None if looks is None else looks["last"]}
        export_kept(self._task, self._best.folder, best["step"], self._steps, records[-1], seen)
        self._best.remove()

    def _probes(self) -> Probes:
        return probe(self._engine, self._sample, self._config)

    def close(self) -> None:
        if self._own is not None:
            self._own.close()
        self._engine.close()
        if self._teacher is not None:
            self._teacher.close()

    def _batch(self) -> tuple[Batch, OwnChains | None]:
        if self._own is not None:
            return self._own.batch(self._step, self._engine)
        return self._data.batch(self._step), None

    def _train_step(self, batch: Batch, log_sigma: torch.Tensor) -> StepResult:
        config, worker = self._config, self._worker
        # Dropout, where a model has any, draws the same after a resume.
        torch.manual_seed((config.seed * 1_000_003 + self._step) * worker.size + worker.rank)
        weights = task_weights(config, log_sigma)
        divisors = task_divisors(config, batch.counts, len(batch.items))
        present = [count > 0 for count in batch.counts]
        share = split(batch, worker.size, config)[worker.rank]
        sums = self._accumulate(share, weights, divisors)
        task_losses = sum_over_workers(sums, worker) / divisors
        self._stop_if_broken(task_losses, batch, "loss")
        norm = self._engine.step(learning_rate(config, self._step, self._steps))
        if norm is not None:
            self._stop_if_broken(torch.tensor([norm]), batch, "gradient")
        if self._learns_sigma:
            self._difficulty.update(task_losses, present)
            self._stop_if_broken(self._difficulty.log_sigma, batch, "sigma")
        return StepResult(total_loss(config, task_losses, present, log_sigma), task_losses, norm)

    def _accumulate(self, share: Share, weights: torch.Tensor, divisors: torch.Tensor) -> torch.Tensor:
        """Runs this worker's micro-batches; returns its summed losses of each task, shape (3,), float64."""
        sums = torch.zeros(N_TASKS, dtype=torch.float64)
        for number, packed in enumerate(share.packed(self._filler), 1):
            losses = self._losses(packed)
            task, weight = packed.task.to(losses.device), packed.weight.to(losses.device)
            loss = weighted_sum(losses, task, weight, weights, divisors)
            self._engine.backward(loss, last=number == len(share.micro_batches))
            sums += task_sums(losses, task, weight).cpu()
        return sums

    def _stop_if_broken(self, values: torch.Tensor, batch: Batch, what: str) -> None:
        if bool(torch.isfinite(values).all()):
            return
        ids = batch.question_ids
        named = ", ".join(ids[:_NAMED]) + (f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")
        saved = (
            f"the last good checkpoint is of step {self._saved}"
            if self._saved
            else "no checkpoint was written"
        )
        raise TrainingError(
            f"job '{self._task.name}': the {what} of step {self._step + 1} is not a finite number; its batch: {named}; "
            f"{saved}. Lower train.lr or look at these questions' examples"
        )

    def _write_shard(self, folder: Path) -> None:
        self._engine.save(folder, {"step": self._step, "difficulty": self._difficulty.state_dict()})

    def _record(
        self, batch: Batch, result: StepResult, log_sigma: torch.Tensor, seconds: float
    ) -> StepRecord:
        losses = [
            loss if count else None
            for loss, count in zip(result.task_losses.tolist(), batch.counts, strict=True)
        ]
        return {
            "step": self._step + 1,
            "steps": self._steps,
            "epoch": batch.epoch,
            "loss": result.loss,
            "losses": by_task(losses),
            "counts": by_task(batch.counts),
            "sigma": by_task(log_sigma.exp().tolist()) if self._learns_sigma else None,
            "weights": by_task(task_weights(self._config, log_sigma).tolist()),
            "lr": learning_rate(self._config, self._step, self._steps),
            "grad_norm": result.grad_norm,
            **self._telemetry.of_step(batch, seconds),  # type: ignore[typeddict-item]  # it has no `validation`
        }
