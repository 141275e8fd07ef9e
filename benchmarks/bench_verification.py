"""Verifiers on planted wrong steps: how many are caught, and how many of those caught are wrong.

The steps are those of planted.py. The answer filter keeps them all. Precision and recall are over trajectories, the
right ones and one kind of wrong ones in equal number. A planted step was written by no model, so confidence is here
that of the miniature's teacher in the words that are put into its mouth. The judge is a small model that was taught to
judge on other worlds (tiny_judge.py). First, CPU time: trajectories a second for grounding and support, which read a
trajectory once, and for the same scores from the functions of one step, which read its passages at every step.

    python benchmarks/bench_verification.py      # twenty minutes, most of them for the judge
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from planted import KINDS, planted, right_ones
from tiny_judge import make_judge
from transformers import AutoModelForCausalLM, AutoTokenizer

from steper_ray.config import Config
from steper_ray.core.claims import grounding, support
from steper_ray.data.verify import first_failure, score_steps
from steper_ray.frameworks import FRAMEWORKS
from steper_ray.generation import open_generator
from steper_ray.models import ASSETS
from steper_ray.prompts import PromptEncoder
from steper_ray.rollouts.verifiers import ModelVerifier, open_verifiers
from steper_ray.schema import StepScore, Trajectory

PURE = {"grounding": 1.0, "support": 1.0}
CONFIDENT = {"confidence": 0.5}
ASKED = {"agreement": 0.5, "judge": 0.5}
WORLDS = 12

#: Whether each trajectory is refused.
Refused = Callable[[Sequence[Trajectory]], Awaitable[list[bool]]]


def pure(name: str, least: float) -> Refused:
    async def refused(trajectories: Sequence[Trajectory]) -> list[bool]:
        return [first_failure(score_steps(t, [name]), {name: least}) is not None for t in trajectories]

    return refused


def asked(verifier: ModelVerifier, least: float) -> Refused:
    async def refused(trajectories: Sequence[Trajectory]) -> list[bool]:
        found = await asyncio.gather(*(verifier.scores(t) for t in trajectories))
        scored = [
            [
                StepScore(t.id, step.index, verifier.name, score)
                for step, score in zip(t.steps, scores, strict=True)
            ]
            for t, scores in zip(trajectories, found, strict=True)
        ]
        return [first_failure(scores, {verifier.name: least}) is not None for scores in scored]

    return refused


class Spoken:
    """Gives steps the log-probabilities that the miniature's teacher has for them."""

    def __init__(self) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(ASSETS / "teacher", dtype=torch.float32)
        self._encoder = PromptEncoder(
            AutoTokenizer.from_pretrained(ASSETS / "teacher"), FRAMEWORKS["ircot"].layout
        )

    def __call__(self, trajectory: Trajectory) -> Trajectory:
        seen = 0
        steps = []
        for number, step in enumerate(trajectory.steps):
            seen += len(step.hits)
            prompt = self._encoder.prompt(
                trajectory.question.text, trajectory.passages[:seen], trajectory.chain[:number]
            )
            steps.append(
                replace(step, mean_logprob=self._mean(prompt, self._encoder.chain([step.reasoning])))
            )
        return replace(trajectory, steps=tuple(steps))

    @torch.inference_mode()
    def _mean(self, prompt: list[int], written: list[int]) -> float:
        logits = self._model(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(written)[:, None]).mean())


async def tell(
    name: str, refused: Refused, right: Sequence[Trajectory], wrong: dict[str, list[Trajectory]]
) -> None:
    """One line: which were refused, of the right ones and of each kind of wrong ones."""
    lost = sum(await refused(right))
    parts = []
    for kind, some in wrong.items():
        hits = sum(await refused(some))
        precision = f"{hits / (hits + lost):.2f}" if hits + lost else "none"
        parts.append(f"{kind} recall {hits / len(some):.2f} precision {precision}")
    print(f"{name:10} refuses {lost} of {len(right)} right ones; {'; '.join(parts)}", flush=True)


def step_by_step(trajectory: Trajectory) -> list[float | None]:
    """The scores that `score_steps` gives for PURE."""
    seen = [
        trajectory.passages[: sum(len(s.hits) for s in trajectory.steps[:n])]
        for n in range(1, 1 + len(trajectory.steps))
    ]
    steps = list(zip(trajectory.chain, seen, strict=True))
    grounded = [grounding(reasoning, trajectory.question.text, passages) for reasoning, passages in steps]
    return grounded + [support(reasoning, passages) for reasoning, passages in steps]


def speed(trajectories: Sequence[Trajectory]) -> None:
    """One line: the best of five rounds each, in turn."""
    best = [math.inf, math.inf]
    for _ in range(5):
        for way, run in enumerate((lambda t: score_steps(t, list(PURE)), step_by_step)):
            started = time.process_time()
            for trajectory in trajectories:
                run(trajectory)
            best[way] = min(best[way], time.process_time() - started)
    once, again = (len(trajectories) / seconds for seconds in best)
    print(f"speed      {once:.0f} trajectories/s, {again:.0f}/s step by step", flush=True)


async def measure(config: Config, right: Sequence[Trajectory], judge: Path) -> None:
    rng = Random(0)
    wrong = {kind: [planted(t, kind, rng) for t in right] for kind in KINDS}
    for name, least in PURE.items():
        await tell(name, pure(name, least), right, wrong)
    spoken = Spoken()
    said = {kind: [spoken(t) for t in some] for kind, some in wrong.items()}
    for name, least in CONFIDENT.items():
        await tell(name, pure(name, least), [spoken(t) for t in right], said)
    teacher = open_generator(config.engine)
    judging = open_generator(config.engine.model_copy(update={"model": str(judge)}))
    try:
        # Drafts read the passages that a step had: nothing is retrieved.
        verifiers = open_verifiers(ASKED, config, None, teacher, judging)  # type: ignore[arg-type]
        for name, least in ASKED.items():
            await tell(name, asked(verifiers[name], least), right, wrong)
    finally:
        await teacher.close()
        await judging.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = Config.model_validate(
            {"run_dir": folder, "corpus": {"miniature": {"worlds": WORLDS, "seed": 77}}}
        )
        right = right_ones(config)
        speed(right)
        judge = make_judge(folder / "judge", folder / "judged")
        asyncio.run(measure(config, right, judge))


if __name__ == "__main__":
    main()
