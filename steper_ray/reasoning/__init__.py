"""The multi-step loop and its frameworks: retrieve, reason, stop. Knows engines and indexes as protocols only."""

from steper_ray.reasoning.events import Event, Finished, PassagesFound, ReasoningDelta, StepDone, StepStarted
from steper_ray.reasoning.frameworks import FRAMEWORKS, Framework
from steper_ray.reasoning.loop import Reasoner
from steper_ray.reasoning.passages import PassagePool

__all__ = [
    "FRAMEWORKS",
    "Event",
    "Finished",
    "Framework",
    "PassagePool",
    "PassagesFound",
    "Reasoner",
    "ReasoningDelta",
    "StepDone",
    "StepStarted",
]
