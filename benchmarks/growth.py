"""A build over more and more questions: the most memory that its driver, its actors and their vLLM take, and its pace.

    python benchmarks/growth.py --questions 100,1000,10000 [SETTING=VALUE ...]

Memory is what a process has for itself (USS, in MB), looked at every second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

os.environ.setdefault("OMP_NUM_THREADS", "1")
_WORLD = 8  # questions of one
#: What stands in the titles of the driver's children.
_PARTS = {"actor": "RolloutActor", "engine": "VLLM::EngineCore"}


def build(settings: list[str]) -> None:
    from steper_ray.cluster import connect
    from steper_ray.config.file import load_config
    from steper_ray.stages import build

    connect()
    print(build(load_config(None, settings)).summary(), flush=True)


def measure(questions: int, settings: list[str]) -> None:
    import psutil

    with tempfile.TemporaryDirectory() as folder:
        worlds = -(-questions // _WORLD)
        own = [f"run_dir={folder}", f"corpus.miniature.worlds={worlds}", f"corpus.limit={questions}"]
        started = time.perf_counter()
        driver = subprocess.Popen(
            [sys.executable, __file__, "--child", *own, *settings],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        most = dict.fromkeys(("driver", *_PARTS), 0)
        while driver.poll() is None:
            with suppress(psutil.Error):
                me = psutil.Process(driver.pid)
                titles = [(" ".join(p.cmdline()), p) for p in me.children(recursive=True)]
                found = {name: [p for said, p in titles if title in said] for name, title in _PARTS.items()}
                for name, processes in {"driver": [me], **found}.items():
                    used = sum(p.memory_full_info().uss for p in processes)
                    most[name] = max(most[name], used >> 20)
            time.sleep(1)
        if driver.returncode:
            sys.exit(f"the build over {questions} questions failed: {driver.returncode}")
        seconds = time.perf_counter() - started
    told = ", ".join(f"{name} {mb} MB" for name, mb in most.items() if mb)
    print(
        f"{questions:6} questions: {told}; {questions / seconds:.1f} questions/s with the start", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", default="100,1000", help="how many, one build each")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args, settings = parser.parse_known_args()
    if args.child:
        build(settings)
        return
    for questions in args.questions.split(","):
        measure(int(questions), settings)


if __name__ == "__main__":
    main()
