"""The objective: what weight each example's loss has in one optimiser step. Pure torch, no model, no Ray.

An example's weight depends on the counts of the WHOLE global batch, which every worker knows before its first
forward pass. So the objective is a weighted sum of example losses, it does not depend on how the batch is cut
into rows, micro-batches and workers, and gradients may be added up in any order.

With L_j the loss of task j (0 initialization, 1 expansion, 2 aggregation):
  uniform, fixed   sum_j w_j L_j / 3            (uniform: w_j = 1; Table 2 has the fixed ones)
  difficulty       sum_j L_j / (2 sigma_j^2) + log sigma_j
  vanilla-KD       L_aggregation alone, whatever the weighting
A task that is missing from a batch has no L_j there: neither its loss nor its log sigma is counted in that step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch

from steper_ray.config import TrainConfig
from steper_ray.schema import Ability

TASKS = tuple(Ability)
N_TASKS = len(TASKS)
T = TypeVar("T")


def by_task(values: Iterable[T]) -> dict[str, T]:
    """One value a task, under the tasks' names."""
    return {task.value: value for task, value in zip(TASKS, values, strict=True)}


def effective_weights(log_sigma: torch.Tensor) -> torch.Tensor:
    """1 / (2 sigma^2): what each task's loss is multiplied by under difficulty-aware weighting. Shape (3,)."""
    return torch.exp(-2 * log_sigma) / 2


def task_weights(config: TrainConfig, log_sigma: torch.Tensor) -> torch.Tensor:
    """The weight of each task's loss L_j, shape (3,), float32; `log_sigma` matters for `difficulty` alone."""
    if config.method == "vanilla_kd":
        return torch.tensor([float(task is Ability.AGGREGATION) for task in TASKS])
    if config.weighting == "difficulty":
        return effective_weights(log_sigma)
    weights = config.fixed_weights if config.weighting == "fixed" else (1.0,) * N_TASKS
    return torch.tensor(weights) / N_TASKS


def task_divisors(config: TrainConfig, counts: Sequence[int], questions: int) -> torch.Tensor:
    """Divisors of the summed example losses of each task that give L_j, shape (3,), float32.

    `counts` are the examples of each task in the global batch, `questions` its trajectories. `per_task` makes
    L_j the mean over the task's examples, `per_question` the sum over the questions divided by their number
    (StepER's equation: a question with more expansion steps has more of them in the loss).
    """
    divisors = (
        [float(questions)] * N_TASKS if config.normalize == "per_question" else [float(c) for c in counts]
    )
    return torch.tensor([max(d, 1.0) for d in divisors])


def weighted_sum(
    losses: torch.Tensor,
    task: torch.Tensor,
    weight: torch.Tensor,
    weights: torch.Tensor,
    divisors: torch.Tensor,
) -> torch.Tensor:
    """This piece's share of the global loss: sum_i weight_i * weights[task_i] / divisors[task_i] * losses_i.

    `losses`, `task` and `weight` have shape (examples,), of any piece of the global batch; the sum over all
    pieces is sum_j w_j L_j. An example of weight 0 contributes nothing.
    """
    scale = (weights / divisors).to(losses.device)[task]
    return (losses * scale * weight).sum()


def task_sums(losses: torch.Tensor, task: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Summed losses of each task in this piece of the batch, shape (3,), float64, without gradient."""
    sums = torch.zeros(N_TASKS, dtype=torch.float64, device=losses.device)
    return sums.index_add(0, task, (losses.detach() * weight).double())


def total_loss(
    config: TrainConfig, task_losses: torch.Tensor, present: Sequence[bool], log_sigma: torch.Tensor
) -> float:
    """The objective's value for one global batch from its L_j, of which only the `present` ones count.

    Under `difficulty` it may go below zero: at the optimum sigma_j = sqrt(L_j) a term is 1/2 + log(L_j) / 2.
    """
    weights = task_weights(config, log_sigma).double()
    regularised = config.method != "vanilla_kd" and config.weighting == "difficulty"
    terms = weights * task_losses.double() + (log_sigma.double() if regularised else 0.0)
    return float(sum(term for term, here in zip(terms, present, strict=True) if here))
