"""A build over more and more questions: seconds, pace, and the most memory of its driver and of an actor.

    python benchmarks/growth.py --questions 1000,10000,100000 --json PATH [--teacher stub] [SETTING=VALUE ...]

The questions are those of miniature worlds under new ids, read from JSONL files. `annotation` writes chains without an
engine; `stub` is an engine that answers at once, so that what is left is the rollouts' own cost. Three commands are
measured: the build, a rerun with nothing to do, and an assembly of the same shards with `build.verify.grounding` and
`support`. Memory is what a process has for itself (USS, in MB), read every second.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
_VERIFY = ("build.verify.grounding=0.5", "build.verify.support=0.5")


def write_corpus(folder: Path, questions: int) -> list[str]:
    """Writes a plain corpus of this many questions below `folder`; returns its settings."""
    from steper_ray.corpora.miniature import make_corpus
    from steper_ray.schema import to_row

    passages, drawn = make_corpus(5, 60, 8, "train")
    paths = {name: folder / f"{name}.jsonl" for name in ("passages", "questions")}
    with paths["passages"].open("w") as stream:
        stream.writelines(json.dumps(to_row(passage)) + "\n" for passage in passages)
    with paths["questions"].open("w") as stream:
        for number in range(questions):
            question = drawn[number % len(drawn)]
            row = to_row(dataclasses.replace(question, id=f"{question.id}-{number}"))
            stream.write(json.dumps(row) + "\n")
    return ["corpus.kind=plain", *(f"corpus.{name}={path}" for name, path in paths.items())]


def build(teacher: str, settings: Sequence[str]) -> None:
    """One build in this process; prints the seconds of its rollouts and of its assembly as JSON."""
    from steper_ray.cluster import connect
    from steper_ray.config.file import load_config
    from steper_ray.data import build as room
    from steper_ray.rollouts import run

    if teacher == "stub":
        run.RolloutActor = _stubbed()
    spent: dict[str, float] = {}

    def timed(name: str, call):
        def wrapped(*args, **kwargs):
            started = time.perf_counter()
            result = call(*args, **kwargs)
            spent[name] = time.perf_counter() - started
            return result

        return wrapped

    room._rollouts, room.assemble = timed("rollouts", room._rollouts), timed("assemble", room.assemble)
    connect()
    report = room.build_data(load_config(None, settings))  # the stub is never right: nothing is kept
    print(json.dumps({"trajectories": report.trajectories, "kept": report.kept, **spent}), flush=True)


def _stubbed():
    from steper_ray.generation.base import Chunk
    from steper_ray.rollouts.actor import RolloutActor

    class Stub:
        """An engine that states an answer at once."""

        tokenizer = None

        async def stream(self, prompt, sampling, stop=()) -> AsyncGenerator[Chunk, None]:
            yield Chunk(" So the answer is: nobody.", (1, 2, 3), (-0.1, -0.1, -0.1))
            yield Chunk("", finish_reason="stop")

        async def check(self) -> None: ...

        async def close(self) -> None: ...

    class Stubbed(RolloutActor):
        async def _load(self, config):
            self._engines.append(Stub())
            return self._engines[0]

    return Stubbed


def watch(command: list[str]) -> Iterator[tuple[str, float]]:
    """Runs a command; yields its last line and then the largest USS in MB of its driver and of any actor."""
    import psutil

    with tempfile.TemporaryFile("w+") as out:
        driver = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        most = {"driver_mb": 0, "actor_mb": 0}
        while driver.poll() is None:
            with suppress(psutil.Error):
                me = psutil.Process(driver.pid)
                actors = [p for p in me.children(recursive=True) if "RolloutActor" in " ".join(p.cmdline())]
                for name, processes in (("driver_mb", [me]), ("actor_mb", actors)):
                    for process in processes:
                        most[name] = max(most[name], process.memory_full_info().uss >> 20)
            time.sleep(1)
        if driver.returncode:
            sys.exit(f"the build failed: {' '.join(command)}")
        out.seek(0)
        yield "line", out.read().splitlines()[-1]
        yield from most.items()


def measure(questions: int, teacher: str, settings: Sequence[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        own = [*write_corpus(Path(folder), questions), f"run_dir={folder}/run", *settings]
        if teacher == "annotation":
            own.append("build.teacher=annotation")
        command = [sys.executable, __file__, "--child", "--teacher", teacher, *own]
        started = time.perf_counter()
        found = dict(watch(command))
        seconds = time.perf_counter() - started
        done = json.loads(found.pop("line"))
        started = time.perf_counter()
        dict(watch(command))
        rerun = time.perf_counter() - started
        verified = json.loads(dict(watch([*command, *_VERIFY]))["line"])
        return {
            "questions": questions,
            "seconds": seconds,
            "trajectories_per_second": done["trajectories"] / done["rollouts"],
            "assembled_per_second": done["trajectories"] / done["assemble"],
            "verified_per_second": done["trajectories"] / verified["assemble"],
            "rerun_seconds": rerun,
            **found,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", default="1000,10000", help="how many, one build each")
    parser.add_argument("--teacher", default="annotation", choices=["annotation", "stub"])
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args, settings = parser.parse_known_args()
    if args.child:
        build(args.teacher, settings)
        return
    rows = []
    for questions in args.questions.split(","):
        rows.append(measure(int(questions), args.teacher, settings))
        print(json.dumps(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
