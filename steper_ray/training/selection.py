"""Selects the trajectories and steps that a config learns, from the index columns of token files alone.

A few numbers a trajectory are in memory, in the order of the ids. No text, no Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from steper_ray.config import TrainConfig, ValidationConfig
from steper_ray.core.errors import TrainingError
from steper_ray.schema import Ability
from steper_ray.training.objective import N_TASKS, TASKS
from steper_ray.training.tokens import Chunk, Ints, OpenTokens

logger = logging.getLogger(__name__)

_NAMED = 10  # ids that a message spells out
TASK = {task: number for number, task in enumerate(TASKS)}

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """Trajectories with examples to learn: their rows in the order of their ids, and what selects among them."""

    tokens: OpenTokens
    rows: Rows
    longest: Ints
    """Tokens of the longest tree."""
    fits: Mask
    counts: Ints
    """Examples of each task."""
    draws: Floats

    def take(self, which: Mask) -> Measured:
        return Measured(
            self.tokens,
            self.rows[which],
            self.longest[which],
            self.fits[which],
            self.counts[which],
            self.draws[which],
        )

    def ids(self) -> pa.StringArray:
        return self.tokens.ids().take(pa.array(self.rows))

    def name(self, index: int) -> str:
        chunk, row = self.tokens.place(int(self.rows[index]))
        return str(chunk.ids[row].as_py())


def measured(tokens: OpenTokens, config: TrainConfig, max_positions: int) -> Measured:
    """All trajectories of a source. Raises TrainingError where there is none, or one comes twice."""
    ids = tokens.ids()
    order = pc.sort_indices(ids).to_numpy().astype(np.int64)  # by code points, as Python sorts
    ordered = ids.take(pa.array(order))
    twice = pc.equal(ordered[1:], ordered[:-1]).index(True).as_py()
    if twice >= 0:
        raise TrainingError(
            f"{tokens.source}: trajectory {ordered[twice]} comes twice: give every trajectory an id, or train on the "
            "files of one build"
        )
    found = [_sizes(chunk, config, max_positions) for chunk in tokens.chunks]
    columns = [np.concatenate(column)[order] for column in zip(*found, strict=True)] if found else []
    if not columns or not columns[2].any():
        raise TrainingError(
            f"{tokens.source}: no trajectories: nothing to train on. Look at the build stage's counts: a filter may "
            "have dropped every trajectory"
        )
    return Measured(tokens, order, *columns).take(columns[2].any(axis=1))


def _sizes(chunk: Chunk, config: TrainConfig, max_positions: int) -> tuple[Ints, Mask, Ints, Floats]:
    """Of each trajectory: its longest tree, whether it fits, its examples of each task, its draw."""
    tasks, prompt = chunk.tasks.values, chunk.question.lengths
    mask = learned(tasks, chunk.tasks.offsets, lambda row: str(chunk.ids[row].as_py()), config)
    of = np.repeat(np.arange(len(chunk)), chunk.tasks.lengths)[mask]
    branch = prompt[of] + chunk.ends.values[mask] + 1
    context = np.zeros(len(chunk), np.int32)
    np.maximum.at(context, of, chunk.cuts.values[mask] + branch)
    longest = context
    if config.packing == "tree":
        longest = chunk.trunk.lengths.copy()
        np.add.at(longest, of, branch)
    counts = np.zeros((len(chunk), N_TASKS), np.int32)
    np.add.at(counts, (of, tasks[mask]), 1)
    return longest, (longest <= config.row_tokens) & (context <= max_positions), counts, chunk.draws


def learned(
    tasks: Ints, offsets: Sequence[int] | Ints, name: Callable[[int], str], config: TrainConfig
) -> Mask:
    """The steps of some trajectories that the config learns; `name` is the id of the trajectory of a number."""
    if config.method == "vanilla_kd":
        return np.equal(tasks, TASK[Ability.AGGREGATION])
    if config.steps == "all":
        return np.ones(len(tasks), np.bool_)
    chosen: Mask = tasks != TASK[Ability.EXPANSION]
    if config.steps == "first_mid_final":
        between = np.flatnonzero(~chosen)
        rows = np.searchsorted(offsets, between, side="right") - 1
        for row, steps in groupby(
            zip(rows.tolist(), between.tolist(), strict=True), key=lambda pair: pair[0]
        ):
            middle = [step for _, step in steps]
            drawn = Random(f"{config.seed}-{name(row)}").choice(middle) if len(middle) > 1 else middle[0]
            chosen[drawn] = True
    return chosen


def away(draws: Floats, validation: ValidationConfig) -> Mask:
    """Those of the held-out questions: all trajectories of a question, or none. Raises TrainingError."""
    if not validation.share and validation.number is None:
        return np.zeros(len(draws), np.bool_)
    questions = np.unique(draws)
    number = validation.number or int((questions < validation.share).sum())
    if not 0 < number < len(questions):
        raise TrainingError(
            f"of {len(questions)} questions {number} would be held out and {max(0, len(questions) - number)} learned "
            "from: change train.validation.share or number"
        )
    found: Mask = draws <= questions[number - 1]
    return found


def short(found: Measured, config: TrainConfig, max_positions: int) -> Measured:
    """Those that are not too long; says which are omitted. Raises TrainingError where all are."""
    left_out = np.flatnonzero(~found.fits)
    if not len(left_out):
        return found
    longest, row_tokens = found.longest[left_out].max(), config.row_tokens
    fix = f"raise `train.row_tokens` ({row_tokens}; the longest needs {longest}; the model takes {max_positions})"
    if len(left_out) == len(found.rows):
        raise TrainingError(f"{found.tokens.source}: all {len(left_out)} trajectories are too long: {fix}")
    named = ", ".join(found.name(index) for index in left_out[:_NAMED])
    more = ", ..." if len(left_out) > _NAMED else ""
    logger.warning("%d of %d trajectories are too long and left out (%s%s): %s", len(left_out), len(found.rows),
                   named, more, fix)  # fmt: skip
    return found.take(found.fits)
