"""The endpoint against the bare engine: the same questions, asked by 1, 8, 32 and 128 users at once, layer by layer.

    bare      vLLM in this process, given each step's prompt as the reasoner made it, and closed where it closed it
    loop      the same engine behind the reasoner: search, prompts, stopping
    handle    the deployed engine by its Serve handle: another process and Serve's router
    endpoint  HTTP on top: Serve's proxy, the ingress, JSON
    streamed  the same as server-sent events
    least     what `bare` does behind the smallest application that Serve can have: what Ray Serve itself costs

A user asks the next question when his is answered. Each round asks questions of its own in all ways in turn (one user's
question by question), from empty prefix caches; the figures are medians over rounds of ratios within a round, at one
user over questions. Chains must be the same in all ways.

Three students answer: `miniature`, whose 0.9 million parameters take less time than what is around them, and `wide` and
`wider`, which write the same at the cost of 26 and 101 million (see wide.py), still small students. The figures at the
top are those of the last student that is named; all are in `by_student`.

HTTP comes through HAProxy, Ray's choice for many requests, or through Serve's own proxy (`--proxy serve`).

    python benchmarks/serving.py --json PATH
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# As this process, so that the bare engine has no advantage.
os.environ.update({"RAY_worker_niceness": "0"})

#: By student: users at once, and the questions that they ask in a round.
LOADS = {
    "miniature": {1: 16, 8: 64, 32: 192, 128: 256},
    "wide": {1: 12, 8: 24, 32: 64, 128: 128},
    "wider": {1: 8, 8: 16, 32: 48, 128: 128},
}
#: Of each layer's MLP, where it is not the miniature's own.
UNITS = {"wide": 16_384, "wider": 65_536}
WAYS = ("bare", "loop", "handle", "endpoint", "streamed", "least")


async def measure(folder: Path, student: str, rounds: int, loads: dict[int, int]) -> dict[str, Any]:
    # Not at the top: vLLM's own processes import this script, and cannot bear numba, which retrieval brings.
    import httpx
    import ray
    from ray import serve
    from rollout_ways import Recorder
    from serving_ways import (
        BenchReplica,
        Least,
        bare,
        empty_cache,
        endpoint,
        handle,
        least,
        loop,
        processor_seconds,
        streamed,
        users,
    )
    from wide import widened

    from steper_ray.client import Client
    from steper_ray.config import Config
    from steper_ray.corpora import open_corpus
    from steper_ray.frameworks import FRAMEWORKS
    from steper_ray.generation.vllm_engine import VllmGenerator
    from steper_ray.models import ASSETS
    from steper_ray.reasoning import Reasoner
    from steper_ray.retrieval import open_index
    from steper_ray.serving.deployments import bind
    from steper_ray.serving.engine import ReasonEngine
    from steper_ray.serving.plan import make_plan

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    most = rounds * sum(loads.values()) + 8
    teacher = ASSETS / "teacher"
    units = UNITS.get(student)
    model = teacher if units is None else widened(teacher, folder / "model", units)
    config = Config.model_validate(
        {
            "run_dir": folder,
            "corpus": {"miniature": {"worlds": -(-most // 8), "seed": 79, "split": "test"}},
            "engine": {"kind": "vllm", "model": str(model)},
            "serve": {"max_ongoing_requests": 256, "request_timeout_s": 600, "port": port},
        }
    )
    plan = make_plan(config)
    name = plan.about.model
    stop = FRAMEWORKS[config.reasoning.framework].stop
    corpus = open_corpus(config.corpus)
    questions = iter(list(corpus.questions()))
    retriever = open_index(plan.index, config.retrieval, plan.corpus)
    engine = VllmGenerator(config.engine)
    local = ReasonEngine(retriever, {name: engine}, config.reasoning, config.sampling, config.serve)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    engine_deployment = serve.deployment(name="Engine")(BenchReplica)
    serve.run(bind(plan, engine=engine_deployment, local=True), name="steper")
    serve.run(Least.bind(), name="least", route_prefix="/least")
    deployed = serve.get_deployment_handle("Engine", app_name="steper")
    client = Client(f"http://127.0.0.1:{port}", timeout_s=600, retries=0)
    http = httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None))

    async def record(asked: Sequence[Any]) -> dict[str, Any]:
        recorders = [Recorder(engine) for _ in asked]
        reasoners = [Reasoner(retriever, r, config.reasoning, config.sampling) for r in recorders]
        await asyncio.gather(*(r.run(question) for r, question in zip(reasoners, asked, strict=True)))
        return {question.id: r.requests for r, question in zip(recorders, asked, strict=True)}

    found: list[dict[str, Any]] = []
    warm = list(itertools.islice(questions, 8))
    try:
        for number in range(rounds + 1):  # the first one warms up
            for count, size in loads.items() if number else ((8, 8),):
                asked = list(itertools.islice(questions, size)) if number else warm
                requests = await record(asked)
                await deployed.record.remote(config.sampling, stop, requests)
                ways = {
                    "bare": bare(engine, config.sampling, stop, requests),
                    "loop": loop(local, name),
                    "handle": handle(deployed, name),
                    "endpoint": endpoint(client),
                    "streamed": streamed(client),
                    "least": least(http, f"http://127.0.0.1:{port}/least"),
                }
                seconds = dict.fromkeys(WAYS, 0.0)
                results: dict[str, list[Any]] = {way: [] for way in WAYS}
                processor = {way: Counter[str]() for way in WAYS}
                # One user's questions each in all ways, so that what slows the machine for a while slows all of them.
                batches = [asked] if count > 1 else [[question] for question in asked]
                for turn, batch in enumerate(batches, start=number):
                    for way in WAYS if turn % 2 else reversed(WAYS):
                        await empty_cache(engine)
                        await deployed.empty_cache.remote()
                        before = processor_seconds()
                        took, answered = await users(ways[way], batch, count)
                        processor[way].update(processor_seconds())
                        processor[way].subtract(before)
                        seconds[way] += took
                        results[way] += answered
                row: dict[str, Any] = {"users": count, "questions": size}
                row["steps"] = sum(map(len, requests.values()))
                for way in WAYS:
                    row[way] = _told(seconds[way], results[way])
                    row[way]["each_s"] = [result.seconds for result in results[way]]
                    row[way]["processor_ms_per_question"] = {
                        part: 1e3 * value / size for part, value in processor[way].items()
                    }
                chains = {way: [result.chain for result in results[way]] for way in WAYS}
                told_chains = zip(
                    *(chains[way] for way in ("loop", "handle", "endpoint", "streamed")), strict=True
                )
                row["different_chains"] = sum(len(set(of)) > 1 for of in told_chains)
                if number:
                    found.append(row)
                    told = ", ".join(f"{way} {row[way]['seconds']:.2f} s" for way in WAYS)
                    told += f"; different chains: {row['different_chains']}"
                    print(f"{student}, round {number}, {count} users: {told}", flush=True)
    finally:
        await http.aclose()
        await client.close()
        await engine.close()
        serve.shutdown()
        ray.shutdown()
    return _figures(found, loads)


def _told(seconds: float, results: Sequence[Any]) -> dict[str, Any]:
    times = sorted(result.seconds for result in results)
    first = sorted(result.first_s for result in results)

    def at(values: Sequence[float], share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))]

    return {"seconds": seconds, "mean_s": statistics.mean(times)} | {
        f"{name}_p{int(share * 100)}_s": at(values, share)
        for name, values in (("question", times), ("first_token", first))
        for share in (0.5, 0.95, 0.99)
    }


def _figures(rows: Sequence[dict[str, Any]], loads: dict[int, int]) -> dict[str, Any]:
    def median(count: int, way: str, what: str, over: str | None = None) -> float:
        of = [row for row in rows if row["users"] == count]
        return statistics.median(row[way][what] / (row[over][what] if over else 1) for row in of)

    alone = [row for row in rows if row["users"] == 1]

    def added(way: str) -> float:
        """Of a step at one user: what this way takes longer than the bare engine, over the bare engine's step. The
        median over questions: each has the same steps in both ways."""
        pairs = (
            pair for row in alone for pair in zip(row[way]["each_s"], row["bare"]["each_s"], strict=True)
        )
        return statistics.median(seconds / bare - 1 for seconds, bare in pairs)

    return {
        "ratio_to_engine": median(32, "bare", "seconds", "endpoint") if 32 in loads else None,
        "ratio_to_least": median(32, "least", "seconds", "endpoint") if 32 in loads else None,
        "added_latency_share": added("endpoint") if alone else None,
        "added_latency_share_by_layer": {way: added(way) for way in WAYS[1:]} if alone else {},
        "bare_step_s": statistics.median(row["bare"]["seconds"] / row["steps"] for row in alone)
        if alone
        else None,
        "different_chains": sum(row["different_chains"] for row in rows),
        "by_users": {
            count: {
                way: {
                    "questions_per_second": loads[count] / median(count, way, "seconds"),
                    "throughput_over_bare": median(count, "bare", "seconds", way),
                    **{
                        what: median(count, way, what)
                        for what, value in rows[0][way].items()
                        if what != "seconds" and isinstance(value, float)
                    },
                }
                for way in WAYS
            }
            for count in loads
        },
        "rounds": list(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--students", nargs="+", default=list(LOADS), choices=list(LOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--proxy", default="haproxy", choices=["haproxy", "serve"])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32, 128], choices=[1, 8, 32, 128])
    args = parser.parse_args()
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1" if args.proxy == "haproxy" else "0"
    by_student = {}
    for student in args.students:
        with tempfile.TemporaryDirectory() as folder:
            loads = {count: LOADS[student][count] for count in args.users}
            by_student[student] = asyncio.run(measure(Path(folder), student, args.rounds, loads))
    last = by_student[args.students[-1]]
    figures = {
        "student": args.students[-1],
        "proxy": args.proxy,
        "ratio_to_engine": last["ratio_to_engine"],
        "added_latency_share": last["added_latency_share"],
        "by_student": by_student,
    }
    text = json.dumps(figures, indent=1) + "\n"
    if args.json is not None:
        args.json.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
