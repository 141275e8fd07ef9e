"""The multi-step loop: retrieve, reason, stop. Knows engines and indexes as protocols only."""

from steper_ray.reasoning.events import Event, Finished, PassagesFound, ReasoningDelta, StepDone, StepStarted
from steper_ray.reasoning.loop import Reasoner
from steper_ray.reasoning.passages import PassagePool
from steper_ray.reasoning.resuming import AT_START, Begun, SentEvents

__all__ = [
    "AT_START",
    "Begun",
    "Event",
    "Finished",
    "PassagePool",
    "PassagesFound",
    "Reasoner",
    "ReasoningDelta",
    "SentEvents",
    "StepDone",
    "StepStarted",
]
