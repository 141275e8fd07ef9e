"""The multi-step loop: retrieve, reason, stop. Knows engines and indexes as protocols only."""

from steper_ray.reasoning.events import Event, Finished, PassagesFound, ReasoningDelta, StepDone, StepStarted
from steper_ray.reasoning.loop import Reasoner
from steper_ray.reasoning.passages import PassagePool

__all__ = [
    "Event",
    "Finished",
    "PassagePool",
    "PassagesFound",
    "Reasoner",
    "ReasoningDelta",
    "StepDone",
    "StepStarted",
]
