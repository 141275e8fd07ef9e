"""The lines of a training's log (metrics.jsonl) as typed JSON objects."""

from __future__ import annotations

from typing import NotRequired, TypedDict

ByTask = dict[str, float | None]
"""A number for each ability, by its name; None where a batch had no example of it."""


class Look(TypedDict):
    """The loss on held-out examples, of all abilities together and of each."""

    loss: float
    losses: ByTask


class LookAt(Look):
    """A look with its optimiser step."""

    step: int


class Memory(TypedDict):
    """Bytes of rank 0 at their peak; None without a GPU."""

    device_peak: int | None
    host_peak: int


class Cost(TypedDict):
    """The cost of one optimiser step; None where a device or a model is not known well enough."""

    tokens: int
    tokens_per_second: float
    flops_per_second: float | None
    mfu: float | None
    memory: Memory


class OwnChains(TypedDict):
    """The chains that a student wrote for one optimiser step; `left_out` of them were too long, or failed at once."""

    seconds: float
    chains: int
    tokens: int
    answered: int
    right: int
    left_out: int


class StepRecord(Cost):
    """A line of metrics.jsonl: one optimiser step (from 1) over its global batch."""

    step: int
    steps: int
    epoch: int
    loss: float
    losses: ByTask
    counts: dict[str, int]
    sigma: dict[str, float] | None
    weights: dict[str, float]
    lr: float
    grad_norm: float | None
    validation: NotRequired[Look]
    own_chains: NotRequired[OwnChains]
