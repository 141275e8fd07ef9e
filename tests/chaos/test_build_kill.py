"""A build whose driver is killed halfway goes on where it was: nothing lost, nothing made twice."""

import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

N_QUESTIONS = 120
SETTINGS = [
    "build.teacher=annotation",
    "build.shard_size=1",
    "build.in_flight=1",
    "corpus.miniature.worlds=12",
    "corpus.miniature.questions_per_world=10",
]
# Builds each run_dir it is given, all in one Ray of its own, and prints how many shards each build made.
SCRIPT = """
    import json, sys
    import ray
    from steper_ray.config.file import load_config
    from steper_ray.distillation.pipeline import build_data

    if __name__ == "__main__":
        temp, folders, settings = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=temp)
        made = [build_data(load_config(None, [*settings, f"run_dir={f}"])).shards_run for f in folders]
        ray.shutdown()
        print(json.dumps(made))
"""


@pytest.fixture
def ray_folder():
    """Short: a socket's path may have 107 characters, and pytest's own folders leave too few of them."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def command(ray_folder, *folders):
    return [sys.executable, "-c", textwrap.dedent(SCRIPT), ray_folder, ",".join(map(str, folders)), *SETTINGS]


def shard_files(folder):
    """Name -> the file's inode and time: both change when a shard is written again."""
    stats = {p.name: p.stat() for p in (folder / "data" / "trajectories").glob("shard-*.parquet")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def manifests(folder):
    return list((folder / "data" / "trajectories").glob("shard-*.json"))


def wait_for(condition, process, seconds=240.0):
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail("the build ended, or hung, before its first shard was committed")
        time.sleep(0.002)


def kill_driver(process):
    """SIGKILL: the driver cannot tidy up. What Ray started beside it is then reaped."""
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for worker in psutil.wait_procs(workers, timeout=30)[1]:
        worker.kill()


def examples(folder):
    return [p.read_bytes() for p in sorted((folder / "data" / "examples").glob("*.parquet"))]


def test_a_killed_build_loses_nothing_and_repeats_nothing(tmp_path, ray_folder):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen(command(ray_folder, cut), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: manifests(cut), process)
    kill_driver(process)
    committed = {p.stem for p in manifests(cut)}
    before = {name: stat for name, stat in shard_files(cut).items() if Path(name).stem in committed}
    assert 1 <= len(before) < N_QUESTIONS
    assert not examples(cut)

    done = subprocess.run(command(ray_folder, cut, whole), capture_output=True, text=True, check=True)
    made = json.loads(done.stdout.splitlines()[-1])
    assert made == [N_QUESTIONS - len(before), N_QUESTIONS]
    after = shard_files(cut)
    assert {name: after[name] for name in before} == before
    assert after.keys() == shard_files(whole).keys()
    rows = pq.read_table(cut / "data" / "examples", columns=["question_id", "step"]).to_pylist()
    assert len({(row["question_id"], row["step"]) for row in rows}) == len(rows)
    assert len({row["question_id"] for row in rows}) == N_QUESTIONS
    assert examples(cut) == examples(whole)
