"""A judge of the miniature's size: its teacher, taught to answer the judge's prompt on planted steps.

The miniature's models know the miniature's text alone; the judge's prompt is prose that only a real model follows. This
one learns it from right and planted steps of worlds of its own, so that the verifier can be measured with a model that
judges.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from planted import KINDS, planted, right_ones
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from steper_ray.config import Config
from steper_ray.miniature.pretrain import train
from steper_ray.models import ASSETS
from steper_ray.rollouts.verifiers import judge_prompt
from steper_ray.schema import Trajectory
from steper_ray.training.packing import Branch, Tree

SEED = 310_000  # of worlds that nothing else uses
WORLDS, STEPS, TREES, RATE = 120, 500, 8, 1e-3


def make_judge(folder: Path, run_dir: Path, steps: int = STEPS) -> Path:
    """Trains the judge and saves it; a quarter of an hour on two cores."""
    config = Config.model_validate(
        {"run_dir": run_dir, "corpus": {"miniature": {"worlds": WORLDS, "seed": SEED, "split": "train"}}}
    )
    right = right_ones(config)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "teacher")
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "teacher", dtype=torch.float32)
    train(model, _batches(right, tokenizer), steps, RATE)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _batches(right: list[Trajectory], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[Tree]]:
    rng = Random(SEED)
    while True:
        yield [_tree(rng.choice(right), rng, tokenizer) for _ in range(TREES)]


def _tree(trajectory: Trajectory, rng: Random, tokenizer: PreTrainedTokenizerBase) -> Tree:
    """A step of a right trajectory, and the same one planted (the last never is): what both share is read once."""
    number = rng.randrange(len(trajectory.steps))
    judged = [(trajectory, "Yes")]
    if number < len(trajectory.steps) - 1:
        judged.append((planted(trajectory, rng.choice(KINDS), rng, number), "No"))
    prompts = [_prompt(t, number, tokenizer) for t, _ in judged]
    # One token at least is each branch's own.
    shared = min(len(prompt) for prompt in prompts) - 1
    while any(prompt[:shared] != prompts[0][:shared] for prompt in prompts):
        shared -= 1
    branches = tuple(
        # Without a blank in front, which this tokenizer would make a token of its own.
        Branch(shared, prompt[shared:], tokenizer.encode(verdict, add_special_tokens=False), 0)
        for prompt, (_, verdict) in zip(prompts, judged, strict=True)
    )
    return Tree(prompts[0][:shared], branches)


def _prompt(trajectory: Trajectory, number: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    seen = [hit.passage for step in trajectory.steps[: number + 1] for hit in step.hits]
    ids: list[int] = tokenizer.encode(judge_prompt(trajectory, number, seen))
    return ids
