"""Token files -> trees of token ids -> batches: the same ones, in the same order, on every worker.

Every worker maps the same files and computes the whole plan of every step (which trajectories here, which worker and
which rows in shares.py) from (seed, step) alone. So nothing has to be communicated or saved to resume at any step, and
every worker knows the counts of the global batch and how many forward passes the others run. A few numbers a trajectory
and the token ids of one batch are in memory. No model, no Ray.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import pyarrow.compute as pc

from steper_ray.config import BUILD, TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.schema import Ability
from steper_ray.training.objective import N_TASKS, TASKS
from steper_ray.training.packing import Branch, Said, Tree
from steper_ray.training.selection import TASK, Rows, away, learned, measured, short
from steper_ray.training.tokens import OpenTokens, Tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """One trajectory: the unit of batches. With tree packing one tree, otherwise one a step."""

    question_id: str
    trees: tuple[Tree, ...]

    @property
    def tokens(self) -> int:
        return sum(len(tree) for tree in self.trees)

    def counts(self) -> list[int]:
        """Examples of each task."""
        tasks = [branch.task for tree in self.trees for branch in tree.branches]
        return [tasks.count(task) for task in range(N_TASKS)]


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimiser step: the trajectories, and the examples of each task in all of them."""

    epoch: int
    items: tuple[Item, ...]
    counts: tuple[int, ...]

    @property
    def question_ids(self) -> tuple[str, ...]:
        return tuple(item.question_id for item in self.items)


def item_of(name: str, trunk: Sequence[int], branches: tuple[Branch, ...], config: TrainConfig) -> Item:
    """A trajectory with its trees as `config` packs them."""
    if config.packing == "tree":
        return Item(name, (Tree(trunk, branches),))
    return Item(name, tuple(Tree(trunk[: branch.cut], (branch,)) for branch in branches))


class Items:
    """Trajectories in the order of their ids, each read from its token file when it is asked for."""

    def __init__(self, tokens: OpenTokens, rows: Rows, config: TrainConfig) -> None:
        self._tokens, self._rows, self._config = tokens, rows, config
        self._soft = config.soft_targets is not None and config.soft_targets.teacher == BUILD

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Item:
        chunk, row = self._tokens.place(int(self._rows[index]))
        name = chunk.ids[row].as_py()
        *token_ids, cuts, ends, tasks, soft_ids, soft_logprobs = chunk.row(row)
        trunk, prompt, chain = (array("i", ids.tobytes()) for ids in token_ids)
        soft = (
            [of.reshape(len(chain), -1) for of in (soft_ids, soft_logprobs)]
            if self._soft and len(soft_ids)
            else []
        )
        starts = [0, *ends[:-1]]
        branches = tuple(
            Branch(
                cut=int(cuts[step]),
                prompt=prompt,
                target=chain[: ends[step]] + array("i", [self._tokens.eos]),
                task=int(tasks[step]),
                said=Said(starts[step], *(of[starts[step] : ends[step]] for of in soft)) if soft else None,
            )
            for step in learned(tasks, [0, len(tasks)], lambda _: name, self._config).nonzero()[0].tolist()
        )
        return item_of(name, trunk, branches, self._config)

    def name(self, index: int) -> str:
        """The id of a trajectory."""
        chunk, row = self._tokens.place(int(self._rows[index]))
        return str(chunk.ids[row].as_py())


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Trajectories sorted by id, how they are cut into steps, and those that are not learned from."""

    items: Items
    steps_per_epoch: int
    seed: int
    held_out: Items
    tokens: tuple[OpenTokens, ...]

    def batch(self, step: int) -> Batch:
        """The batch of optimiser step `step` (from 0), a function of the seed and the step alone.

        An epoch is a shuffle of all trajectories cut into `steps_per_epoch` batches whose sizes differ by one at
        most, so no epoch ends in a batch of a few.
        """
        epoch, chosen = self.chosen(step)
        return batch_of((self.items[i] for i in chosen), epoch)

    def chosen(self, step: int) -> tuple[int, Sequence[int]]:
        """The epoch of a step, and the numbers of its trajectories."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = _order(len(self.items), self.seed, epoch)
        low = index * len(order) // self.steps_per_epoch
        high = (index + 1) * len(order) // self.steps_per_epoch
        return epoch, order[low:high]


def batch_of(items: Iterable[Item], epoch: int = 0) -> Batch:
    """At least one trajectory as one batch."""
    items = tuple(items)
    counts = tuple(sum(column) for column in zip(*(item.counts() for item in items), strict=True))
    return Batch(epoch, items, counts)


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> array[int]:
    order = list(range(size))
    Random(f"{seed}-{epoch}").shuffle(order)
    return array("q", order)


def load_data(
    tokens: Tokens, config: TrainConfig, max_positions: int, held_out: Tokens | None = None
) -> TrainingData:
    """The trajectories of token files as batches of trees for `config`, less those it holds out.

    `held_out` are those of `train.validation.trajectories`. A trajectory with a tree longer than `row_tokens`, or an
    example longer than the model's `max_positions`, is omitted whole (never cut), counted and named in a warning.
    Raises TrainingError, naming the file or the trajectory and the fix, where nothing is left.
    """
    opened = [OpenTokens(tokens)]
    kept = measured(opened[0], config, max_positions)
    aside = away(kept.draws, config.validation)
    own, other = short(kept.take(~aside), config, max_positions), kept.take(aside)
    counts = own.counts.sum(axis=0).tolist()
    _report_absent(tokens.source, counts, config)
    if held_out is not None:
        opened.append(OpenTokens(held_out))
        other = measured(opened[1], config, max_positions)
        if both := pc.sum(pc.is_in(other.ids(), value_set=kept.ids())).as_py():
            logger.warning("%s: %d of its trajectories are learned from too, so they validate nothing",
                           held_out.source, both)  # fmt: skip
    if len(other.rows):
        other, by = short(other, config, max_positions), config.validation.by
        if by != "sum" and not other.counts.sum(axis=0)[TASK[Ability(by)]]:
            source = other.tokens.source
            raise TrainingError(f"{source}: no held-out example of {by}: set train.validation.by=sum")
    a_batch = max(1, round(config.batch_examples * len(own.rows) / sum(counts)))
    return TrainingData(
        items=Items(own.tokens, own.rows, config),
        steps_per_epoch=math.ceil(len(own.rows) / a_batch),
        seed=config.seed,
        held_out=Items(other.tokens, other.rows, config),
        tokens=tuple(opened),
    )


def _report_absent(path: Path, counts: Sequence[int], config: TrainConfig) -> None:
    """Says which abilities no example teaches. An empty middle that was asked for is no news."""
    absent = [task for task, count in zip(TASKS, counts, strict=True) if not count]
    if config.steps == "first_final":
        absent = [task for task in absent if task is not Ability.EXPANSION]
    if config.method == "vanilla_kd" or not absent:
        return
    sigma = "; their sigma stays where it starts" if config.weighting == "difficulty" else ""
    logger.warning("%s: no example of %s among %d: what the student learns of it, it learns from the others%s. "
                   "Trajectories of one step have only aggregation, those of two no expansion: see "
                   "`reasoning.max_steps`", path, " and ".join(absent), sum(counts), sigma)  # fmt: skip


def check_vocabulary(data: TrainingData, size: int, model: str) -> None:
    """Raises TrainingError, with the trajectory, for a token id that the model's embedding of `size` rows has not."""
    for tokens in data.tokens:
        if found := tokens.beyond(size):
            raise TrainingError(
                f"trajectory {found[0]}: token {found[1]} of the tokenizer in {model} is beyond the model's "
                f"vocabulary of {size}: the tokenizer is another model's, or the embedding was never enlarged for "
                "added tokens"
            )
