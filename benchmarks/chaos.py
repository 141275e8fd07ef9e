"""Builds and trainings whose processes die and stall at random moments, over and over, until N faults were made.

Each round runs `steper build` or `steper train` as a person would, again and again until it ends well. In each run one
to three of these happen, at moments drawn from --seed:

    kill engine, notes, worker, rank    an actor, a task's or a training worker (SIGKILL)
    kill raylet, gcs, driver            Ray's own processes below the command, or the command itself
    kill all                            the whole of it at once, as a machine that loses its power
    stop engine, rank                   SIGSTOP for some seconds, then SIGCONT
    flip bit                            of a committed shard, between two runs of the command

The end is compared with that of an undisturbed run:

    lost         questions, or optimiser steps, that are missing and not owed
    repeated     questions or steps that are there twice, and shards that were made again though they were whole
    silent       trajectories, losses or weights that differ
    unexplained  commands that ended in another way than well, killed, or with one line that says why

    python benchmarks/chaos.py --faults 200 --json PATH
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from steper_ray.core.sums import sums_damage

SETTINGS = (
    *("corpus.kind=miniature", "corpus.miniature.worlds=12", "corpus.miniature.questions_per_world=8"),
    *("build.shard_size=2", "build.in_flight=3", "build.match=contains", "reasoning.max_steps=3"),
    *("sampling.max_tokens=24", "train.max_steps=60", "train.checkpoint_every=5", "train.batch_examples=8"),
    *("train.row_tokens=1024", "train.lr=1e-3"),
)
KINDS = {
    "build": ("kill engine", "kill notes", "kill worker", "kill raylet", "kill gcs", "kill driver", "kill all",
              "stop engine", "flip bit"),
    "train": ("kill rank", "kill raylet", "kill gcs", "kill driver", "kill all", "stop rank"),
}  # fmt: skip
NAMES = {
    "engine": "RolloutActor", "notes": "NotesActor", "worker": "ray::", "rank": "RayTrainWorker",
    "raylet": "/raylet ", "gcs": "/gcs_server ",
}  # fmt: skip
EXACT = ("step", "epoch", "loss", "losses", "counts", "sigma", "weights", "lr", "grad_norm", "tokens")
TRIES = 200  # runs of one command until it must have ended well


@dataclass
class Found:
    """The outcome over all rounds."""

    faults: Counter[str] = field(default_factory=Counter)
    rounds: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    lost: int = 0
    repeated: int = 0
    silent: int = 0
    unexplained: list[str] = field(default_factory=list)


class Run:
    """A command in its own session, with the Ray processes below it."""

    def __init__(self, stage: str, run_dir: Path) -> None:
        self._log = run_dir.with_suffix(".log").open("w+")
        command = [sys.executable, "-m", "steper_ray.cli.main", stage, *SETTINGS, f"run_dir={run_dir}"]
        env = os.environ | {"OMP_NUM_THREADS": "1", "RAY_gcs_rpc_server_reconnect_timeout_s": "2"}
        self.process = subprocess.Popen(
            command, env=env, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._all = set[psutil.Process]()

    def below(self, name: str) -> list[psutil.Process]:
        """Processes of the command, by a part of their command line."""
        found = []
        with suppress(psutil.Error):
            children = psutil.Process(self.process.pid).children(recursive=True)
            self._all.update(children)
            for child in children:
                with suppress(psutil.Error):
                    if name in " ".join(child.cmdline()) + " ":
                        found.append(child)
        return found

    def end(self) -> tuple[int, str]:
        """Waits; returns the status and what the command said, once nothing of it is left."""
        status = self.process.wait()
        for left in self._all:
            with suppress(psutil.Error):
                left.kill()
        psutil.wait_procs(self._all, timeout=60)
        self._log.seek(0)
        said = self._log.read()
        self._log.close()
        return status, said


class Disturber(threading.Thread):
    """Makes `most` faults while the command runs, one every `every_s` seconds, give or take a half."""

    def __init__(self, run: Run, kinds: list[str], every_s: float, rng: random.Random, most: int) -> None:
        super().__init__(daemon=True)
        self._run, self._kinds, self._every_s, self._rng, self._most = run, kinds, every_s, rng, most
        self.done, self._halt = Counter[str](), threading.Event()

    def run(self) -> None:
        while not self._halt.wait(self._every_s * self._rng.uniform(0.5, 1.5)):
            if self.done.total() >= self._most:
                return
            with suppress(psutil.NoSuchProcess):  # the command has ended
                self._fault(self._rng.choice(self._kinds))

    def stop(self) -> None:
        self._halt.set()
        self.join()

    def _fault(self, kind: str) -> None:
        action, what = kind.split()
        below = self._run.below("")
        if what in ("driver", "all"):
            victims = [psutil.Process(self._run.process.pid), *(below if what == "all" else ())]
        else:
            found = self._run.below(NAMES[what])
            found = [one for one in found if what != "worker" or "Agent" not in one.name()]
            victims = [self._rng.choice(found)] if found else []
        for victim in victims:
            with suppress(psutil.Error):
                victim.send_signal(signal.SIGSTOP if action == "stop" else signal.SIGKILL)
        self.done[kind] += bool(victims)
        if action == "stop" and victims:
            self._halt.wait(self._rng.uniform(2, 8))
            with suppress(psutil.Error):
                victims[0].send_signal(signal.SIGCONT)


def disturbed(stage: str, run_dir: Path, found: Found, args: argparse.Namespace, rng: random.Random) -> None:
    """Runs the stage until it ends well; counts what happened meanwhile."""
    whole: dict[str, tuple[int, int]] = {}
    damaged: dict[str, tuple[int, int]] = {}
    for _ in range(TRIES):
        run = Run(stage, run_dir)
        kinds = [kind for kind in KINDS[stage] if kind != "flip bit"]
        every_s = args.every * rng.uniform(0.3, 3)
        most = min(rng.randint(1, 3), args.faults - found.faults.total())
        disturber = Disturber(run, kinds, every_s, rng, most)
        disturber.start()
        status, said = run.end()
        disturber.stop()
        found.faults += disturber.done
        found.runs += 1
        now = {name: state for name, state in shards(run_dir).items() if damaged.get(name) != state}
        found.repeated += sum(now[name] != state for name, state in whole.items() if name in now)
        told = status in (2, 75) and "error: " in said
        if "Traceback" in said or not (told or status in (0, -signal.SIGKILL)):
            found.unexplained.append(f"{stage}, {dict(disturber.done)}: status {status}: {said[-600:]}")
            print("unexplained:", found.unexplained[-1], flush=True)
        if status == 0:
            return
        if stage == "build" and found.faults.total() < args.faults and now and rng.random() < 0.2:
            flipped = rng.choice(sorted(now))
            flip(run_dir / "data" / "trajectories" / flipped, rng)
            found.faults["flip bit"] += 1
            damaged[flipped] = shards(run_dir)[flipped]
            del now[flipped]
        whole = now
    raise SystemExit(f"{stage} did not end well in {TRIES} runs: {said[-2000:]}")


def shards(run_dir: Path) -> dict[str, tuple[int, int]]:
    """The files of committed shards, each with its inode and time."""
    notes = (run_dir / "data" / "trajectories").glob("shard-*.json")
    files = {json.loads(note.read_text())["file"] for note in notes}
    states = {name: (run_dir / "data" / "trajectories" / name).stat() for name in files}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def compare(stage: str, run_dir: Path, whole: Path, found: Found) -> None:
    ours, theirs = (made(stage, place) for place in (run_dir, whole))
    ids = [key for key, _ in ours]
    found.repeated += len(ids) - len(set(ids))
    wanted, got = dict(theirs), dict(ours)
    found.lost += len(wanted.keys() - got.keys())
    found.silent += sum(got[key] != wanted.get(key) for key in got)
    if stage == "train":
        models = [place / "models" / "steper" for place in (run_dir, whole)]
        weights = [hashlib.sha256((one / "model.safetensors").read_bytes()).digest() for one in models]
        found.silent += weights[0] != weights[1] or sums_damage(models[0]) is not None


def made(stage: str, run_dir: Path) -> list[tuple[Any, Any]]:
    """Keys and values that a disturbance must not change: chains by question, or the figures of each step."""
    if stage == "train":
        lines = (run_dir / "training" / "steper" / "metrics.jsonl").read_text().splitlines()
        return [(line["step"], [line[name] for name in EXACT]) for line in map(json.loads, lines)]
    files = [run_dir / "data" / "trajectories" / name for name in sorted(shards(run_dir))]
    rows = [row for file in files for row in pq.read_table(file, use_threads=False).to_pylist()]
    owed = (run_dir / "data" / "owed.jsonl").read_text().splitlines()
    return [
        *((row["question"]["id"], ([s["reasoning"] for s in row["steps"]], row["answer"])) for row in rows),
        *((json.loads(line)["question"], "owed") for line in owed),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two faults, about")
    parser.add_argument("--stages", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found, rng, started = Found(), random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        whole = Path(folder) / "whole"
        for stage in ("build", "train"):
            status, said = Run(stage, whole).end()
            if status:
                raise SystemExit(f"the undisturbed {stage} failed: {said[-2000:]}")
        while found.faults.total() < args.faults:
            stage = args.stages[found.rounds.total() % len(args.stages)]
            run_dir = Path(folder) / f"{stage}-{found.rounds.total()}"
            if stage == "train":
                (run_dir / "data").mkdir(parents=True)
                (run_dir / "data" / "kept").symlink_to(whole / "data" / "kept")
            disturbed(stage, run_dir, found, args, rng)
            compare(stage, run_dir, whole, found)
            found.rounds[stage] += 1
            print(
                f"{found.faults.total()} faults, {dict(found.rounds)} rounds: lost {found.lost}, repeated "
                f"{found.repeated}, silent {found.silent}, unexplained {len(found.unexplained)}",
                flush=True,
            )
    result = {
        "faults": found.faults.total(), "by_kind": dict(found.faults), "rounds": dict(found.rounds),
        "runs": found.runs, "lost": found.lost, "repeated": found.repeated, "silent": found.silent,
        "unexplained": len(found.unexplained), "unexplained_said": found.unexplained,
        "seconds": round(time.monotonic() - started), "seed": args.seed,
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
