"""Vectors in clusters against all vectors: milliseconds a query, and how many of the exact search's best are found.

    python benchmarks/clusters.py --data FOLDER --encoder FOLDER --json PATH [--vectors 300000] [--passages 4000]

FOLDER holds sets (`musique/corpus.jsonl[.gz]`, `questions.jsonl`). `--passages` of their passages, drawn at
random, and 200 questions are encoded; each vector is repeated with noise (a cosine of about 0.8 to its own) up to
`--vectors`. Both ways search the same vectors one query at a time, in turn over three rounds in one process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from retrieval import rows, sets

from steper_ray.config import ClustersConfig, EncoderConfig
from steper_ray.retrieval import clusters, dense, parts
from steper_ray.retrieval.encoder import encoder

PROBES, QUERIES, ROUNDS, PART, NOISE = (8, 32, 128), 200, 3, 50_000, 0.75


def repeated(vectors: np.ndarray, total: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    chosen = vectors[draw.integers(0, len(vectors), total)]
    noise = draw.standard_normal(chosen.shape, dtype=np.float32)
    noise *= NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    chosen = chosen + noise
    return (chosen / np.linalg.norm(chosen, axis=1, keepdims=True)).astype(np.float16)


def exact(vectors: np.ndarray, vector: np.ndarray, k: int) -> list[int]:
    """As `DenseRanker` does without clusters."""
    found: dense.Ranking = []
    for at in range(0, len(vectors), 1 << 16):
        block = vectors[at : at + (1 << 16)].astype(np.float32)
        found = dense._best([*found, *dense._top(block @ vector, at, k)], k)
    return [position for position, _ in found]


def share(found: list[list[int]], best: list[list[int]], k: int) -> float:
    """How many of the best k are found, in %."""
    shares = [len({*mine[:k]} & {*theirs[:k]}) / k for mine, theirs in zip(found, best, strict=True)]
    return round(100 * statistics.fmean(shares), 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--vectors", type=int, default=300_000)
    parser.add_argument("--passages", type=int, default=4000)
    options = parser.parse_args()
    draw = random.Random(0)
    texts = [
        f"{row['title']} {row['text']}"
        for folder in sets(options.data)
        for row in rows(folder / "corpus.jsonl")
    ]
    asked = [row["question"] for folder in sets(options.data) for row in rows(folder / "questions.jsonl")]
    model = encoder(EncoderConfig(model=options.encoder))
    vectors = repeated(model.passages(draw.sample(texts, options.passages)), options.vectors)
    queries = model.queries(draw.sample(asked, QUERIES))
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        made = [work / f"{at}.npz" for at in range(0, len(vectors), PART)]
        for number, path in enumerate(made):
            parts.save(path, vectors[PART * number : PART * number + PART])
        started = time.process_time()
        clusters.build(made, work, work, ClustersConfig(), len(vectors))
        result = {"vectors": len(vectors), "build_cpu_s": round(time.process_time() - started, 1)}
        np.save(work / "exact.npy", vectors)
        whole = np.load(work / "exact.npy", mmap_mode="r")
        ways = {"exact": lambda query, k: exact(whole, query, k)}
        for probes in PROBES:
            near = clusters.Clusters(work, probes)
            ways[f"{probes} probes"] = lambda query, k, near=near: [
                position for position, _ in dense._search(near, query, k)
            ]
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        found: dict[str, list[list[int]]] = {}
        for _ in range(ROUNDS):
            for way, search in ways.items():
                started = time.perf_counter()
                found[way] = [search(query, 100) for query in queries]
                seconds[way].append((time.perf_counter() - started) / QUERIES)
    for way in ways:
        result[way] = {
            "ms": round(1000 * statistics.median(seconds[way]), 2),
            "times_as_fast": round(statistics.median(seconds["exact"]) / statistics.median(seconds[way]), 1),
            "found_of_best_5": share(found[way], found["exact"], 5),
            "found_of_best_100": share(found[way], found["exact"], 100),
        }
        print(way, result[way], flush=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
