"""The place of a record, and the handling of one that cannot be used. Knows nothing of what records mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from steper_ray.core.errors import DataError


class Malformed(ValueError):
    """A record that cannot be used; the message says why. Never leaves this room."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that was omitted: its file, its line (`line 3`) or number (`record 3`), and why."""

    file: str
    record: str
    reason: str


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a record."""

    file: str
    record: str


@dataclass(slots=True)
class ErrorLog:
    """Handles malformed records. Reading a file twice notes each of its records once."""

    on_error: Literal["stop", "skip"]
    _notes: dict[Skipped, None] = field(default_factory=dict)

    @property
    def skipped(self) -> list[Skipped]:
        return list(self._notes)

    def malformed(self, place: Place, reason: str) -> None:
        """Raises DataError with `on_error` stop; otherwise takes a note."""
        if self.on_error == "stop":
            raise DataError(
                f"{place.file}, {place.record}: {reason}. Correct it (docs/data.md lists the layouts), or set "
                "corpus.on_error=skip to leave such records out"
            )
        self.leave_out(place, reason)

    def leave_out(self, place: Place, reason: str) -> None:
        """Notes a record that is well-formed but of no use."""
        self._notes[Skipped(place.file, place.record, reason)] = None
