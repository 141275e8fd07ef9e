"""Step-tree packing against one padded row an example: the same losses and gradients, how much sooner.

Runs the forward and backward pass of optimiser steps of the miniature's StepER student, as its trainer cuts them,
without the optimiser. Examples: gold chains over really retrieved passages of miniature worlds. On a CPU and at this
width attention takes most of the time, so rows are kept short; a wide model's time follows the tokens.
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
from steper_ray.training.data import load_data, split
from steper_ray.training.packing import attention_mask, example_losses, pack_rows, supervised_columns

BATCHES, ROUNDS = 3, 5


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
    """One packing of the same batches."""

    def __init__(self, folder: Path, packing: str) -> None:
        model = resolve_model("miniature:base")
        self._config = TrainConfig.model_validate(
            {"packing": packing, "batch_examples": 40, "row_tokens": 1152}
        )
        self._data = load_data(folder, AutoTokenizer.from_pretrained(model), self._config, 2048)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()

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
                    attention_mask=attention_mask(packed),
                    logits_to_keep=columns,
                ).logits
                example_losses(logits, packed, columns).sum().backward()
                self.tokens += packed.input_ids.numel()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = examples(Path(folder))
        tree, padded = Way(made, "tree"), Way(made, "padded")
    found = ratios(tree.run, padded.run, ROUNDS)
    for (name, one), other in zip(tree.model.named_parameters(), padded.model.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        error = (one.grad - other.grad).norm() / other.grad.norm()
        assert error < 1e-4, f"{name}: the gradients of the two ways differ by {error:.1e}"
    print(f"tokens of {BATCHES} steps, padding included: tree {tree.tokens:,}, padded {padded.tokens:,}")
    tell("time of padded rows over time of trees, same gradients", found)


if __name__ == "__main__":
    main()
