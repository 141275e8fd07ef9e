"""A trajectory as token ids: its trunk, its question, its chain, and where each step's passages and words end.

What token files hold, and what is made of the chains that a student writes in its own training. No Ray, no model.
"""

from __future__ import annotations

from dataclasses import dataclass

from steper_ray.prompts import PromptEncoder
from steper_ray.schema import Ability, Trajectory, ability_of
from steper_ray.training.alignment import Halves, Ints, likeliest
from steper_ray.training.packing import Branch

_TASK = {ability: number for number, ability in enumerate(Ability)}


@dataclass(frozen=True, slots=True)
class Encoded:
    """Step s (from 0) sees the first `cuts[s]` ids of `trunk`, and has written the first `ends[s]` ids of `chain`."""

    trunk: list[int]
    question: list[int]
    chain: list[int]
    cuts: list[int]
    ends: list[int]
    tasks: list[int]
    """The ability of each step, as its number."""
    soft_ids: Ints
    """Shape (len(chain), k): the likeliest tokens of the build's teacher (alignment.py)."""
    soft_logprobs: Halves

    def own_words(self, end: int, reward: float = 0.0) -> tuple[Branch, ...]:
        """A branch a step whose target is what that step wrote, and `end` behind it: what was asked is its prompt.

        The examples of a teacher's chain have all of the chain so far as their target.
        """
        starts = (0, *self.ends[:-1])
        return tuple(
            Branch(
                cut,
                [*self.question, *self.chain[:start]],
                [*self.chain[start:stop], end],
                task,
                reward=reward,
            )
            for cut, start, stop, task in zip(self.cuts, starts, self.ends, self.tasks, strict=True)
        )


def encode(trajectory: Trajectory, encoder: PromptEncoder) -> Encoded:
    """The ids of a trajectory with the prompts of `encoder`. Raises ValueError as `likeliest`."""
    begin = encoder.trunk(())
    trunk, cuts, ends = list(begin), list[int](), list[int]()
    chain, pieces = list[int](), list[list[int]]()
    for step in trajectory.steps:
        for hit in step.hits:
            trunk += encoder.trunk((hit.passage,))[len(begin) :]
        pieces.append(encoder.chain((step.reasoning,), begun=bool(chain)))
        chain += pieces[-1]
        cuts.append(len(trunk))
        ends.append(len(chain))
    n_steps = len(trajectory.steps)
    tasks = [_TASK[ability_of(step, n_steps)] for step in range(1, n_steps + 1)]
    question, said = (
        encoder.question(trajectory.question.text),
        likeliest(pieces, trajectory.steps, encoder.tokenizer),
    )
    return Encoded(trunk, question, chain, cuts, ends, tasks, *said)
