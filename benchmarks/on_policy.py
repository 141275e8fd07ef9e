"""What a teacher pays for its distributions over a trajectory's steps: each step's prompt by itself, or one step tree.

    padded      each step's prompt and chain by itself, in batches of 8, padded to the longest
    packed      the same sequences packed into rows of 4,096 tokens, nothing shared
    tree        step trees in such rows: a trajectory's passages once

Forward passes of a small Llama (random weights, float32) over chains of the annotation teacher, in turn in each round.
teacher_token_ratio is the trees' tokens over the packed ones, over all trajectories; max_logit_difference compares the
logits of every target token with those of the padded way.

    python benchmarks/on_policy.py --data FOLDER --json PATH      # FOLDER/musique
    python benchmarks/on_policy.py                                # made-up worlds
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from packing_data import build
from packing_ways import PADDED_BATCH, ROW, Key, keys_of, sequences, student, trajectories

from steper_ray.cluster import connect
from steper_ray.training.attention import IMPLEMENTATIONS, attention_inputs
from steper_ray.training.data import Item
from steper_ray.training.packing import IGNORE, fill_rows, pack_rows, supervised_columns, supervised_tokens


class Rows:
    """Trees, or examples that share nothing, in rows; one row a forward pass."""

    def __init__(self, items: Sequence[Item], vocabulary: int) -> None:
        self._model = student(vocabulary, IMPLEMENTATIONS["blocks"]).eval()
        self._trees = [tree for item in items for tree in item.trees]
        self._keys = [keys for item in items for keys in keys_of(item)]
        self._rows = fill_rows([len(tree) for tree in self._trees], ROW)
        self.logits: dict[Key, torch.Tensor] = {}

    @torch.no_grad()
    def run(self) -> None:
        for row in self._rows:
            packed = pack_rows([self._trees[i] for i in row], [list(range(len(row)))], pad_id=0)
            columns = supervised_columns(packed)
            logits = self._model(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                logits_to_keep=columns,
                use_cache=False,
                **attention_inputs(packed, "blocks"),
            ).logits
            found, _, example = supervised_tokens(logits, packed, columns)
            for number, key in enumerate(key for i in row for key in self._keys[i]):
                self.logits[key] = found[example == number]


class Padded:
    """Each sequence by itself, in padded batches; logits of every token, as a server's prompt log-probabilities."""

    def __init__(self, items: Sequence[Item], vocabulary: int) -> None:
        self._model = student(vocabulary, "sdpa").eval()
        plain = sequences(items)
        self._batches = [plain[at : at + PADDED_BATCH] for at in range(0, len(plain), PADDED_BATCH)]
        self.tokens = sum(len(batch) * max(len(one.ids) for one in batch) for batch in self._batches)
        self.logits: dict[Key, torch.Tensor] = {}

    @torch.no_grad()
    def run(self) -> None:
        for batch in self._batches:
            width = max(len(one.ids) for one in batch)
            ids = torch.tensor([one.ids + [0] * (width - len(one.ids)) for one in batch])
            seen = torch.tensor([[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in batch])
            logits = self._model(input_ids=ids, attention_mask=seen, use_cache=False).logits
            for one, rows in zip(batch, logits, strict=True):
                learned = [at - 1 for at, label in enumerate(one.labels) if label != IGNORE]
                self.logits[one.key] = rows[learned]


def measure(name: str, data: Path | None, count: int, rounds: int, folder: Path) -> dict[str, Any]:
    data_tokens, tokenizer = build(name, data, folder)
    whole = {kind: trajectories(data_tokens, kind) for kind in ("tree", "padded")}
    tokens = {kind: sum(item.tokens for item in items) for kind, items in whole.items()}
    drawn = {kind: items[:count] for kind, items in whole.items()}
    ways: dict[str, Rows | Padded] = {
        "padded": Padded(drawn["padded"], len(tokenizer)),
        "packed": Rows(drawn["padded"], len(tokenizer)),
        "tree": Rows(drawn["tree"], len(tokenizer)),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):  # the first one warms up
        for way in ways if number % 2 else reversed(ways):
            started = time.perf_counter()
            ways[way].run()
            if number:
                times[way].append(time.perf_counter() - started)
    alone = ways["padded"].logits
    assert all(way.logits.keys() == alone.keys() for way in ways.values())
    ratios = {
        way: [other / tree for other, tree in zip(times[way], times["tree"], strict=True)]
        for way in ("padded", "packed")
    }
    return {
        "trajectories": len(whole["tree"]),
        "timed": len(drawn["tree"]),
        "teacher_token_ratio": tokens["tree"] / tokens["padded"],
        "max_logit_difference": max(
            float((way.logits[key] - logits).abs().max())
            for way in ways.values()
            for key, logits in alone.items()
        ),
        "tokens_a_trajectory": {
            "packed": tokens["padded"] / len(whole["tree"]),
            "tree": tokens["tree"] / len(whole["tree"]),
        },
        "seconds_a_trajectory": {way: statistics.median(found) / count for way, found in times.items()},
        "time_over_trees": {way: [statistics.median(r), min(r), max(r)] for way, r in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="holds musique/; without it, made-up worlds")
    parser.add_argument("--trajectories", type=int, default=8, help="to time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    connect()
    name = "miniature" if args.data is None else "musique"
    with tempfile.TemporaryDirectory() as folder:
        found = measure(name, args.data, args.trajectories, args.rounds, Path(folder))
    print(json.dumps({"data": name, **found}, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps({"data": name, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
