"""A client of the reasoner endpoint. Needs neither Ray nor torch."""

from steper_ray.client.client import Client
from steper_ray.client.replies import (
    AccessError,
    Answer,
    BusyError,
    Event,
    FailedError,
    QuestionError,
    ReasonerError,
    UnreachableError,
)

__all__ = [
    "AccessError",
    "Answer",
    "BusyError",
    "Client",
    "Event",
    "FailedError",
    "QuestionError",
    "ReasonerError",
    "UnreachableError",
]
