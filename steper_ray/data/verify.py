"""Checks of a trajectory's steps: a right answer may have been reached by wrong reasoning, and a student learns both.

A verifier scores every step from 0 to 1; a trajectory with a step below a threshold is dropped, naming the step. Pure
functions of a trajectory and of scores: nothing is generated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

from steper_ray.config import VerifyConfig
from steper_ray.core.claims import Ground, Shares
from steper_ray.schema import StepScore, Trajectory

#: Opens the drop reason of a trajectory with a step below a verifier's threshold: `unverified_grounding`.
UNVERIFIED = "unverified_"
#: Drop reason of a right trajectory whose scores by a model are owed: it is judged by the next build.
UNSCORED = "unscored"


class Reading:
    """A trajectory as the verifiers read it: its claims and passages are analysed once, when a verifier needs them."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.steps = trajectory.steps
        self._question = trajectory.question.text

    @cached_property
    def shares(self) -> list[Shares | None]:
        """Each step's shares, from the question and the passages seen by then."""
        ground = Ground(self._question)
        shares = []
        for step in self.steps:
            ground.add(hit.passage for hit in step.hits)
            shares.append(ground.shares(step.reasoning))
        return shares


Verifier = Callable[[Reading], Sequence[float | None]]


def _grounding(reading: Reading) -> list[float | None]:
    return [None if shares is None else shares.grounding for shares in reading.shares]


def _support(reading: Reading) -> list[float | None]:
    return [None if shares is None else shares.support for shares in reading.shares]


def _confidence(reading: Reading) -> list[float | None]:
    return [None if step.mean_logprob is None else math.exp(step.mean_logprob) for step in reading.steps]


#: By the field of VerifyConfig that sets the threshold, in the order in which they are applied.
VERIFIERS: dict[str, Verifier] = {"grounding": _grounding, "support": _support, "confidence": _confidence}


#: Those that ask a model (model_verify.py), applied last.
MODEL_VERIFIERS = ("agreement", "judge")


def thresholds(config: VerifyConfig) -> dict[str, float]:
    """The verifiers that are set, and the least score of each."""
    return {
        name: value for name in (*VERIFIERS, *MODEL_VERIFIERS) if (value := getattr(config, name)) is not None
    }


def score_steps(trajectory: Trajectory, verifiers: Sequence[str]) -> list[StepScore]:
    """The scores of every step, verifier by verifier; those that ask a model are no business of this function."""
    reading = Reading(trajectory)
    return [
        StepScore(trajectory.id, step.index, name, score)
        for name in verifiers
        if name in VERIFIERS
        for step, score in zip(trajectory.steps, VERIFIERS[name](reading), strict=True)
    ]


def first_failure(scores: Sequence[StepScore], least: dict[str, float]) -> StepScore | None:
    """The first step below its threshold, by the first verifier that has one. A step without a score passes."""
    return next((s for s in scores if s.score is not None and s.score < least[s.verifier]), None)


def explain(failed: StepScore, least: dict[str, float], trajectory: Trajectory) -> str:
    """The fault that was found, with the step's own words."""
    step = trajectory.steps[failed.step - 1]
    return f"step {failed.step}: {failed.verifier} {failed.score:.3f} < {least[failed.verifier]:g}: {step.reasoning}"
