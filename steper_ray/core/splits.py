"""Held-out questions, by a function of the question's id alone: more data moves none between the sets.

The same questions are held out wherever this is used: in an export's validation split, in training, and where a
student is asked questions while it learns. Knows no other module.
"""

from __future__ import annotations

import hashlib
import re

# What `Trajectory.id` puts behind the question's id: the numbers of a further sample or second chance.
_SAMPLE = re.compile(r"~\d+(\.\d+)?$")


def question_of(trajectory_id: str) -> str:
    """The question's id of a trajectory's id."""
    return _SAMPLE.sub("", trajectory_id)


def draw(question_id: str) -> float:
    """A question's own number in [0, 1), evenly spread over questions: below a share, it is held out."""
    return int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:8]) / 2**64
