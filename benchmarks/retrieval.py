"""Retrieval side by side: queries a second and the cost of an index at several sizes, and recall on real questions.

    python benchmarks/retrieval.py --data FOLDER --json PATH [--sizes 10000,100000,1000000] [--encoder FOLDER]

FOLDER holds sets (`musique/corpus.jsonl[.gz]` and `questions.jsonl` with `gold_ids`). The large corpora are real titles
over real sentences, drawn at random from all sets. Speed: ours, Pyserini's Lucene and bm25s with numba, each its own
English analyser, k1 0.9, b 0.4, k = 4, in turn over three rounds in one process on all its cores; `single` asks one
query at a time, `batched` all together. An index is built in a separate process; its peak is what that and its
children have for themselves, files mapped into memory left out. Recall is that of one search with the question, over
the dev questions; `dense` and `hybrid` need `--encoder`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

K1, B, K = 0.9, 0.4, 4
ASKED_ALONE, ASKED_TOGETHER, ROUNDS = 300, 2000, 3


def rows(path: Path) -> list[dict]:
    packed = path.with_name(f"{path.name}.gz")
    with gzip.open(packed, "rt") if packed.exists() else path.open() as stream:
        return [json.loads(line) for line in stream]


def write_corpus(data: Path, size: int, path: Path) -> None:
    """Passages of a drawn title and four drawn sentences."""
    passages = [row for folder in sets(data) for row in rows(folder / "corpus.jsonl")]
    sentences = [one for row in passages for one in re.split(r"(?<=[.!?]) ", row["text"]) if one.strip()]
    draw = random.Random(0)
    with path.open("w") as stream:
        for number in range(size):
            text = " ".join(draw.choices(sentences, k=4))
            stream.write(json.dumps([str(number), draw.choice(passages)["title"], text]) + "\n")


def sets(data: Path) -> list[Path]:
    return sorted(path.parent for path in data.glob("*/questions.jsonl"))


def read(path: Path) -> Iterator:
    from steper_ray.schema import Passage

    with path.open() as stream:
        for line in stream:
            yield Passage(*json.loads(line))


class Ours:
    kind = "bm25"

    def __init__(self, folder: Path) -> None:
        from steper_ray.retrieval import open_index

        self.retriever = open_index(folder, config(self.kind))

    @classmethod
    def build(cls, corpus: Path, folder: Path) -> None:
        from steper_ray.retrieval import build_index

        build_index(read(corpus), config(cls.kind), folder)

    def single(self, queries: list[str]) -> None:
        for query in queries:
            self.retriever.search([query], K)

    def batched(self, queries: list[str]) -> None:
        self.retriever.search(queries, K)


class Pyserini(Ours):
    """The searcher as Pyserini's users call it: document ids and scores, no passages."""

    kind = "lucene"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.searcher = self.retriever._searcher

    def single(self, queries: list[str]) -> None:
        for query in queries:
            self.searcher.search(query, K)

    def batched(self, queries: list[str]) -> None:
        self.searcher.batch_search(queries, [str(n) for n in range(len(queries))], K, cores())


class Bm25s:
    """With numba; its corpus of passages is not loaded, so it returns positions."""

    def __init__(self, folder: Path) -> None:
        import bm25s
        import Stemmer

        self.stemmer, self.tokenize = Stemmer.Stemmer("english"), bm25s.tokenize
        self.index = bm25s.BM25.load(folder, mmap=True)
        self.index.backend = "numba"
        self.index.activate_numba_scorer()

    @classmethod
    def build(cls, corpus: Path, folder: Path) -> None:
        import bm25s
        import Stemmer

        texts = [f"{passage.title} {passage.text}" for passage in read(corpus)]
        tokens = bm25s.tokenize(
            texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False
        )
        index = bm25s.BM25(k1=K1, b=B, method="lucene")
        index.index(tokens, show_progress=False)
        index.save(folder)

    def single(self, queries: list[str]) -> None:
        for query in queries:
            self._search([query], 1)

    def batched(self, queries: list[str]) -> None:
        self._search(queries, cores())

    def _search(self, queries: list[str], threads: int) -> None:
        tokens = self.tokenize(queries, stopwords="en", stemmer=self.stemmer, show_progress=False)
        self.index.retrieve(tokens, k=K, n_threads=threads, show_progress=False, backend_selection="numba")


WAYS = {"ours": Ours, "pyserini": Pyserini, "bm25s_numba": Bm25s}


def config(kind: str, **settings: object):
    from steper_ray.config import RetrievalConfig

    return RetrievalConfig.model_validate({"kind": kind, "k1": K1, "b": B, **settings})


def cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def build_one(way: str, corpus: Path, folder: Path) -> None:
    """Builds in this process and prints what it cost."""
    peak, done = [0], threading.Event()
    watcher = threading.Thread(target=watch, args=(peak, done))
    watcher.start()
    started = time.perf_counter()
    WAYS[way].build(corpus, folder)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cost = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(sum(one.ru_utime + one.ru_stime for one in used), 1),
        "peak_mb": round(peak[0] / 1024),
        "disk_mb": round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6),
    }
    print(json.dumps(cost))


def watch(peak: list[int], done: threading.Event) -> None:
    """The most kB that this process and its children have for themselves, files mapped into memory left out."""
    me = psutil.Process()
    while not done.wait(0.2):
        total = 0
        for process in (me, *me.children(recursive=True)):
            with suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                total += int((re.search(r"RssAnon:\s+(\d+)", status) or [0, 0])[1])
        peak[0] = max(peak[0], total)


def measure(corpus: Path, work: Path, queries: list[str]) -> tuple[dict, dict]:
    """(queries a second, cost of the index) by way."""
    costs, opened = {}, {}
    for way in WAYS:
        call = [sys.executable, __file__, "--build", way, str(corpus), str(work / way)]
        done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
        costs[way] = json.loads(done.stdout.splitlines()[-1])
        for name in ("open_seconds", "open_again_seconds"):
            started = time.perf_counter()
            opened[way] = WAYS[way](work / way)
            costs[way][name] = round(time.perf_counter() - started, 2)
        opened[way].single(queries[:5])
        opened[way].batched(queries[:50])
        print(way, costs[way], flush=True)
    times: dict[str, dict[str, list[float]]] = {way: {"single": [], "batched": []} for way in WAYS}
    for _ in range(ROUNDS):
        for mode, count in (("single", ASKED_ALONE), ("batched", ASKED_TOGETHER)):
            for way, one in opened.items():
                asked = queries[:count]
                started = time.perf_counter()
                getattr(one, mode)(asked)
                times[way][mode].append(len(asked) / (time.perf_counter() - started))
    speed = {
        way: {mode: round(statistics.median(t)) for mode, t in modes.items()} for way, modes in times.items()
    }
    print(speed, flush=True)
    return speed, costs


def recall(data: Path, work: Path, encoder: str | None) -> dict:
    from steper_ray.retrieval import build_index, kinds
    from steper_ray.retrieval.store import PassageStore
    from steper_ray.schema import Passage

    words, linked = {"k1": 1.2, "b": 0.75}, {"links": {"weight": 0.5}}
    titled = words | {"title_weight": 5}
    ways = {"bm25": ("bm25", words), "title": ("bm25", titled), "graph": ("bm25", titled | linked)}
    if encoder:
        titled["encoder"] = {"model": encoder}
        ways["dense"], ways["hybrid"] = ("dense", titled), ("hybrid", titled)
        ways["hybrid_graph"] = ("hybrid", titled | linked)
    found: dict[str, dict] = {}
    for folder in sets(data):
        passages = [Passage(row["id"], row["title"], row["text"]) for row in rows(folder / "corpus.jsonl")]
        asked = [row for row in rows(folder / "questions.jsonl") if row.get("origin_split", "dev") != "train"]
        everything = config("hybrid" if encoder else "bm25", **titled | linked)
        for name, settings in (("plain", config("bm25", **words)), ("all", everything)):
            build_index(passages, settings, work / folder.name / name)
        for way, (kind, settings) in ways.items():
            place = work / folder.name / ("plain" if way == "bm25" else "all")
            retriever = kinds.open_files(
                config(kind, **settings), place, PassageStore(place / "passages.arrow")
            )
            hits = retriever.search([row["question"] for row in asked], 10)
            at = {}
            for k in (2, 5, 10):
                shares = [
                    len(set(row["gold_ids"]) & {hit.passage.id for hit in best[:k]})
                    / len(set(row["gold_ids"]))
                    for row, best in zip(asked, hits, strict=True)
                ]
                at[str(k)] = round(100 * statistics.fmean(shares), 1)
            found.setdefault(folder.name, {})[way] = at
            print(folder.name, len(asked), "questions", way, at, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--encoder")
    options = parser.parse_args()
    if options.build:
        way, corpus, folder = options.build
        build_one(way, Path(corpus), Path(folder))
        return
    queries = [row["question"] for folder in sets(options.data) for row in rows(folder / "questions.jsonl")]
    random.Random(1).shuffle(queries)
    result: dict[str, dict] = {"queries_per_second": {}, "index": {}}
    for size in filter(None, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as work:
            corpus = Path(work) / "corpus.jsonl"
            write_corpus(options.data, int(size), corpus)
            print(f"{int(size):,} passages, {cores()} cores", flush=True)
            result["queries_per_second"][size], result["index"][size] = measure(corpus, Path(work), queries)
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as work:
        result["recall"] = recall(options.data, Path(work), options.encoder)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
