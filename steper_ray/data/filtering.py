"""Decides which trajectories become training data, and why others do not (StepER keeps right answers).

Pure functions of the trajectories of one question. It knows nothing of files, shards or engines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from steper_ray.core.answers import comparable, is_right
from steper_ray.rollouts.annotation import NO_DECOMPOSITION, TOO_MANY_HOPS, UNSUPPORTED
from steper_ray.schema import StopReason, Trajectory

Match = Literal["exact", "contains"]
Keep = Literal["first", "all", "majority"]

WRONG_ANSWER = "wrong_answer"
_WRITTEN_REASONS = (NO_DECOMPOSITION, TOO_MANY_HOPS, UNSUPPORTED)


def drop_reason(trajectory: Trajectory, match: Match) -> str | None:
    """`reason_to_drop` of a whole trajectory."""
    t = trajectory
    return reason_to_drop(t.stop_reason, t.answer, t.question.answers, t.error, match)


def reason_to_drop(
    stop: StopReason, answer: str, answers: Sequence[str], error: str | None, match: Match
) -> str | None:
    """None for a trajectory to keep, else one word for the counts.

    Only a stated answer counts: what ended for another reason than `answered` is dropped under that reason
    (unsure, step_limit, empty, deadline, rejected), even if its last sentence happens to hold the answer, because its
    last step would teach no aggregation.
    """
    if stop is StopReason.REJECTED:
        code = (error or "").partition(":")[0]
        return code if code in _WRITTEN_REASONS else stop.value
    if stop is not StopReason.ANSWERED:
        return stop.value
    return None if is_right(answer, answers, match) else WRONG_ANSWER


#: Right, but not learned from: another sample of the question is.
SPARE = "spare"
#: Right, but most samples of the question give no right answer.
MINORITY = "minority"


def choose(
    samples: Sequence[Trajectory], reasons: Sequence[str | None], keep: Keep, match: Match
) -> list[str | None]:
    """Drop reasons of ONE question's trajectories: those given, and those of right ones that are not learned from.

    `reasons` are those of `drop_reason` and of the verifiers. The majority is that of the normalised answers of all
    samples that state one; of equally frequent ones the earliest counts. Second chances have no vote: they know that
    the answer before was wrong.
    """
    right = [number for number, reason in enumerate(reasons) if reason is None]
    chosen = list(reasons)
    if not right:
        return chosen
    if keep == "all":
        chains = set[tuple[str, ...]]()
        for number in right:
            if samples[number].chain in chains:
                chosen[number] = SPARE
            chains.add(samples[number].chain)
        return chosen
    voters = [t for t in samples if t.stop_reason is StopReason.ANSWERED and not t.attempt]
    agreed = Counter(comparable(t.answer) for t in voters).most_common(1)[0][0]
    luck = keep == "majority" and not is_right(agreed, samples[0].question.answers, match)
    for number in right if luck else right[1:]:
        chosen[number] = MINORITY if luck else SPARE
    return chosen
