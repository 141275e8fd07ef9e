"""Which trajectories become training data, and why others do not (StepER keeps those with a right answer).

A pure function of one trajectory. It knows nothing of files, shards or engines.
"""

from __future__ import annotations

from typing import Literal

from steper_ray.answers import is_right
from steper_ray.schema import StopReason, Trajectory

Match = Literal["exact", "contains"]

WRONG_ANSWER = "wrong_answer"
#: Why the annotation teacher writes no chain: these open the `error` of a rejected trajectory.
NO_DECOMPOSITION = "no_decomposition"
TOO_MANY_HOPS = "too_many_hops"
_WRITTEN_REASONS = (NO_DECOMPOSITION, TOO_MANY_HOPS)


def drop_reason(trajectory: Trajectory, match: Match) -> str | None:
    """None for a trajectory to keep, else one word for the counts.

    Only a stated answer counts: what ended for another reason than `answered` is dropped under that reason
    (step_limit, empty, deadline, retriever_failed, generator_failed, rejected), even if its last sentence
    happens to hold the answer, because its last step would teach no aggregation.
    """
    reason = trajectory.stop_reason
    if reason is StopReason.REJECTED:
        code = (trajectory.error or "").partition(":")[0]
        return code if code in _WRITTEN_REASONS else reason.value
    if reason is not StopReason.ANSWERED:
        return reason.value
    return None if is_right(trajectory.answer, trajectory.question.answers, match) else WRONG_ANSWER
