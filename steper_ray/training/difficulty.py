"""Difficulty weights: one learned sigma a task (StepER, difficulty-aware training).

Three float32 scalars outside the model and outside ZeRO, replicated on every worker, with an optimiser of their
own. They are driven by task losses averaged over the global batch, which all workers hold to the same bit, so
they stay equal without communication. Knows no model and no Ray.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch

#: How far log sigma has to move from 0, about: losses of a student that learns end at 0.05 to 0.4, sigma at their root.
_WAY = 1.5


def too_few_steps(steps: int, lr: float) -> str | None:
    """The warning for a run too short for sigma to come near its optimum: Adam moves log sigma by about `lr` a step."""
    if steps * lr >= _WAY:
        return None
    return (
        f"in {steps} steps sigma moves to about {math.exp(-steps * lr):.2f} at most, and the weights hardly part: with "
        f"train.sigma_lr={math.ceil(100 * _WAY / steps) / 100:g} instead of {lr:g} it comes near its optimum, or take "
        "train.weighting=uniform"
    )


class DifficultyWeights:
    """log sigma of each task, from 0 (sigma = 1), moved by Adam and kept inside `bounds`."""

    def __init__(self, n_tasks: int, lr: float, bounds: tuple[float, float]) -> None:
        self._bounds = bounds
        # One parameter a task: Adam leaves alone what has no gradient, moments and step count included.
        self._parameters = [torch.nn.Parameter(torch.zeros(())) for _ in range(n_tasks)]
        self._optimizer = torch.optim.Adam(self._parameters, lr=lr)
        self._clamp()

    @property
    def log_sigma(self) -> torch.Tensor:
        """Shape (tasks,), float32, a copy without gradient."""
        return torch.stack([parameter.detach() for parameter in self._parameters])

    def update(self, task_losses: torch.Tensor, present: Sequence[bool]) -> None:
        """One step against the gradient of sum_j L_j / (2 sigma_j^2) + log sigma_j over the `present` tasks.

        In closed form, d/d log sigma_j = 1 - L_j / sigma_j^2, zero at sigma_j = sqrt(L_j). A task that is not
        present keeps its sigma.
        """
        for parameter, loss, here in zip(self._parameters, task_losses, present, strict=True):
            sigma_squared = torch.exp(2 * parameter.detach())
            parameter.grad = (1 - loss.float().cpu() / sigma_squared) if here else None
        self._optimizer.step()
        self._clamp()

    def _clamp(self) -> None:
        with torch.no_grad():
            for parameter in self._parameters:
                parameter.clamp_(*self._bounds)

    def state_dict(self) -> dict[str, Any]:
        """A copy that later updates leave alone."""
        return {"log_sigma": self.log_sigma, "optimizer": copy.deepcopy(self._optimizer.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for parameter, value in zip(self._parameters, state["log_sigma"], strict=True):
                parameter.copy_(value)
