"""Step-wise examples -> trees of token ids -> batches: the same ones, in the same order, on every worker.

Every worker reads all examples and computes the whole plan of every step (which trajectories here, which worker and
which rows in shares.py) from (seed, step) alone. So nothing has to be communicated or saved to resume at any step, and
every worker knows the counts of the global batch and how many forward passes the others run. No model, no Ray.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from random import Random

from steper_ray.config import TrainConfig
from steper_ray.errors import TrainingError
from steper_ray.prompt import LAYOUTS, PromptEncoder, Tokenizer
from steper_ray.schema import Ability, Passage, StepExample
from steper_ray.training.examples import Steps, hold_out, read_trajectories
from steper_ray.training.objective import N_TASKS, TASKS
from steper_ray.training.packing import Branch, Tree

logger = logging.getLogger(__name__)

_NAMED = 10  # question ids that a message spells out
_TASK = {task.value: number for number, task in enumerate(TASKS)}


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


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Trajectories sorted by question id, how they are cut into steps, and those that are not learned from."""

    items: tuple[Item, ...]
    steps_per_epoch: int
    seed: int
    held_out: tuple[Item, ...] = ()

    def batch(self, step: int) -> Batch:
        """The batch of optimiser step `step` (from 0), a function of the seed and the step alone.

        An epoch is a shuffle of all trajectories cut into `steps_per_epoch` batches whose sizes differ by one at
        most, so no epoch ends in a batch of a few.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        order = _order(len(self.items), self.seed, epoch)
        low = index * len(order) // self.steps_per_epoch
        high = (index + 1) * len(order) // self.steps_per_epoch
        return batch_of([self.items[i] for i in order[low:high]], epoch)


def batch_of(items: Sequence[Item], epoch: int = 0) -> Batch:
    """At least one trajectory as one batch."""
    counts = tuple(sum(column) for column in zip(*(item.counts() for item in items), strict=True))
    return Batch(epoch, tuple(items), counts)


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(size))
    Random(f"{seed}-{epoch}").shuffle(order)
    return tuple(order)


def load_data(path: Path, tokenizer: Tokenizer, config: TrainConfig, max_positions: int) -> TrainingData:
    """The examples of a Parquet file or folder as batches of trees for `config`, less those it holds out.

    A trajectory with a tree longer than `row_tokens`, or an example longer than the model's `max_positions`, is
    left out whole (never cut), counted and named in a warning. Raises TrainingError, naming the file or the
    question and the fix, where nothing is left or an example contradicts its trajectory.
    """
    if tokenizer.eos_token_id is None:
        raise TrainingError(
            f"the tokenizer of {config.student} has no end-of-sequence token, so its student could never learn where a "
            "step ends: name one as `eos_token` in its tokenizer_config.json"
        )
    validation = config.validation
    kept = read_trajectories(path, config)
    away = hold_out(kept, validation)
    items = _items(
        path, {q: steps for q, steps in kept.items() if q not in away}, tokenizer, config, max_positions
    )
    counts = [sum(column) for column in zip(*(item.counts() for item in items), strict=True)]
    _report_absent(path, counts, config)
    if validation.examples is not None:
        path, away = validation.examples, read_trajectories(validation.examples, config)
        if both := kept.keys() & away.keys():
            logger.warning(
                "%s: %d of its trajectories are learned from too, so they validate nothing", path, len(both)
            )
    held_out = _items(path, away, tokenizer, config, max_positions) if away else ()
    if validation.by != "sum" and held_out and not batch_of(held_out).counts[_TASK[validation.by]]:
        raise TrainingError(f"{path}: no held-out example of {validation.by}: set train.validation.by=sum")
    examples = sum(counts)
    batch_trajectories = max(1, round(config.batch_examples * len(items) / examples))
    return TrainingData(items, math.ceil(len(items) / batch_trajectories), config.seed, held_out)


def _items(
    path: Path, trajectories: Steps, tokenizer: Tokenizer, config: TrainConfig, max_positions: int
) -> tuple[Item, ...]:
    """As trees, less those that are too long."""
    encoders = {name: PromptEncoder(tokenizer, layout) for name, layout in LAYOUTS.items()}
    items = [_item(q, steps, encoders, config.packing) for q, steps in sorted(trajectories.items())]
    short = [item for item in items if _fits(item, config.row_tokens, max_positions)]
    _report_long(path, items, short, config.row_tokens, max_positions)
    return tuple(short)


def _item(question: str, steps: list[StepExample], encoders: dict[str, PromptEncoder], packing: str) -> Item:
    last = steps[-1]
    for number, example in enumerate(steps):
        if example.passages != last.passages[: len(example.passages)]:
            raise TrainingError(
                f"question {question}: the passages of example {example.id} are not the first ones of {last.id}: "
                "the rows of one question_id must be the steps of one trajectory"
            )
        if number and example.step == steps[number - 1].step:
            raise TrainingError(
                f"question {question}: two examples of step {example.step} ({steps[number - 1].id}, {example.id}): "
                "give every trajectory a question_id of its own"
            )
    encoder = encoders.get(last.framework)
    if encoder is None:
        raise TrainingError(
            f"question {question}: unknown framework {last.framework!r}: {', '.join(LAYOUTS)}"
        )
    trunk = array("i", encoder.trunk(_flat(last.passages)))
    branches = tuple(
        Branch(
            cut=len(encoder.trunk(_flat(example.passages))),
            prompt=array("i", encoder.question(example.question)),
            target=array("i", encoder.target(example.chain)),
            task=TASKS.index(example.ability),
        )
        for example in steps
    )
    if packing == "tree":
        return Item(question, (Tree(trunk, branches),))
    return Item(question, tuple(Tree(trunk[: branch.cut], (branch,)) for branch in branches))


def _flat(passages: Sequence[Sequence[Passage]]) -> list[Passage]:
    return [passage for step in passages for passage in step]


def _fits(item: Item, row_tokens: int, max_positions: int) -> bool:
    return all(
        len(tree) <= row_tokens
        and all(b.cut + len(b.prompt) + len(b.target) <= max_positions for b in tree.branches)
        for tree in item.trees
    )


def _report_long(
    path: Path, items: list[Item], short: list[Item], row_tokens: int, max_positions: int
) -> None:
    kept = {item.question_id for item in short}
    left_out = [item for item in items if item.question_id not in kept]
    if not left_out:
        return
    longest = max(len(tree) for item in left_out for tree in item.trees)
    fix = f"raise `train.row_tokens` ({row_tokens}; the longest needs {longest}; the model takes {max_positions})"
    if not short:
        raise TrainingError(f"{path}: all {len(items)} trajectories are too long: {fix}")
    named = ", ".join(item.question_id for item in left_out[:_NAMED])
    more = ", ..." if len(left_out) > _NAMED else ""
    logger.warning("%d of %d trajectories are too long and left out (%s%s): %s", len(left_out), len(items),
                   named, more, fix)  # fmt: skip


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
    """Raises TrainingError, with the question, for a token id that the model's embedding of `size` rows has not."""
    for item in data.items:
        for tree in item.trees:
            pieces = (piece for b in tree.branches for piece in (b.prompt, b.target))
            highest = max(chain(tree.trunk, *pieces))
            if highest >= size:
                raise TrainingError(
                    f"question {item.question_id}: token {highest} of the tokenizer in {model} is beyond the model's "
                    f"vocabulary of {size}: the tokenizer is another model's, or the embedding was never enlarged for "
                    "added tokens"
                )
