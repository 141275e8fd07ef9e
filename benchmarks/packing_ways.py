"""The ways in which packing.py runs the same examples forward and backward, each on its own copy of one model.

Each way leaves a gradient in its model and knows the tokens it ran, padding included.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steper_ray.config import TrainConfig
from steper_ray.training.attention import IMPLEMENTATIONS, Attention, attention_inputs
from steper_ray.training.data import Item, load_data
from steper_ray.training.packing import IGNORE, Tree, example_losses, fill_rows, pack_rows, supervised_columns
from steper_ray.training.tokens import Tokens

ROW = 4096  # tokens
PADDED_BATCH = 8  # examples, what transformers' Trainer takes by default
POSITIONS = 8192

#: An example: its question and its number among the question's examples.
Key = tuple[str, int]


def student(vocabulary: int, attention: str) -> LlamaForCausalLM:
    """A small Llama with random weights, the same ones every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).train()


def trajectories(tokens: Tokens, packing: str) -> tuple[Item, ...]:
    """All that fit a row as a tree, in a random order that is the same for every packing."""
    config = TrainConfig.model_validate({"packing": packing, "row_tokens": ROW})
    items = {item.question_id: item for item in load_data(tokens, config, POSITIONS).items}
    trees = load_data(tokens, TrainConfig(row_tokens=ROW), POSITIONS).items
    names = [item.question_id for item in trees]
    Random(0).shuffle(names)
    return tuple(items[name] for name in names)


def keys_of(item: Item) -> list[list[Key]]:
    """Of each tree of the item the keys of its branches."""
    numbers = iter(range(10**6))
    return [[(item.question_id, next(numbers)) for _ in tree.branches] for tree in item.trees]


class Packed:
    """Ours: trees, or examples that share nothing, in rows; one row a forward pass."""

    def __init__(self, items: Sequence[Item], vocabulary: int, attention: Attention = "blocks") -> None:
        self.model, self._attention = student(vocabulary, IMPLEMENTATIONS[attention]), attention
        self._trees: list[Tree] = [tree for item in items for tree in item.trees]
        self._keys = [keys for item in items for keys in keys_of(item)]
        self._rows = fill_rows([len(tree) for tree in self._trees], ROW)
        self.losses: dict[Key, float] = {}
        self.tokens = sum(len(tree) for tree in self._trees)

    def run(self) -> None:
        self.model.zero_grad()
        for row in self._rows:
            packed = pack_rows([self._trees[i] for i in row], [list(range(len(row)))], pad_id=0)
            columns = supervised_columns(packed)
            logits = self.model(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                logits_to_keep=columns,
                use_cache=False,
                **attention_inputs(packed, self._attention),
            ).logits
            losses = example_losses(logits, packed, columns)
            losses.sum().backward()
            keys = [key for i in row for key in self._keys[i]]
            self.losses |= dict(zip(keys, losses.tolist(), strict=True))


@dataclass(slots=True)
class PlainExample:
    """One example as a sequence of its own."""

    key: Key
    ids: list[int]
    labels: list[int]


def sequences(items: Sequence[Item]) -> list[PlainExample]:
    """The examples of `items`, which share nothing (`padded`), in the order of a shuffled epoch."""
    found = []
    for item in items:
        for tree, (key,) in zip(item.trees, keys_of(item), strict=True):
            (branch,) = tree.branches
            prompt = [*tree.trunk, *branch.prompt]
            found.append(
                PlainExample(key, [*prompt, *branch.target], [IGNORE] * len(prompt) + [*branch.target])
            )
    Random(1).shuffle(found)
    return found


class Padded:
    """The plain way: batches of examples, padded to the longest, logits of every token."""

    def __init__(self, items: Sequence[Item], vocabulary: int) -> None:
        self.model = student(vocabulary, "sdpa")
        plain = sequences(items)
        self._batches = [plain[at : at + PADDED_BATCH] for at in range(0, len(plain), PADDED_BATCH)]
        self.losses: dict[Key, float] = {}
        self.tokens = sum(len(batch) * max(len(s.ids) for s in batch) for batch in self._batches)

    def run(self) -> None:
        self.model.zero_grad()
        for batch in self._batches:
            width = max(len(s.ids) for s in batch)
            ids = torch.tensor([s.ids + [0] * (width - len(s.ids)) for s in batch])
            labels = torch.tensor([s.labels + [IGNORE] * (width - len(s.ids)) for s in batch])
            seen = torch.tensor([[1] * len(s.ids) + [0] * (width - len(s.ids)) for s in batch])
            logits = self.model(input_ids=ids, attention_mask=seen, use_cache=False).logits
            of_tokens = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="none"
            ).view(len(batch), -1)
            losses = of_tokens.sum(dim=1) / (labels[:, 1:] != IGNORE).sum(dim=1)
            losses.sum().backward()
            self.losses |= dict(zip((s.key for s in batch), losses.tolist(), strict=True))


class Trl:
    """TRL's SFTTrainer with packing: its own data set, collator and loss (a mean over tokens)."""

    def __init__(
        self, items: Sequence[Item], tokenizer: PreTrainedTokenizerFast, vocabulary: int, folder: Path
    ) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from datasets import Dataset, disable_progress_bars
        from trl import SFTConfig, SFTTrainer

        disable_progress_bars()
        self.model = student(vocabulary, "sdpa")
        rows = [{"input_ids": s.ids, "labels": s.labels} for s in sequences(items)]
        arguments = SFTConfig(
            output_dir=str(folder / "trl"),
            packing=True,
            max_length=ROW,
            per_device_train_batch_size=1,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
        )
        self._trainer = SFTTrainer(
            self.model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        self._batches: list[dict[str, Any]] = list(self._trainer.get_train_dataloader())
        self.tokens = sum(batch["input_ids"].numel() for batch in self._batches)

    def run(self) -> None:
        self.model.zero_grad()
        summed, learned = 0.0, 0
        for batch in self._batches:
            loss = self._trainer.compute_loss(self.model, dict(batch))
            loss.backward()
            count = int((batch["labels"] != IGNORE).sum())
            summed, learned = summed + loss.item() * count, learned + count
        #: Mean loss of a learned token.
        self.loss = summed / learned
