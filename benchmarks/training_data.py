"""What training data costs to start with: tokenising it once, and opening it in each worker.

Synthetic trajectories (4 steps of 4 passages of 90 words of the miniature's vocabulary) are written as a build writes
them. Measured are the time a core takes to tokenise them; and with COPIES of the token files under new ids, which is
cheaper than tokenising as many, the time of a rerun that finds all files whole, and in a fresh process the time and
memory of opening TrainingData and the time of reading a batch.

    python benchmarks/training_data.py --trajectories 10240 --copies 100 --json PATH      # 1M, 15 GB of disk
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
from transformers import AutoTokenizer

from steper_ray.config import TrainConfig
from steper_ray.core.files import file_sha256, write_table
from steper_ray.corpora.miniature import make_corpus
from steper_ray.models import resolve_model
from steper_ray.schema import TRAJECTORY_SCHEMA, Hit, Passage, Question, Step, StopReason, Trajectory, to_row
from steper_ray.training.data import load_data
from steper_ray.training.sources import sources_of
from steper_ray.training.token_writer import write_tokens
from steper_ray.training.tokens import Tokens, is_whole

STEPS, K, BATCHES, A_PART = 4, 4, 20, 1024
STUDENT = "miniature:base"


def synthetic() -> Iterator[Trajectory]:
    """Trajectories without end, STEPS steps of K passages of about 90 words each."""
    rng = random.Random(0)
    passages, _ = make_corpus(0, 20, 4, "train")
    words = [word for passage in passages for word in passage.text.split()]
    pool = [
        Passage(f"p{n}", rng.choice(passages).title, " ".join(rng.sample(words, 90))) for n in range(20_000)
    ]
    for number in range(10**9):
        drawn = rng.sample(pool, STEPS * K)
        steps = tuple(
            Step(
                step + 1,
                "query",
                tuple(Hit(passage, 1.0) for passage in drawn[step * K : (step + 1) * K]),
                " ".join(rng.sample(words, 12)) + ".",
            )
            for step in range(STEPS)
        )
        question = Question(f"q{number:08}", f"Who is number {number} of all?", ("Cem",))
        yield Trajectory(question, "ircot", steps, "Cem", StopReason.ANSWERED)


@dataclass(slots=True)
class Memory:
    """Bytes of this process: its own, and of files that all processes share."""

    own: int
    shared: int

    @classmethod
    def now(cls) -> Memory:
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return cls(*(int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssFile")))


def open_data(files: list[Path], source: Path) -> dict[str, float]:
    """What one worker does at its start, in this process."""
    started = time.perf_counter()
    assert all(map(is_whole, files))
    rerun = time.perf_counter() - started
    before, started, busy = Memory.now(), time.perf_counter(), time.process_time()
    data = load_data(Tokens(source, tuple(files)), TrainConfig(row_tokens=10**6), 10**6)
    seconds, core_seconds, opened = time.perf_counter() - started, time.process_time() - busy, Memory.now()
    started = time.perf_counter()
    tokens = sum(item.tokens for step in range(BATCHES) for item in data.batch(step).items)
    return {
        "rerun_s": rerun,
        "open_s": seconds,
        "open_core_s": core_seconds,
        "open_own_bytes": opened.own - before.own,
        "open_shared_bytes": opened.shared - before.shared,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "batch_ms": 1000 * (time.perf_counter() - started) / BATCHES,
        "tokens_a_batch": tokens / BATCHES,
        "trajectories": len(data.items),
    }


def copy_tokens(file: Path, number: int) -> Path:
    """A token file with the same rows under other ids."""
    copy = file.with_stem(f"{file.stem}-{number}")
    with pa.memory_map(str(file)) as mapped, pa.ipc.open_file(mapped) as reader:
        table = reader.read_all()
    ids = pa.array([f"{name}-{number}" for name in table.column("id").to_pylist()])
    table = table.set_column(0, "id", ids)
    with pa.OSFile(str(copy), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    note = json.loads(file.with_suffix(".json").read_text())
    note |= {"sha256": file_sha256(copy), "bytes": copy.stat().st_size}
    copy.with_suffix(".json").write_text(json.dumps(note))
    return copy


def measure(count: int, copies: int, folder: Path) -> dict[str, object]:
    if not (folder / "kept").exists():
        rows = map(to_row, islice(synthetic(), count))
        for number in range(-(-count // A_PART)):
            table = pa.Table.from_pylist(list(islice(rows, A_PART)), schema=TRAJECTORY_SCHEMA)
            write_table(folder / "kept" / f"part-{number:05}.parquet", table)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(STUDENT))
    sources = sources_of(folder / "kept")
    files = [folder / "tokens" / f"{source.sha256}.arrow" for source in sources]
    started = time.process_time()
    for source, file in zip(sources, files, strict=True):
        if not is_whole(file):
            write_tokens(source, file, tokenizer)
    tokenising = time.process_time() - started
    files += [copy_tokens(file, number) for number in range(1, copies) for file in files]
    assert all(map(is_whole, files))  # reads all of them once
    command = [sys.executable, __file__, "--open", str(folder)]
    opened = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        "files": len(files),
        "tokenise_core_s": tokenising,
        "trajectories_a_core_second": count / tokenising,
        "token_bytes": sum(file.stat().st_size for file in files),
        "parquet_bytes": sum(source.path.stat().st_size for source in sources),
        **opened,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trajectories", type=int, default=10_240)
    parser.add_argument("--copies", type=int, default=10, help="of the token files, under other ids")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--folder", type=Path, help="where the data is made and stays; by default a temporary one"
    )
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open is not None:
        files = sorted((given.open / "tokens").glob("*.arrow"))
        print(json.dumps(open_data(files, given.open / "kept")))
        return
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(given.trajectories, given.copies, given.folder or Path(temporary))
    text = json.dumps(found, indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
