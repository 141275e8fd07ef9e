"""The events of a running trajectory, in order: step started, passages, deltas, step done, ..., finished."""

from __future__ import annotations

from dataclasses import dataclass

from steper_ray.schema import Hit, Step, Trajectory


@dataclass(frozen=True, slots=True)
class StepStarted:
    """Step `index` (from 1) begins by retrieving with `query`."""

    index: int
    query: str


@dataclass(frozen=True, slots=True)
class PassagesFound:
    """The passages that are new at this step; `duplicates` were found and not added (see `Step`)."""

    index: int
    hits: tuple[Hit, ...]
    duplicates: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More text of this step's reasoning, as it is generated. StepDone holds the text that counts."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class StepDone:
    step: Step


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every stream, whatever happened."""

    trajectory: Trajectory


Event = StepStarted | PassagesFound | ReasoningDelta | StepDone | Finished
