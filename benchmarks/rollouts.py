"""Teacher rollouts, four ways, on one engine in one process: vLLM with the miniature teacher.

    (a) one by one   one question after another
    (b) lockstep     batches of as many questions as the engine runs together, step by step: a step's retrieval, then
                     its generation, and no row goes on before the slowest one is there. That is what single-shot batch
                     processors (`ray.data.llm`) come to, one for each step. Each has an engine of its own there, and so
                     a prefix cache of its own; here they share the engine, not its cache. The same with a cache that
                     all steps share is told too.
    (c) ours         as a build's actor has it: many trajectories in flight, each at its own step
    (d) bound        the prompts of (c), already made, each with the output length it came to, given to the bare engine
                     all at once: no retrieval, no step that waits for the one before, nothing streamed

Prompts begin with the demonstrations, as the paper's configs have it for a teacher that was not trained on the format
(`--no-few-shot` leaves them out). `--units` gives the teacher the cost of a larger one that writes the same (wide.py).

Each round runs (b), (c) and (d) in turn, each from an empty prefix cache; (a) runs once, over a part of the questions.
The rollouts' own cost is shown apart (growth.py).

    python benchmarks/rollouts.py --json PATH
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

_WAYS = ("lockstep", "lockstep_shared_cache", "ours", "bound")
_ONE_BY_ONE = 16  # questions of (a)


async def measure(
    worlds: int, in_flight: int, rounds: int, few_shot: bool, units: int, folder: Path
) -> dict[str, Any]:
    # Not at the top: vLLM's own processes import this script, and cannot bear numba, which retrieval brings.
    from rollout_ways import Ways
    from wide import widened

    from steper_ray import stages
    from steper_ray.config import Config
    from steper_ray.corpora import open_corpus
    from steper_ray.generation.vllm_engine import VllmGenerator
    from steper_ray.models import ASSETS
    from steper_ray.retrieval.index import open_index

    model = widened(ASSETS / "teacher", folder / "model", units) if units else "miniature:teacher"
    config = Config.model_validate(
        {
            "run_dir": folder,
            "corpus": {"miniature": {"worlds": worlds, "seed": 78}},
            "engine": {"kind": "vllm", "model": str(model)},
            "reasoning": {"few_shot": few_shot, "stop": "fixed"},
            "build": {"in_flight": in_flight},
        }
    )
    corpus = open_corpus(config.corpus)
    questions = list(corpus.questions())
    retriever = open_index(stages.index(config), config.retrieval, corpus.fingerprint())
    engine = VllmGenerator(config.engine)
    ways = Ways(config, questions, retriever, engine)
    await ways.one_by_one(4)  # warms up
    found: list[dict[str, float]] = []
    for number in range(rounds):
        chained, passes_chained, chains = await ways.timed(lambda: ways.lockstep(shared_cache=False))
        lockstep, passes_lockstep, _ = await ways.timed(lambda: ways.lockstep(shared_cache=True))
        ours, passes_ours, trajectories = await ways.timed(ways.ours)
        requests = list(ways.recorder.requests)
        bound, passes_bound, tokens = await ways.timed(partial(ways.bound, requests))
        if tokens != sum(request.written for request in requests):
            raise RuntimeError("the bound did not write as much as the rollouts")
        steps = [step for trajectory in trajectories for step in trajectory.steps]
        later = [step.usage for step in steps if step.index > 1]
        waits = sum(step.retrieval_seconds for step in steps)
        found.append(
            {
                "lockstep_s": chained,
                "lockstep_shared_cache_s": lockstep,
                "ours_s": ours,
                "bound_s": bound,
                "lockstep_passes": passes_chained,
                "lockstep_shared_cache_passes": passes_lockstep,
                "ours_passes": passes_ours,
                "bound_passes": passes_bound,
                "same_chains": sum(t.chain == c for t, c in zip(trajectories, chains, strict=True)),
                "requests": len(requests),
                "prompt_tokens": sum(len(request.prompt) for request in requests),
                "written_tokens": tokens,
                "prefix_cache_hit_rate": sum(u.cached_tokens for u in later)
                / sum(u.prompt_tokens for u in later),
                "prefix_cache_hit_limit": ways.repeated(trajectories),
                "retrieval_share": waits / sum(s.retrieval_seconds + s.generation_seconds for s in steps),
            }
        )
        print(f"round {number + 1}: " + ", ".join(f"{k} {v:.3g}" for k, v in found[-1].items()), flush=True)
    one, _, _ = await ways.timed(lambda: ways.one_by_one(_ONE_BY_ONE))
    await engine.close()

    def median(name: str, over: str | None = None) -> float:
        return statistics.median(row[name] / (row[over] if over else 1) for row in found)

    return {
        "ratio_to_lockstep": median("lockstep_s", "ours_s"),
        "ratio_to_lockstep_shared_cache": median("lockstep_shared_cache_s", "ours_s"),
        "ratio_to_engine_bound": median("bound_s", "ours_s"),
        "forward_passes_lockstep_over_ours": median("lockstep_passes", "ours_passes"),
        "ratio_to_one_by_one": one / _ONE_BY_ONE / (median("ours_s") / len(questions)),
        "prefix_cache_hit_rate": median("prefix_cache_hit_rate"),
        "prefix_cache_hit_limit": median("prefix_cache_hit_limit"),
        "retrieval_share": median("retrieval_share"),
        "questions": len(questions),
        "in_flight": in_flight,
        "few_shot": few_shot,
        "mlp_units": units or None,
        "max_batch": config.engine.max_batch,
        "questions_per_second": {
            "one_by_one": _ONE_BY_ONE / one,
            **{way: len(questions) / median(f"{way}_s") for way in _WAYS},
        },
        "rounds": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--worlds", type=int, default=96, help="8 questions each")
    parser.add_argument("--in-flight", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--few-shot", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--units", type=int, default=0, help="of each layer's MLP (see wide.py)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(
            measure(args.worlds, args.in_flight, args.rounds, args.few_shot, args.units, Path(folder))
        )
    text = json.dumps(figures, indent=1) + "\n"
    if args.json is not None:
        args.json.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
