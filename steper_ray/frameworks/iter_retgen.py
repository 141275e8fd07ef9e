"""ITER-RETGEN (Shao et al. 2023): rounds of retrieval and whole answers, each round from its own passages alone.

- A baseline (StepER, Table 1), not a teacher: its steps are whole chains, which no student could learn as steps.
- `reasoning.max_steps` is the number of rounds; all of them run, and the last one's answer counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from steper_ray.frameworks.ircot import IRCoT


class IterRetgen(IRCoT):
    """IRCoT's layout; a step is a whole chain, and the next search asks the question with that chain behind it."""

    rewrites = True

    def next_query(self, question: str, chain: Sequence[str]) -> str:
        return " ".join((question, *chain[-1:]))

    def cut(self, text: str) -> tuple[str, bool]:
        """The whole text: never complete before the generation ends."""
        return self.clean(text), False
