"""A service whose engines are killed while it answers: right, wrong and lost questions, and steps sent twice.

    python benchmarks/chaos_service.py --json PATH [--questions 300] [--clients 32] [--every 10] [--replicas 2]

The miniature's teacher answers on a Ray Serve of this machine, every other question as a stream; the clients ask once.
Every `--every` seconds the process of one engine replica, drawn from `--seed`, is killed (SIGKILL). An answer is right
if it equals, with its chain, the one given before without kills.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import ray
from ray import serve

from steper_ray.client import Answer, Client, ReasonerError
from steper_ray.config.file import load_config
from steper_ray.corpora import open_corpus
from steper_ray.serving.deployments import bind
from steper_ray.serving.plan import make_plan

PORT = 18713
SETTINGS = (
    *("corpus.miniature.split=test", "corpus.miniature.worlds=12", "corpus.miniature.questions_per_world=5"),
    *(
        "sampling.max_tokens=32",
        "reasoning.max_steps=4",
        "serve.num_cpus=0.5",
        "serve.max_ongoing_requests=16",
    ),
    *("serve.request_timeout_s=120", "serve.max_queued_requests=64"),
)


def replicas() -> list[int]:
    """The processes of the engine's replicas."""
    lines = (
        (process.pid, " ".join(process.info["cmdline"] or ())) for process in psutil.process_iter(["cmdline"])
    )
    return sorted(pid for pid, line in lines if line.startswith("ray::ServeReplica:steper:Engine"))


async def ask(client: Client, number: int, question: str) -> tuple[int, str, object]:
    """How a question ended: `answered` with its chain, `twice` or the name of the error."""
    try:
        if number % 2:
            answer = await client.reason(question)
        else:
            steps, answer = [], None
            async for event in client.stream(question):
                if hasattr(event, "reasoning"):
                    steps.append(event.index)
                answer = event
            if len(steps) != len(set(steps)):
                return number, "twice", steps
        assert isinstance(answer, Answer)
        return number, "answered", (answer.text, [step.reasoning for step in answer.steps])
    except ReasonerError as error:
        kind = "stream" if number % 2 == 0 else "whole"
        return number, f"{kind}: {type(error).__name__}", str(error)


async def ask_all(questions: list[str], clients: int) -> list[tuple[int, str, object]]:
    """All questions, `clients` at a time."""
    left = asyncio.Queue[tuple[int, str]]()
    for pair in enumerate(questions):
        left.put_nowait(pair)
    found = []
    async with Client(f"http://127.0.0.1:{PORT}", retries=0, timeout_s=180) as client:

        async def one_client() -> None:
            while not left.empty():
                found.append(await ask(client, *left.get_nowait()))

        await asyncio.gather(*(one_client() for _ in range(clients)))
    return sorted(found)


async def killing(every_s: float, rng: random.Random, killed: list[float]) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(every_s)
        if there := await asyncio.to_thread(replicas):
            os.kill(rng.choice(there), signal.SIGKILL)
            killed.append(round(time.monotonic() - started, 1))


async def disturbed(
    questions: list[str], args: argparse.Namespace, killed: list[float]
) -> list[tuple[int, str, object]]:
    killer = asyncio.create_task(killing(args.every, random.Random(args.seed), killed))
    try:
        return await ask_all(questions, args.clients)
    finally:
        killer.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--every", type=float, default=10.0)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(None, [f"run_dir={folder}", f"serve.replicas={args.replicas}", *SETTINGS])
        known = [question.text for question in open_corpus(config.corpus).questions()]
        questions = [known[number % len(known)] for number in range(args.questions)]
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(bind(make_plan(config)), name="steper", route_prefix="/")
        whole = asyncio.run(ask_all(questions, args.clients))
        killed: list[float] = []
        started = time.monotonic()
        found = asyncio.run(disturbed(questions, args, killed))
        seconds = time.monotonic() - started
        serve.shutdown()
        ray.shutdown()
    kinds = Counter(kind for _, kind, _ in found if kind != "answered")
    answered = [
        (got, want) for (_, kind, got), (_, _, want) in zip(found, whole, strict=True) if kind == "answered"
    ]
    result = {
        "questions": len(found), "clients": args.clients, "replicas": args.replicas, "killed": len(killed),
        "seconds": round(seconds), "right": sum(got == want for got, want in answered),
        "wrong": sum(got != want for got, want in answered), "twice": kinds.pop("twice", 0),
        "lost": kinds.total(), "lost_by_kind": dict(kinds),
        "lost_said": sorted({str(said) for _, kind, said in found if kind in kinds})[:5],
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
