"""The price of `build.logits`: the same questions asked of an engine with and without the likeliest tokens, in turn.

Both engines are loaded and reason over the same questions of the miniature world, `--rounds` times in turn. Printed are
the seconds of each round, the ratio of their sums and its least and largest value in a round; the bytes of a
trajectory's log-probabilities in Parquet; and the share of the chains' tokens that have them.

    python benchmarks/logits.py [--engine transformers|vllm] [--model NAME] [--logits 8] [--rounds 5] [--json PATH]
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from steper_ray.config import EngineConfig, PromptConfig, ReasoningConfig, RetrievalConfig, SamplingConfig
from steper_ray.schema import TRAJECTORY_SCHEMA, Trajectory, to_row


async def measure(args: argparse.Namespace) -> dict[str, object]:
    # Here, because vLLM's process imports the script again, and does not start beside numba.
    from steper_ray.corpora.miniature import make_corpus
    from steper_ray.frameworks import layouts
    from steper_ray.generation import open_generator
    from steper_ray.prompts import encoder_for
    from steper_ray.reasoning import Reasoner
    from steper_ray.retrieval.index import ensure_index
    from steper_ray.training.encoding import encode

    passages, questions = make_corpus(5, 2, args.questions // 2, "train")
    retriever = ensure_index(passages, RetrievalConfig(), Path(tempfile.mkdtemp()) / "index")
    config = EngineConfig(kind=args.engine, model=args.model, max_model_len=2048, max_batch=16, timeout_s=900)
    engines = {number: open_generator(config, number) for number in (0, args.logits)}
    reasoning = ReasoningConfig(unit="sentence", max_steps=4, few_shot=args.few_shot)
    seconds: dict[int, list[float]] = {number: [] for number in engines}
    found: list[Trajectory] = []
    for turn in range(args.rounds + 1):
        for number in sorted(engines, reverse=bool(turn % 2)):
            reasoner = Reasoner(retriever, engines[number], reasoning, SamplingConfig(max_tokens=48))
            started = time.monotonic()
            made = await asyncio.gather(*map(reasoner.run, questions))
            if turn:  # the first one warms up
                seconds[number].append(time.monotonic() - started)
            found = made if number else found
    encoder = encoder_for(engines[0].tokenizer, layouts()["ircot"], PromptConfig())  # type: ignore[arg-type]
    encoded = [encode(trajectory, encoder) for trajectory in found]
    for engine in engines.values():
        await engine.close()
    ratios = [b / a for a, b in zip(seconds[0], seconds[args.logits], strict=True)]
    words = sum(len(ids.chain) for ids in encoded)
    soft = sum(int((ids.soft_ids >= 0).any(axis=1).sum()) for ids in encoded)
    return {
        "seconds_without": seconds[0],
        "seconds_with": seconds[args.logits],
        "ratio": sum(seconds[args.logits]) / sum(seconds[0]),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "tokens_a_trajectory": words / len(found),
        "bytes_a_trajectory": stored_bytes(found),
        "share_of_tokens": soft / words,
    }


def stored_bytes(trajectories: Sequence[Trajectory]) -> float:
    """Compressed bytes of the log-probabilities of one trajectory."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([to_row(t) for t in trajectories], schema=TRAJECTORY_SCHEMA), sink)
    group = pq.ParquetFile(sink).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    stored = sum(one.total_compressed_size for one in columns if "top_logprobs" in one.path_in_schema)
    return float(stored / len(trajectories))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--model", default="miniature:teacher")
    parser.add_argument(
        "--few-shot", action="store_true", help="for a model that was not trained on the layout"
    )
    parser.add_argument("--logits", type=int, default=8)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    text = json.dumps(asyncio.run(measure(args)), indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
