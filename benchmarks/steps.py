"""How many steps a question should take: fixed S against the adaptive policies (`reasoning.stop`), on the miniature.

For each model and step unit it prints, policy by policy: EM on the worlds that thresholds are chosen on, then EM, F1,
steps and tokens a question on other worlds, whose figures are the result. Milliseconds are the median of a question
that has the engine to itself, the policies in turn question by question, each from an empty memory of prompts: on the
clock, and of CPU time, which other work on the machine changes less (x: over that of fixed S=5). Below stand accuracy
by the number of steps used (the paper's Table 6) and how well an engine's confidence tells right from wrong (AUROC).
With --json all of it is written to PATH, and the curves beside it as an SVG.

    python benchmarks/steps.py [MODEL ...] --json PATH       (names or folders; by default miniature:teacher)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from steper_ray import stages
from steper_ray.config import Config, ReasoningConfig
from steper_ray.core.answers import contains
from steper_ray.corpora import open_corpus
from steper_ray.evaluation.plots import Line, LinePanel, draw
from steper_ray.evaluation.scores import EvalScores, judge, score_trajectories
from steper_ray.generation.transformers_engine import TransformersGenerator
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval import Retriever
from steper_ray.retrieval.index import open_index
from steper_ray.schema import Question, StopReason, Trajectory

_CHOOSE, _REPORT = 601, 602  # seeds of test worlds: neither is in a demo's training or evaluation
_MOST = 8  # steps that an adaptive policy may spend
_BASE = "fixed, S=5"
#: Name -> settings of the loop.
POLICIES: dict[str, dict[str, Any]] = {
    **{f"fixed, S={s}": {"stop": "fixed", "max_steps": s} for s in (1, 2, 3, 4, 5, _MOST)},
    "confident 0.5, S=5": {"stop": "confident", "confidence": 0.5, "max_steps": 5},
    **{
        f"confident {least}, S={_MOST}": {"stop": "confident", "confidence": least, "max_steps": _MOST}
        for least in (0.3, 0.5, 0.7, 0.9)
    },
    "stable, S=5": {"stop": "stable", "max_steps": 5},
    f"stable, S={_MOST}": {"stop": "stable", "max_steps": _MOST},
}
_LINES = {"fixed, S=": 0, "confident": 1, "stable": 2}
_CSS = "svg{background:#fff;color:#222;--rule:#ccc;--muted:#444;--c0:#888;--c1:#1f6fb4;--c2:#c2571a}"


class World:
    """Test worlds of one seed, with their index."""

    def __init__(self, folder: Path, seed: int, worlds: int) -> None:
        miniature = {"split": "test", "seed": seed, "worlds": worlds}
        self.config = Config.model_validate(
            {"run_dir": folder / str(seed), "corpus": {"miniature": miniature}}
        )
        corpus = open_corpus(self.config.corpus)
        self.questions: list[Question] = list(corpus.questions())
        self.retriever: Retriever = open_index(
            stages.index(self.config), self.config.retrieval, corpus.fingerprint()
        )

    def reasoner(self, engine: TransformersGenerator, unit: str, policy: str) -> Reasoner:
        settings: ReasoningConfig = self.config.reasoning.model_copy(
            update={"unit": unit, **POLICIES[policy]}
        )
        return Reasoner(self.retriever, engine, settings, self.config.sampling)


async def all_of(reasoner: Reasoner, questions: Sequence[Question]) -> list[Trajectory]:
    slots = asyncio.Semaphore(64)

    async def one(question: Question) -> Trajectory:
        async with slots:
            return await reasoner.run(question)

    return await asyncio.gather(*map(one, questions))


async def measure(model: str, choose: World, report: World, timed: int) -> dict[str, Any]:
    engine = TransformersGenerator(report.config.engine.model_copy(update={"model": model}))
    units = {}
    for unit in ("sentence", "chain"):
        rows, trajectories = {}, dict[str, list[Trajectory]]()
        for policy in POLICIES:
            chosen = score_trajectories(await all_of(choose.reasoner(engine, unit, policy), choose.questions))
            trajectories[policy] = await all_of(report.reasoner(engine, unit, policy), report.questions)
            rows[policy] = row(chosen, score_trajectories(trajectories[policy]))
        for policy, times in (await alone(engine, report, unit, timed)).items():
            rows[policy] |= times
        units[unit] = {"policies": rows, "auroc": separation(trajectories[f"fixed, S={_MOST}"])}
        tell(model, unit, units[unit])
    await engine.close()
    return units


def row(chosen: EvalScores, reported: EvalScores) -> dict[str, Any]:
    return {
        "chosen_on": {"em": chosen.em, "f1": chosen.f1, "steps": chosen.mean_steps},
        "em": reported.em,
        "f1": reported.f1,
        "steps": reported.mean_steps,
        "tokens_read": reported.prompt_tokens,
        "tokens_written": reported.completion_tokens,
        "stop_reasons": dict(reported.stop_reasons),
        "by_steps": {steps: {"n": g.n, "em": g.em} for steps, g in reported.by_steps.items()},
    }


async def alone(
    engine: TransformersGenerator, world: World, unit: str, questions: int
) -> dict[str, dict[str, float]]:
    """Median seconds of a question that has the engine to itself, on the clock and of the process's CPU time."""
    reasoners = {policy: world.reasoner(engine, unit, policy) for policy in POLICIES}
    seconds: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    cpu: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    for number, question in enumerate(world.questions[: questions + 1]):
        for policy, reasoner in reasoners.items():
            engine._worker._batch._prefixes.clear()  # no policy may profit from the one before
            started, worked = time.perf_counter(), time.process_time()
            await reasoner.run(question)
            if number:  # the first one warms up
                seconds[policy].append(time.perf_counter() - started)
                cpu[policy].append(time.process_time() - worked)
    return {
        policy: {"seconds": statistics.median(seconds[policy]), "cpu_seconds": statistics.median(cpu[policy])}
        for policy in POLICIES
    }


def separation(trajectories: Sequence[Trajectory]) -> dict[str, float | None]:
    """AUROC of what might tell right from wrong: for answers, and for steps up to the first wrong one.

    A step is right that names the answer of its hop.
    """
    steps: list[tuple[float, float, bool]] = []
    answers: list[tuple[float, float, float, bool]] = []
    for trajectory in trajectories:
        for step, hop in zip(trajectory.steps, trajectory.question.decomposition, strict=False):
            right = bool(contains(step.reasoning, hop.answer))
            steps.append((step.confidence or 0.0, math.exp(step.mean_logprob or 0.0), right))
            if not right:
                break
        if trajectory.stop_reason is StopReason.ANSWERED:
            last = trajectory.steps[-1]
            chain = min(step.confidence or 0.0 for step in trajectory.steps)
            right = judge(trajectory).em == 1
            answers.append((last.confidence or 0.0, math.exp(last.mean_logprob or 0.0), chain, right))
    return {
        "steps, least likely token of the piece": auroc([(s[0], s[-1]) for s in steps]),
        "steps, mean over all tokens of the generation": auroc([(s[1], s[-1]) for s in steps]),
        "answers, least likely token of the last piece": auroc([(a[0], a[-1]) for a in answers]),
        "answers, mean over all tokens of the last generation": auroc([(a[1], a[-1]) for a in answers]),
        "answers, least likely token of the whole chain": auroc([(a[2], a[-1]) for a in answers]),
    }


def auroc(values: Sequence[tuple[float, bool]]) -> float | None:
    """The probability that a right one scores higher than a wrong one; None where there are not both."""
    right, wrong = [v for v, ok in values if ok], [v for v, ok in values if not ok]
    if not right or not wrong:
        return None
    wins = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
    return wins / len(right) / len(wrong)


def tell(model: str, unit: str, found: dict[str, Any]) -> None:
    base = found["policies"][_BASE]["cpu_seconds"]
    print(f"\n{model}, unit {unit}")
    print(
        f"{'policy':22}{'EM chosen on':>13}{'EM':>7}{'F1':>7}{'steps':>7}{'read':>7}{'written':>9}"
        f"{'ms':>7}{'CPU ms':>8}{'x':>6}"
    )
    for policy, r in found["policies"].items():
        print(
            f"{policy:22}{100 * r['chosen_on']['em']:13.1f}{100 * r['em']:7.1f}{100 * r['f1']:7.1f}{r['steps']:7.2f}"
            f"{r['tokens_read']:7.0f}{r['tokens_written']:9.1f}{1000 * r['seconds']:7.0f}"
            f"{1000 * r['cpu_seconds']:8.0f}{r['cpu_seconds'] / base:6.2f}"
        )
    for policy in (f"fixed, S={_MOST}", f"confident 0.5, S={_MOST}"):
        by = found["policies"][policy]["by_steps"]
        print(
            f"EM by steps used, {policy}: "
            + ", ".join(f"{s}: {100 * g['em']:.0f} ({g['n']})" for s, g in by.items())
        )
    for name, value in found["auroc"].items():
        print(f"AUROC, {name}: {'-' if value is None else format(value, '.2f')}", flush=True)


def curves(models: dict[str, Any]) -> str:
    """Accuracy against steps, tokens and milliseconds of each policy: mean over the models, a row a unit.

    Grey: fixed S; blue: confident, from its lowest threshold to its highest; orange: stable.
    """
    panels = []
    for unit in ("sentence", "chain"):
        for key, label, factor in (
            ("steps", "steps a question", 1),
            ("tokens_read", "tokens read", 1),
            ("cpu_seconds", "CPU ms a question", 1000),
        ):
            lines = []
            for prefix, colour in _LINES.items():
                names = [p for p in POLICIES if p.startswith(prefix) and (colour != 1 or "S=5" not in p)]
                points = [
                    [statistics.mean(m[unit]["policies"][p][k] for m in models.values()) for k in (key, "em")]
                    for p in names
                ]
                lines.append(Line([factor * x for x, _ in points], [100 * y for _, y in points], colour))
            panels.append(LinePanel(f"EM, %, unit: {unit}", lines, label, markers=True, y_limits=(0, 103)))
    rows = [
        draw(shown).replace("<svg ", f'<svg y="{200 * at}" width="660" height="194" ', 1)
        for at, shown in enumerate((panels[:3], panels[3:]))
    ]
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 400"><style>{_CSS}</style>{"".join(rows)}</svg>\n'


async def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    choose, report = (World(folder, seed, args.worlds) for seed in (_CHOOSE, _REPORT))
    print(f"{len(report.questions)} questions chosen on, {len(report.questions)} others reported on")
    return {Path(m).name: await measure(m, choose, report, args.timed) for m in args.models}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["miniature:teacher"])
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--worlds", type=int, default=16, help="8 questions each, twice")
    parser.add_argument("--timed", type=int, default=24, help="questions that are timed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = asyncio.run(run(args, Path(folder)))
    if args.json is not None:
        args.json.write_text(
            json.dumps({"questions": 8 * args.worlds, "models": models}, indent=1) + "\n", encoding="utf-8"
        )
        args.json.with_suffix(".svg").write_text(curves(models), encoding="utf-8")


if __name__ == "__main__":
    main()
