"""Makes the shipped miniature: its tokenizer, the base that reads, and the teacher that reasons over steps.

The recipe is fixed here and starts from seeds alone; an hour or more on two cores. The base never sees a question
whose hops feed one another. The teacher is that base, taught the gold chains of worlds that no demo or test uses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from steper_ray.core.files import write_text
from steper_ray.corpora.miniature import make_worlds
from steper_ray.frameworks import FRAMEWORKS
from steper_ray.miniature.curriculum import reading_tree, vocabulary_text
from steper_ray.miniature.pretrain import new_model, train, train_tokenizer
from steper_ray.prompts import PromptEncoder
from steper_ray.training.data import load_data
from steper_ray.training.packing import Tree

WIDTH, LAYERS = 128, 4
_PHASES_DONE = "phases.txt"
DONE = "recipe.json"  # written into a model's folder when it is finished


@dataclass(frozen=True, slots=True)
class Phase:
    """Some optimiser steps of the base, each on `trees` trees of `branches` questions over `passages` passages.

    A tree of more than `tree_tokens` is made again.
    """

    steps: int
    rate: float
    trunk_weight: float
    trees: int
    branches: int
    passages: tuple[int, int]
    tree_tokens: int
    seed: int
    varied: bool = False


# Looking a fact up is learned late and all at once, some 800 steps into the first phase: soonest over few passages,
# and with the passages' own text in the loss. Later phases have more to read; the last ones have lists of more kinds.
PHASES = (
    Phase(1500, 2e-3, 0.3, 6, 8, (1, 5), 768, 100_000),
    Phase(700, 1e-3, 0.0, 6, 6, (2, 16), 768, 150_000),
    Phase(800, 1e-3, 0.0, 6, 4, (4, 20), 768, 160_000),
    Phase(2000, 1e-3, 0.0, 6, 6, (2, 20), 1024, 170_000),
    Phase(700, 1e-3, 0.0, 6, 6, (2, 20), 1024, 180_000, varied=True),
    Phase(1000, 1e-3, 0.0, 6, 6, (2, 20), 1024, 190_000, varied=True),
    Phase(600, 3e-4, 0.0, 6, 6, (2, 20), 1024, 195_000, varied=True),
)
TEACHER_RATE, TEACHER_STEPS, TEACHER_WORLDS = 1.2e-3, 700, 600
TEACHER_ROW = 1024  # the longest trajectories have some 980 tokens
_WORLDS = 40  # worlds a batch of trees is drawn from, before new ones with new names are made
_STEPS_PER_WORLDS = 30

# Seeds of worlds: those of the demo, its test and the users' runs are small numbers.
_TOKENIZER_SEED, TEACHER_SEED = 900, 200_000


def make_tokenizer() -> PreTrainedTokenizerBase:
    """Trained on the text of 150 worlds."""
    return train_tokenizer(
        vocabulary_text(world, rng) for world, rng in make_worlds(_TOKENIZER_SEED, 150, "train")
    )


def make_base(tokenizer: PreTrainedTokenizerBase, folder: Path, steps: int | None = None) -> None:
    """Trains the base and saves it in float32, with the tokenizer. `steps` replaces those of each phase.

    A rerun continues after the last phase that was finished: each starts from weights alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    mark = folder / _PHASES_DONE
    done = int(mark.read_text()) if mark.exists() else 0
    model = new_model(WIDTH, LAYERS, seed=0)
    if done:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for number, phase in enumerate(PHASES[done:], done + 1):
        train(
            model,
            _reading(tokenizer, phase),
            steps or phase.steps,
            phase.rate,
            trunk_weight=phase.trunk_weight,
        )
        mark.unlink(missing_ok=True)  # never a mark beside the weights of another phase
        model.save_pretrained(folder)
        write_text(mark, str(number))
    _finish(folder, {"model": "base", "phases": [asdict(phase) for phase in PHASES]})


def make_teacher(base: Path, folder: Path, run_dir: Path, steps: int = TEACHER_STEPS) -> None:
    """Teaches a copy of the base the task: gold chains over really retrieved passages, by the project's own build.

    `run_dir` keeps the trajectories; a rerun takes them from there. Needs Ray.
    """
    from steper_ray import stages
    from steper_ray.config import Config
    from steper_ray.training.tokenising import tokenise

    config = Config.model_validate(
        {
            "run_dir": run_dir,
            "corpus": {
                "miniature": {"seed": TEACHER_SEED, "worlds": TEACHER_WORLDS, "questions_per_world": 8}
            },
            "build": {"teacher": "annotation", "annotation": {"missing": "keep"}},
            "train": {"batch_examples": 40, "row_tokens": TEACHER_ROW},
        }
    )
    stages.build(config)
    tokenizer = AutoTokenizer.from_pretrained(base)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokens = tokenise(stages.trajectories_folder(config), str(base), run_dir)
    data = load_data(tokens, config.train, max_positions=2048)
    batches = ([tree for item in data.batch(step).items for tree in item.trees] for step in range(steps))
    train(model, batches, steps, TEACHER_RATE)
    model.save_pretrained(folder)
    _finish(folder, {"model": "teacher", "steps": steps, "rate": TEACHER_RATE, "worlds": TEACHER_SEED})


def ship(folder: Path, assets: Path) -> None:
    """A model folder as it goes into the package: float16, half the size."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    model.save_pretrained(assets)
    for name in ("tokenizer.json", "tokenizer_config.json", DONE):
        (assets / name).write_bytes((folder / name).read_bytes())


def _finish(folder: Path, recipe: dict[str, object]) -> None:
    write_text(folder / DONE, json.dumps(recipe) + "\n")


def _reading(tokenizer: PreTrainedTokenizerBase, phase: Phase) -> Iterator[list[Tree]]:
    encoder, rng = PromptEncoder(tokenizer, FRAMEWORKS["ircot"].layout), Random(phase.seed)
    for round_ in range(10**9):
        worlds = [world for world, _ in make_worlds(phase.seed + round_, _WORLDS, "train")]
        for _ in range(_STEPS_PER_WORLDS):
            trees: list[Tree] = []
            while len(trees) < phase.trees:
                tree = reading_tree(
                    rng.choice(worlds),
                    rng,
                    encoder,
                    phase.branches,
                    rng.randint(*phase.passages),
                    varied=phase.varied,
                )
                if len(tree) <= phase.tree_tokens:
                    trees.append(tree)
            yield trees
