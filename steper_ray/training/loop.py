"""The training loop of one worker: batches -> losses -> gradients -> steps, checkpoints, metrics, the export.

All workers run it together on one job. It promises that the gradient of a step is that of the objective over the
global batch, however the batch is cut; that all workers hold the same sigmas; and that a run resumed from a
checkpoint goes on as if it had never stopped. It knows no Ray: saving and agreeing are passed in or done with
torch.distributed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoTokenizer

from steper_ray.config import TrainConfig
from steper_ray.errors import ModelError, SteperError, TrainingError
from steper_ray.models import partial_attention
from steper_ray.training.checkpoints import WriteError, writing
from steper_ray.training.data import Batch, Share, TrainingData, check_vocabulary, filler, load_data, split
from steper_ray.training.difficulty import DifficultyWeights
from steper_ray.training.engine import Engine, Worker
from steper_ray.training.export import export
from steper_ray.training.job import Task
from steper_ray.training.metrics import MetricsLog
from steper_ray.training.objective import (
    N_TASKS,
    TASKS,
    task_divisors,
    task_sums,
    task_weights,
    total_loss,
    weighted_sum,
)
from steper_ray.training.packing import pack_rows

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
    """What one optimiser step did, over the global batch; the same on every worker."""

    loss: float
    task_losses: torch.Tensor
    grad_norm: float | None


class Trainer:
    """One job on one worker. `resume` is the folder of a checkpoint of this job, if there is one."""

    def __init__(self, task: Task, worker: Worker, resume: Path | None) -> None:
        self._task, self._config, self._worker = task, task.job.config, worker
        self._data = _load_together(task)
        self._steps = self._config.max_steps or self._config.epochs * self._data.steps_per_epoch
        self._engine = Engine(task.model, self._config, worker)
        self._difficulty = DifficultyWeights(N_TASKS, self._config.sigma_lr, self._config.log_sigma_bounds)
        self._filler = filler(AutoTokenizer.from_pretrained(task.model).eos_token_id)
        self._step = 0
        self._saved: int | None = None
        if resume is not None:
            state = self._engine.load(resume)
            self._step = self._saved = int(state["step"])
            self._difficulty.load_state_dict(state["difficulty"])

    @property
    def _learns_sigma(self) -> bool:
        return self._config.method == "steper" and self._config.weighting == "difficulty"

    def run(self, save: Save) -> int:
        """Trains to the end and exports; returns the number of optimiser steps."""
        with writing("the log", self._task.metrics.parent):
            log = MetricsLog(self._task.metrics, self._step) if self._worker.rank == 0 else None
        while self._step < self._steps:
            started = time.monotonic()
            batch = self._data.batch(self._step)
            log_sigma = self._difficulty.log_sigma
            result = self._train_step(batch, log_sigma)
            if log is not None:
                record = self._record(batch, result, log_sigma, time.monotonic() - started)
                with writing("the log", self._task.metrics.parent):
                    log.write(record)
            self._step += 1
            if self._step % self._config.checkpoint_every == 0 and self._step < self._steps:
                save(self._write_shard, self._step)
                self._saved = self._step
        state, trouble = self._engine.whole_state(), None
        if log is not None:
            log.close()
            try:
                with writing("the student", self._task.job.output.parent):
                    export(self._task, self._engine.module, state, self._steps, log.last)
            except WriteError as error:
                trouble = str(error)
        if (message := first_message(trouble)) is not None:
            raise TrainingError(message)
        return self._steps

    def close(self) -> None:
        self._engine.close()

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
        for number, rows in enumerate(share.micro_batches):
            chosen = [index for row in rows for index in row]
            trees = [share.trees[index] for index in chosen] or [self._filler]
            place = {index: at for at, index in enumerate(chosen)}
            packed = pack_rows(trees, [[place[i] for i in row] for row in rows] or [[0]], pad_id=0)
            losses = self._engine.losses(packed)
            task, weight = packed.task.to(losses.device), packed.weight.to(losses.device)
            loss = weighted_sum(losses, task, weight, weights, divisors)
            self._engine.backward(loss, last=number == len(share.micro_batches) - 1)
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
    ) -> dict[str, Any]:
        losses = [
            loss if count else None
            for loss, count in zip(result.task_losses.tolist(), batch.counts, strict=True)
        ]
        tokens = sum(item.tokens for item in batch.items)
        return {
            "step": self._step + 1,
            "steps": self._steps,
            "epoch": batch.epoch,
            "loss": result.loss,
            "losses": _by_task(losses),
            "counts": _by_task(batch.counts),
            "sigma": _by_task(log_sigma.exp().tolist()) if self._learns_sigma else None,
            "weights": _by_task(task_weights(self._config, log_sigma).tolist()),
            "lr": learning_rate(self._config, self._step, self._steps),
            "grad_norm": result.grad_norm,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
        }


def _by_task(values: Any) -> dict[str, Any]:
    return {task.value: value for task, value in zip(TASKS, values, strict=True)}


def sum_over_workers(values: torch.Tensor, worker: Worker) -> torch.Tensor:
    """The sum of every worker's `values`, equal to the bit on all of them: each adds the same numbers in rank order."""
    parts = [torch.empty_like(values, device=worker.device) for _ in range(worker.size)]
    dist.all_gather(parts, values.to(worker.device))
    return torch.stack(parts).sum(dim=0).cpu()


def shape_and_tokenizer(model: str) -> tuple[Any, Any]:
    """The text model's config and the tokenizer of a resolved model. Raises ModelError."""
    try:
        shape = AutoConfig.from_pretrained(model).get_text_config()
        return shape, AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:  # what transformers raises for what is missing, unknown or broken
        raise ModelError(f"model '{model}': its config or tokenizer cannot be loaded: {error}") from error


def first_message(message: str | None) -> str | None:
    """What the first worker that has a message says, told to all; None if none has one. A barrier too."""
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    return next((m for m in messages if m is not None), None)


def _load_together(task: Task) -> TrainingData:
    """The data, or one worker's error raised by all: a worker that stopped alone would leave the others waiting."""
    data, message = None, None
    try:
        shape, tokenizer = shape_and_tokenizer(task.model)
        if kinds := partial_attention(shape, task.job.config.row_tokens):
            raise TrainingError(
                f"job '{task.name}': {task.model} has layers of {', '.join(kinds)}, which do not see all of a "
                f"trajectory: lower train.row_tokens ({task.job.config.row_tokens}) to their window, or take another "
                "student"
            )
        limit = shape.max_position_embeddings
        data = load_data(task.job.examples, tokenizer, task.job.config, limit)
        check_vocabulary(data, shape.vocab_size, task.model)
    except SteperError as error:
        message = str(error)
    first = first_message(message)
    if first is not None or data is None:
        raise TrainingError(first or f"job '{task.name}': no data")
    return data
