"""Step-tree packing against one padded row an example, and attention over blocks against a dense mask.

The same losses and gradients: how much sooner. Runs the forward and backward pass of optimiser steps of the
miniature's StepER student, as its trainer cuts them, without the optimiser. Examples: gold chains over really
retrieved passages of miniature worlds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from paired import ratios, tell
from transformers import AutoModelForCausalLM, AutoTokenizer

from steper_ray import stages
from steper_ray.cluster import connect
from steper_ray.config import Config, TrainConfig
from steper_ray.models import resolve_model
from steper_ray.training.attention import IMPLEMENTATIONS, attention_inputs
from steper_ray.training.data import load_data
from steper_ray.training.packing import example_losses, pack_rows, supervised_columns
from steper_ray.training.shares import split

BATCHES, ROUNDS, ROW = 3, 5, 2048


def examples(folder: Path) -> Path:
    """Step-wise examples of 20 worlds, with no model."""
    config = Config.model_validate(
        {
            "run_dir": folder,
            "corpus": {"miniature": {"worlds": 20}},
            "build": {"teacher": "annotation", "engines": 1},
        }
    )
    connect()
    stages.build(config)
    return stages.examples_folder(config)


class Way:
    """One way of running the same batches."""

    def __init__(self, folder: Path, packing: str, attention: str = "blocks") -> None:
        model = resolve_model("miniature:base")
        self._config = TrainConfig.model_validate(
            {"packing": packing, "attention": attention, "batch_examples": 40, "row_tokens": ROW}
        )
        self._data = load_data(folder, AutoTokenizer.from_pretrained(model), self._config, 2048)
        self.model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation=IMPLEMENTATIONS[self._config.attention]
        ).train()

    def run(self) -> None:
        """Leaves the gradient of the summed example losses of all batches in the model."""
        self.model.zero_grad()
        self.tokens = 0
        for step in range(BATCHES):
            (share,) = split(self._data.batch(step), 1, self._config)
            for rows in share.micro_batches:
                chosen = [index for row in rows for index in row]
                place = {index: at for at, index in enumerate(chosen)}
                trees = [share.trees[index] for index in chosen]
                packed = pack_rows(trees, [[place[i] for i in row] for row in rows], pad_id=0)
                columns = supervised_columns(packed)
                logits = self.model(
                    input_ids=packed.input_ids,
                    position_ids=packed.position_ids,
                    logits_to_keep=columns,
                    **attention_inputs(packed, self._config.attention),
                ).logits
                example_losses(logits, packed, columns).sum().backward()
                self.tokens += packed.input_ids.numel()


def assert_same_gradients(one: Way, other: Way) -> None:
    for (name, ours), theirs in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        error = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
        assert error < 1e-4, f"{name}: the gradients of the two ways differ by {error:.1e}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = examples(Path(folder))
        tree, padded, dense = Way(made, "tree"), Way(made, "padded"), Way(made, "tree", "dense")
    packing = ratios(tree.run, padded.run, ROUNDS)
    assert_same_gradients(tree, padded)
    attention = ratios(tree.run, dense.run, ROUNDS)
    assert_same_gradients(tree, dense)
    print(f"tokens of {BATCHES} steps, padding included: tree {tree.tokens:,}, padded {padded.tokens:,}")
    tell("time of padded rows over time of trees, same gradients", packing)
    tell(f"time of a dense mask over time of blocks, rows of {ROW} tokens, same gradients", attention)


if __name__ == "__main__":
    main()
