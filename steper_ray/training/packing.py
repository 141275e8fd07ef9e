"""Step-tree packing: the examples of one trajectory share their passages and cost them once.

A tree is a trunk (begin, instruction, P_1 .. P_S) and one branch a step (question, cumulative chain). A branch
sees the trunk up to its step's passages, and itself; its position ids continue from that cut. Logits,
losses and gradients equal those of the separate examples. Several trees fill one row. With one branch a tree
this is plain packing. Pure torch: no tokenizer, no model, no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch

from steper_ray.training.alignment import NONE, Halves, Ints

IGNORE = -100


class Said(NamedTuple):
    """What the build's teacher said of a target's tokens from number `start` on: its k likeliest tokens (or NONE) and
    their log-probabilities, both of shape (tokens, k)."""

    start: int
    ids: Ints
    logprobs: Halves


@dataclass(frozen=True, slots=True)
class Branch:
    """One example on a trunk: sees `cut` trunk tokens, then `prompt`, and learns `target`.

    `task` indexes the ability (0 initialization, 1 expansion, 2 aggregation); `weight` scales its loss; `reward` (0 to
    1) is that of a chain of the student's own.
    """

    cut: int
    prompt: Sequence[int]
    target: Sequence[int]
    task: int
    weight: float = 1.0
    reward: float = 0.0
    said: Said | None = None


@dataclass(frozen=True, slots=True)
class Tree:
    """The examples that share one trunk of token ids.

    `taught` has the same targets behind other prompts, where their teacher reads other ones than the student.
    """

    trunk: Sequence[int]
    branches: tuple[Branch, ...]
    taught: Tree | None = None

    def __len__(self) -> int:
        return len(self.trunk) + sum(len(b.prompt) + len(b.target) for b in self.branches)


class Span(NamedTuple):
    """The place of a tree in its row: `size` tokens from `start`, the first `trunk` of them its trunk.

    `plain` if no token of it is hidden from a later one: one branch, on the whole trunk.
    """

    start: int
    trunk: int
    size: int
    plain: bool


@dataclass(slots=True)
class Packed:
    """Rows ready for a causal language model. Shapes: (rows, length) unless said otherwise.

    `tree`, `branch` and `cut` define attention (see `attention.py`); `example` is the index of the example
    a supervised token belongs to, over the whole batch, or -1; `task`, `weight`, `reward` and `chain`, the index of an
    example's tree, have shape (examples,). `spans` are the trees of each row; `taught` the same targets in the same
    order, as their teacher reads them. `soft_ids` and `soft_logprobs` have shape (supervised tokens, k), row by row:
    what the build's teacher said of each, NONE where it said nothing; None where it said nothing at all.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    tree: torch.Tensor
    branch: torch.Tensor
    cut: torch.Tensor
    example: torch.Tensor
    task: torch.Tensor
    weight: torch.Tensor
    reward: torch.Tensor
    chain: torch.Tensor
    spans: tuple[tuple[Span, ...], ...]
    taught: Packed | None = None
    soft_ids: torch.Tensor | None = None
    soft_logprobs: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Packed:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        moved: dict[str, Any] = {name: v.to(device) for name, v in values if isinstance(v, torch.Tensor)}
        return replace(self, **moved)


def fill_rows(sizes: Sequence[int], length: int) -> list[list[int]]:
    """First-fit decreasing: indices of items grouped into rows of at most `length` tokens.

    Raises ValueError naming the first item that is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        size = sizes[index]
        if size > length:
            raise ValueError(f"item {index} has {size} tokens, a row holds {length}: raise the row length")
        row = next((r for r, free in enumerate(room) if free >= size), None)
        if row is None:
            rows.append([])
            room.append(length)
            row = len(rows) - 1
        rows[row].append(index)
        room[row] -= size
    return rows


def pack(trees: Sequence[Tree], length: int, pad_id: int) -> Packed:
    """Packs trees into as few rows of at most `length` tokens as first-fit finds.

    Rows are padded to the longest of them. Examples are numbered in the order of `trees` and their branches.
    """
    return pack_rows(trees, fill_rows([len(tree) for tree in trees], length), pad_id)


def pack_rows(trees: Sequence[Tree], rows: Sequence[Sequence[int]], pad_id: int) -> Packed:
    """As `pack`, with the rows given: each a list of indices of `trees`, each tree in exactly one row."""
    first_example = [0]
    for tree in trees:
        first_example.append(first_example[-1] + len(tree.branches))
    width = max(sum(len(trees[i]) for i in row) for row in rows)
    shape = (len(rows), width)
    ids = torch.full(shape, pad_id)
    labels, example = torch.full(shape, IGNORE), torch.full(shape, -1)
    position, cut = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    tree_id, branch_id = torch.full(shape, -1), torch.full(shape, -1)
    spans: list[tuple[Span, ...]] = []
    placed_branches: list[Branch] = []
    for r, row in enumerate(rows):
        at, placed = 0, list[Span]()
        for t in row:
            tree = trees[t]
            size = len(tree.trunk)
            plain = len(tree.branches) == 1 and tree.branches[0].cut == size
            placed.append(Span(at, size, len(tree), plain))
            span = slice(at, at + size)
            ids[r, span] = torch.tensor(tree.trunk)
            position[r, span] = torch.arange(size)
            tree_id[r, at : at + len(tree)] = t
            cut[r, span] = size
            at += size
            for b, branch in enumerate(tree.branches):
                size = len(branch.prompt) + len(branch.target)
                span = slice(at, at + size)
                ids[r, span] = torch.tensor([*branch.prompt, *branch.target])
                position[r, span] = torch.arange(branch.cut, branch.cut + size)
                branch_id[r, span] = b
                cut[r, span] = branch.cut
                # The token before the target predicts its first token: labels are already shifted.
                learn = slice(at + len(branch.prompt) - 1, at + size - 1)
                labels[r, learn] = torch.tensor(branch.target)
                example[r, learn] = first_example[t] + b
                placed_branches.append(branch)
                at += size
        spans.append(tuple(placed))
    branches = [branch for tree in trees for branch in tree.branches]
    soft_ids, soft_logprobs = _said(placed_branches)
    return Packed(
        input_ids=ids,
        position_ids=position,
        labels=labels,
        tree=tree_id,
        branch=branch_id,
        cut=cut,
        example=example,
        task=torch.tensor([b.task for b in branches]),
        weight=torch.tensor([b.weight for b in branches], dtype=torch.float32),
        reward=torch.tensor([b.reward for b in branches], dtype=torch.float32),
        chain=torch.tensor([t for t, tree in enumerate(trees) for _ in tree.branches]),
        spans=tuple(spans),
        taught=_taught(trees, rows, pad_id),
        soft_ids=soft_ids,
        soft_logprobs=soft_logprobs,
    )


def _said(branches: Sequence[Branch]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Of all targets, in the order of their tokens in the rows."""
    width = min((branch.said.ids.shape[1] for branch in branches if branch.said is not None), default=0)
    if not width:
        return None, None
    shape = sum(len(branch.target) for branch in branches), width
    ids, logprobs = torch.full(shape, NONE), torch.zeros(shape)
    at = 0
    for branch in branches:
        if branch.said is not None:
            start = at + branch.said.start
            own = slice(start, start + len(branch.said.ids))
            ids[own] = torch.tensor(branch.said.ids[:, :width], dtype=torch.long)
            logprobs[own] = torch.tensor(branch.said.logprobs[:, :width], dtype=torch.float32)
        at += len(branch.target)
    return ids, logprobs


def _taught(trees: Sequence[Tree], rows: Sequence[Sequence[int]], pad_id: int) -> Packed | None:
    if all(tree.taught is None for tree in trees):
        return None
    return pack_rows([tree.taught or tree for tree in trees], rows, pad_id)


def supervised_columns(packed: Packed) -> torch.Tensor:
    """Indices of the columns that hold a supervised token in any row: the only logits worth computing."""
    return (packed.example >= 0).any(dim=0).nonzero()[:, 0]


def example_losses(logits: torch.Tensor, packed: Packed, columns: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy of each example's target, shape (examples,), float32.

    `logits` has shape (rows, length, vocabulary), or (rows, len(columns), vocabulary) where `columns` is given.
    """
    supervised, labels, which = supervised_tokens(logits, packed, columns)
    token_loss = torch.nn.functional.cross_entropy(supervised.float(), labels, reduction="none")
    return example_means(token_loss, which, packed)


def example_means(values: torch.Tensor, which: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Means over each example's target tokens, shape (examples,). `values` are of tokens, `which` their examples."""
    sums = torch.zeros(len(packed.task), device=values.device).index_add(0, which, values)
    return sums / torch.bincount(which, minlength=len(packed.task))


def supervised_tokens(
    logits: torch.Tensor, packed: Packed, columns: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (as in `example_losses`), labels and example of each supervised token, row by row."""
    example, labels = packed.example, packed.labels
    if columns is not None:
        example, labels = example[:, columns], labels[:, columns]
    keep = example >= 0
    return logits[keep], labels[keep], example[keep]
