"""Checks before the first step that packing changes nothing, and probes a student for the engines that will load it.

A few short step trees of the data are run as the training packs them, and each of their examples alone through the
model's own eager attention, without masks or positions of ours. Both give every target token the same log-probability,
or the training is refused: no list of architectures is kept. Whatever reaches further than these trees (a sliding
window) is read from the model's config instead (`models.partial_attention`). All workers run it together, as ZeRO-3
needs; it takes about five forward passes of at most a hundred tokens, without gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steper_ray.config import TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.core.probes import Probe, Probes
from steper_ray.training.data import Item
from steper_ray.training.forward import Forward
from steper_ray.training.memory import training_dtype
from steper_ray.training.packing import Branch, Tree, pack_rows

#: Mean difference of the target tokens' log-probabilities that may be rounding. SmolLM2-135M, 30 layers deep, differs
#: by 2e-6 in float32 and by 0.05 in bfloat16, where a logit above 16 is a multiple of 1/8 on both sides. What sees a
#: wrong token differs by more; a smaller difference, such as that of a lost soft-cap, is found in float32 alone.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}

_TRUNK, _PROMPT, _TARGET = 32, 6, 8  # tokens that are left of a tree's parts
_BRANCHES = 2
_POSITIONS = 4  # probes of one example
#: What transformers' models raise for a mask or an argument that they do not take.
_REFUSALS = (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError)


def short_trees(items: Sequence[Item]) -> tuple[Tree, ...]:
    """The trees of two trajectories, cut down: a few tokens of the trunk, of two branches each."""
    chosen = (items[0], items[-1])
    return tuple(_short(tree) for item in chosen for tree in item.trees[-_BRANCHES:])


def _short(tree: Tree) -> Tree:
    trunk = tree.trunk[:_TRUNK]
    branches = tree.branches if len(tree.branches) <= _BRANCHES else (tree.branches[0], tree.branches[-1])
    return Tree(trunk, tuple(_short_branch(branch, len(trunk) / len(tree.trunk)) for branch in branches))


def _short_branch(branch: Branch, share: float) -> Branch:
    cut = max(1, round(branch.cut * share))
    return Branch(cut, branch.prompt[-_PROMPT:], branch.target[:_TARGET], branch.task)


def examples_of(trees: Sequence[Tree]) -> list[Tree]:
    """Each example as a separate tree, in the order in which packing numbers them."""
    return [Tree(tree.trunk[: branch.cut], (branch,)) for tree in trees for branch in tree.branches]


def check_exactness(student: Forward, trees: Sequence[Tree], config: TrainConfig, name: str) -> None:
    """Raises TrainingError, with the fix, unless packing as `config` says gives each example what it has alone.

    `name` is that of the model: the student, or its teacher.
    """
    try:
        together = _targets(student, trees, _rows(len(trees), config))
    except torch.OutOfMemoryError:
        raise
    except TrainingError as error:
        raise _refusal(student, config, name, str(error)) from error
    except _REFUSALS as error:
        raise _refusal(
            student, config, name, f"its forward pass fails: {type(error).__name__}: {error}"
        ) from error
    with student.attending("eager"):
        alone = torch.cat([_targets(student, [example], [[0]]) for example in examples_of(trees)])
    difference = (together - alone).abs().mean().item()
    tolerance = TOLERANCE[training_dtype(config)]
    if not difference <= tolerance:  # nor where it is no number
        raise _refusal(
            student,
            config,
            name,
            f"the log-probabilities of target tokens differ by {difference:.2g} on average from those of the same "
            f"examples alone (rounding: up to {tolerance:g})",
        )


def _rows(trees: int, config: TrainConfig) -> list[list[int]]:
    """One tree a row, or all but the last in one row: the other one is then padded."""
    if config.packing == "padded":
        return [[tree] for tree in range(trees)]
    return [list(range(trees - 1)), [trees - 1]]


def _targets(student: Forward, trees: Sequence[Tree], rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """The log-probability of every target token, example by example."""
    all_tokens, labels, example = student.log_probabilities(pack_rows(trees, rows, pad_id=0))
    found = all_tokens.gather(1, labels[:, None])[:, 0]
    return found[example.argsort(stable=True)]


def _refusal(student: Forward, config: TrainConfig, name: str, what: str) -> TrainingError:
    asked = f"train.packing={config.packing} and train.attention={config.attention}"
    fixes = ["take another model"]
    if config.attention != "eager":
        fixes.insert(
            0, "set train.packing=padded and train.attention=eager, which leave attention to the model"
        )
    if config.attention == "blocks":
        fixes.insert(0, "set train.attention=dense")
    return TrainingError(
        f"{name} ({type(student.module).__name__}) cannot be trained exactly with {asked}: {what}. This kind "
        f"of model asks for more than they express. {'; or '.join(fixes).capitalize()}"
    )


def probe(student: Forward, trees: Sequence[Tree], config: TrainConfig) -> Probes:
    """The student's own next tokens within the targets of a few short examples."""
    examples = examples_of(trees)
    found, _, of = student.log_probabilities(
        pack_rows(examples, [[i] for i in range(len(examples))], pad_id=0)
    )
    probes = list[Probe]()
    for number, example in enumerate(examples):
        (branch,) = example.branches
        tokens = found[of == number]
        for position in range(0, len(tokens), -(-len(tokens) // _POSITIONS)):
            logprob, token = tokens[position].max(dim=-1)
            prompt = (*example.trunk, *branch.prompt, *branch.target[:position])
            probes.append(Probe(tuple(map(int, prompt)), int(token), float(logprob)))
    return Probes(str(training_dtype(config)).removeprefix("torch."), tuple(probes))
