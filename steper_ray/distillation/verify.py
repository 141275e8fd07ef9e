"""Checks of a trajectory's steps: a right answer may have been reached by wrong reasoning, and a student learns both.

A verifier scores every step from 0 to 1; a trajectory with a step below a threshold is dropped, and told which. Pure
functions of a trajectory and of scores: nothing is generated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from steper_ray.claims import grounding, support
from steper_ray.config import VerifyConfig
from steper_ray.schema import StepScore, Trajectory

#: Opens the drop reason of a trajectory with a step below a verifier's threshold: `unverified_grounding`.
UNVERIFIED = "unverified_"

Verifier = Callable[[Trajectory], Sequence[float | None]]


def _grounding(trajectory: Trajectory) -> list[float | None]:
    seen = 0
    scores = []
    for step in trajectory.steps:
        seen += len(step.hits)
        scores.append(grounding(step.reasoning, trajectory.question.text, trajectory.passages[:seen]))
    return scores


def _support(trajectory: Trajectory) -> list[float | None]:
    seen = 0
    scores = []
    for step in trajectory.steps:
        seen += len(step.hits)
        scores.append(support(step.reasoning, trajectory.passages[:seen]))
    return scores


def _confidence(trajectory: Trajectory) -> list[float | None]:
    return [None if s.mean_logprob is None else math.exp(s.mean_logprob) for s in trajectory.steps]


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
    return [
        StepScore(trajectory.id, step.index, name, score)
        for name in verifiers
        if name in VERIFIERS
        for step, score in zip(trajectory.steps, VERIFIERS[name](trajectory), strict=True)
    ]


def first_failure(scores: Sequence[StepScore], least: dict[str, float]) -> StepScore | None:
    """The first step below its threshold, by the first verifier that has one. A step without a score passes."""
    return next((s for s in scores if s.score is not None and s.score < least[s.verifier]), None)


def explain(failed: StepScore, least: dict[str, float], trajectory: Trajectory) -> str:
    """What was found wrong, with the step's own words."""
    step = trajectory.steps[failed.step - 1]
    return f"step {failed.step}: {failed.verifier} {failed.score:.3f} < {least[failed.verifier]:g}: {step.reasoning}"
