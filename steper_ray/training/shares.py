"""One batch over the workers: which rows each runs in which forward pass. No model, no Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from steper_ray.config import TrainConfig
from steper_ray.training.data import Batch
from steper_ray.training.packing import Branch, Packed, Tree, fill_rows, pack_rows

Rows = list[list[int]]


@dataclass(frozen=True, slots=True)
class Share:
    """One worker's work in one step: `micro_batches[i]` are the rows, lists of indices of `trees`, of forward i."""

    trees: tuple[Tree, ...]
    micro_batches: tuple[Rows, ...]

    def packed(self, filler: Tree) -> Iterator[Packed]:
        """Every micro-batch as tensors; one without rows holds `filler` alone."""
        for rows in self.micro_batches:
            chosen = [index for row in rows for index in row]
            trees = [self.trees[index] for index in chosen] or [filler]
            place = {index: at for at, index in enumerate(chosen)}
            yield pack_rows(trees, [[place[i] for i in row] for row in rows] or [[0]], pad_id=0)


def split(batch: Batch, workers: int, config: TrainConfig) -> list[Share]:
    """The batch over the workers: longest trajectory first, each to the worker with the fewest tokens so far.

    Every share has the same number of micro-batches, because ZeRO-3 needs all workers in every forward and
    backward pass; a share that has run out of rows continues with empty ones (see `filler`).
    """
    loads = [0] * workers
    trees: list[list[Tree]] = [[] for _ in range(workers)]
    for item in sorted(batch.items, key=lambda item: (-item.tokens, item.question_id)):
        worker = loads.index(min(loads))
        loads[worker] += item.tokens
        trees[worker].extend(item.trees)
    planned = [_micro_batches(mine, config) for mine in trees]
    most = max(len(micro_batches) for micro_batches in planned)
    return [
        Share(tuple(mine), (*micro_batches, *([[]] * (most - len(micro_batches)))))
        for mine, micro_batches in zip(trees, planned, strict=True)
    ]


def _micro_batches(trees: Sequence[Tree], config: TrainConfig) -> list[Rows]:
    """Rows of similar length together, so that little is padded."""
    sizes = [len(tree) for tree in trees]
    rows = (
        [[i] for i in range(len(trees))]
        if config.packing == "padded"
        else fill_rows(sizes, config.row_tokens)
    )
    rows.sort(key=lambda row: (-sum(sizes[i] for i in row), row))
    step = config.rows_per_micro_batch
    return [rows[at : at + step] for at in range(0, len(rows), step)]


def filler(token: int) -> Tree:
    """A tree of weight 0: what a worker without rows runs so that the others are not left waiting."""
    return Tree((token,), (Branch(1, (token,), (token,), task=0, weight=0.0),))
