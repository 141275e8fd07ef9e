"""Starts and deaths of a build's engines, as files that outlive their processes: what bounds the restarts.

A process that is killed cannot count itself, so every start is noted before the engine is opened. Every actor
of the build sees the folder. No engine, no Ray.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from steper_ray.errors import EngineDeadError


@dataclass(frozen=True, slots=True)
class EngineLog:
    """At most `limit` starts between two `clear`s."""

    folder: Path
    limit: int

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def started(self) -> None:
        """Notes a start. Raises EngineDeadError, with the last words of an engine, if there were too many."""
        self.folder.mkdir(parents=True, exist_ok=True)
        starts = len(list(self.folder.glob("start-*")))
        if starts >= self.limit:
            words = [path.read_text(encoding="utf-8") for path in self.folder.glob("death-*")]
            said = (
                f"the last words of one: {words[-1]}" if words else "they left no word, see the workers' logs"
            )
            raise EngineDeadError(
                f"engines were started {starts} times and died; {said}. Committed shards are kept: mend the "
                "engine (memory?), then build again to go on"
            )
        (self.folder / f"start-{uuid.uuid4().hex}").touch()

    def died(self, words: str) -> None:
        """Notes why an engine is about to be restarted."""
        (self.folder / f"death-{uuid.uuid4().hex}").write_text(words, encoding="utf-8")
