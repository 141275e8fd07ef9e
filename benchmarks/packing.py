"""What a trajectory costs to learn from: padded batches, TRL's packing, ours without sharing, and step trees.

    padded      batches of 8 examples in random order, padded to the longest, as transformers' Trainer makes them
    trl         TRL's SFTTrainer with packing (best fit decreasing) into rows of 4,096 tokens
    rows        our packing into such rows, nothing shared: `train.packing=rows`
    tree        step-tree packing: a trajectory's passages once
    dense       the same rows of trees under one dense mask: `train.attention=dense`

Forward and backward pass of the same examples on the same small Llama (random weights, float32, no optimiser), in
turn in each round, over a few trajectories drawn at random; token_ratio_to_packed is over all. The losses of all
examples and the gradients of padded, rows, tree and dense are compared; TRL takes another mean, so its mean loss of
a token is compared with that of the others. FLOPs are torch's count of the matrix products that were really run,
masked attention included.

    python benchmarks/packing.py --data FOLDER --json PATH      # FOLDER/musique, FOLDER/hotpotqa
    python benchmarks/packing.py                                # made-up worlds
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from packing_data import build
from packing_ways import Packed, Padded, Trl, sequences, trajectories
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from steper_ray.cluster import connect

_TOLERANCE = 1e-3  # relative, of the gradients of two ways, in float32


def _cpu_attention(backward: bool) -> Any:
    """FLOPs of torch's fused attention on a CPU, which torch's counter does not know."""

    def flops(*args: Any, **kwargs: Any) -> int:
        query, key, value = args[1:4] if backward else args[:3]
        causal = args[-1] if backward else kwargs.get("is_causal", args[4] if len(args) > 4 else False)
        once = sdpa_flop_count(query, key, value)
        # Two products forward; backward the scores again and four gradients' products.
        whole = once * 5 // 2 if backward else once
        return whole // 2 if causal else whole

    return flops


def count_flops(way: Any) -> int:
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    gradient = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    mapping = {attention: _cpu_attention(False), gradient: _cpu_attention(True)}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        way.run()
    return int(counter.get_total_flops())


def same_gradients(one: Any, other: Any) -> float:
    """The largest relative difference of a parameter's gradient. Raises AssertionError above the tolerance."""
    worst = 0.0
    for (name, ours), theirs in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        error = float((ours.grad - theirs.grad).norm() / theirs.grad.norm())
        assert error < _TOLERANCE, f"{name}: the gradients of two ways differ by {error:.1e}"
        worst = max(worst, error)
    return worst


def measure(name: str, data: Path | None, count: int, rounds: int, folder: Path) -> dict[str, Any]:
    data_tokens, tokenizer = build(name, data, folder)
    whole = {kind: trajectories(data_tokens, kind) for kind in ("tree", "padded")}
    tokens = {kind: sum(item.tokens for item in items) for kind, items in whole.items()}
    drawn = {kind: items[:count] for kind, items in whole.items()}
    vocabulary = len(tokenizer)
    ways = {
        "padded": Padded(drawn["padded"], vocabulary),
        "trl": Trl(drawn["padded"], tokenizer, vocabulary, folder),
        "rows": Packed(drawn["padded"], vocabulary),
        "tree": Packed(drawn["tree"], vocabulary),
        "dense": Packed(drawn["tree"], vocabulary, "dense"),
    }
    flops = {way: count_flops(run) for way, run in ways.items()}  # warms up, too
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways if number % 2 else reversed(ways):
            started = time.perf_counter()
            ways[way].run()
            times[way].append(time.perf_counter() - started)
    reference = ways["padded"].losses
    exact = [ways[way] for way in ("rows", "tree", "dense")]
    learned = {s.key: sum(label >= 0 for label in s.labels) for s in sequences(drawn["padded"])}
    token_mean = sum(reference[key] * tokens for key, tokens in learned.items()) / sum(learned.values())

    def ratio(slow: str, fast: str) -> list[float]:
        return [a / b for a, b in zip(times[slow], times[fast], strict=True)]

    return {
        "trajectories": len(whole["tree"]),
        "timed": len(drawn["tree"]),
        "examples": len(reference),
        "token_ratio_to_packed": tokens["padded"] / tokens["tree"],
        "speed_ratio_to_padded": statistics.median(ratio("padded", "tree")),
        "speed_ratio_to_trl": statistics.median(ratio("trl", "tree")),
        "speed_ratio_to_packed": statistics.median(ratio("rows", "tree")),
        "speed_ratio_of_blocks_to_dense": statistics.median(ratio("dense", "tree")),
        "ranges": {way: [min(ratio(way, "tree")), max(ratio(way, "tree"))] for way in ways if way != "tree"},
        "max_loss_difference": max(
            abs(way.losses[key] - loss) for way in exact for key, loss in reference.items()
        ),
        "trl_loss_difference": abs(ways["trl"].loss - token_mean),
        "max_gradient_difference": max(same_gradients(way, ways["padded"]) for way in exact),
        "a_trajectory": {
            way: {
                "tokens": run.tokens / len(drawn["tree"]),
                "gflops": flops[way] / len(drawn["tree"]) / 1e9,
                "seconds": statistics.median(times[way]) / len(drawn["tree"]),
            }
            for way, run in ways.items()
        },
        "seconds": times,
    }


def tell(name: str, found: dict[str, Any]) -> None:
    print(
        f"{name}: {found['trajectories']} trajectories; {found['timed']} of them timed, {found['examples']} examples"
    )
    print(f"{'':8}{'tokens':>10}{'GFLOP':>10}{'s':>8}   a trajectory")
    for way, row in found["a_trajectory"].items():
        print(f"{way:8}{row['tokens']:10,.0f}{row['gflops']:10.1f}{row['seconds']:8.3f}")
    for key, value in found.items():
        if isinstance(value, float):
            print(f"  {key} {value:.3g}")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="holds musique/ and hotpotqa/; without it, made-up worlds")
    parser.add_argument("--sets", default="musique,hotpotqa", help="which of them")
    parser.add_argument("--trajectories", type=int, default=8, help="to time, of each data set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    connect()
    names = ("miniature",) if args.data is None else tuple(args.sets.split(","))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            found[name] = measure(name, args.data, args.trajectories, args.rounds, Path(folder))
            tell(name, found[name])
    if args.json is not None:
        first = found[names[0]]
        heads = ("token_ratio_to_packed", "speed_ratio_to_padded")
        worst = max(of["max_loss_difference"] for of in found.values())
        figures = {key: first[key] for key in heads} | {"max_loss_difference": worst, "data_sets": found}
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
