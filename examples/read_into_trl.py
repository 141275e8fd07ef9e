"""Reads a data set that `steper export RUN_DIR OUT` wrote, as TRL's SFTTrainer takes it.

python examples/read_into_trl.py OUT
"""

from __future__ import annotations

import sys

from datasets import Dataset, load_dataset


def main(folder: str) -> Dataset:
    """The columns `prompt` and `completion`: SFTTrainer(model, train_dataset=main(folder)) learns the completion."""
    data = load_dataset(folder, "examples", split="train")
    assert isinstance(data, Dataset)
    return data.select_columns(["prompt", "completion"])


if __name__ == "__main__":
    print(main(sys.argv[1])[0])
