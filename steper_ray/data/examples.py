"""One trajectory -> its step-wise examples (StepER, Fig. 1 and 2).

(question, passages up to step s) -> the cumulative chain up to step s. A pure function. Vanilla-KD is the
last example alone; training picks it.
"""

from __future__ import annotations

from steper_ray.core.errors import DataError
from steper_ray.schema import StepExample, Trajectory, ability_of


def make_examples(trajectory: Trajectory) -> tuple[StepExample, ...]:
    """One example a step, in order, with ids `<trajectory id>#<step>`.

    Passages are kept step by step, a step that found nothing new has none; times and scores are left behind.
    Raises DataError for a trajectory in which something was taken back: its steps are not those of its chain.
    """
    if any(step.taken_back for step in trajectory.steps):
        raise DataError(
            f"trajectory '{trajectory.id}': a step took back what it wrote, so there is no example for it: "
            "make trajectories to learn from with reasoning.stop=fixed"
        )
    passages = tuple(tuple(hit.passage for hit in step.hits) for step in trajectory.steps)
    n_steps = len(trajectory.steps)
    return tuple(
        StepExample(
            id=f"{trajectory.id}#{step}",
            question_id=trajectory.id,
            step=step,
            n_steps=n_steps,
            ability=ability_of(step, n_steps),
            question=trajectory.question.text,
            passages=passages[:step],
            chain=trajectory.chain[:step],
            framework=trajectory.framework,
        )
        for step in range(1, n_steps + 1)
    )
