"""The JSON records that rooms hand to each other: lines of a training's logs, and results.json."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

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


class Curves(TypedDict):
    """Curves of one training over its optimiser steps, by name; `model` is the student without its seed."""

    model: str
    seed: int
    steps: list[int]
    values: dict[str, list[float | None]]


class GroupRecord(TypedDict):
    """Scores of some of the questions: em, f1, acc and recall from 0 to 1, mean_steps in steps."""

    n: int
    em: float
    f1: float
    acc: float
    recall: float | None
    mean_steps: float


class SpreadRecord(TypedDict):
    """One metric over several seeds; `std` is the sample standard deviation."""

    mean: float
    min: float
    max: float
    std: float
    n: int


class ScoreRecord(TypedDict):
    """Scores over a test set, as `evaluation.scores.EvalScores` has them."""

    n: int
    em: float
    f1: float
    acc: float
    recall: float | None
    mean_steps: float
    errors: int
    owed: int
    recall_by_step: list[float]
    duplicates: float | None
    prompt_tokens: float
    completion_tokens: float
    stop_reasons: dict[str, int]
    by_hops: dict[str, GroupRecord]
    by_steps: dict[str, GroupRecord]


class SeedRecord(ScoreRecord):
    """Scores of one evaluated model, under its name."""

    name: str


class ModelRecord(ScoreRecord):
    """Means over the seeds of a model, their spread, and the seeds themselves."""

    spread: dict[str, SpreadRecord]
    seeds: list[SeedRecord]


class ComparisonRecord(TypedDict):
    """`model` less `other` over `n` questions; difference, low and high lie between -1 and 1."""

    model: str
    other: str
    unit: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    n: int


class SampleRecord(TypedDict):
    """A trajectory (as `to_row` writes it) with its scores."""

    model: str
    unit: str
    scores: dict[str, float]
    trajectory: dict[str, Any]


class Results(TypedDict):
    """results.json: model -> step unit -> scores, the curves of each training, and where all of it came from."""

    models: dict[str, dict[str, ModelRecord]]
    loss: list[Curves]
    sigma: list[Curves]
    validation: list[Curves]
    questions: list[Curves]
    optimiser: list[Curves]
    samples: list[SampleRecord]
    comparisons: list[ComparisonRecord]
    data: dict[str, Any]
    config: dict[str, Any]
    provenance: dict[str, Any]
