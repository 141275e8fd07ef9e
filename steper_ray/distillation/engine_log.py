"""Lives of a build's engines, one file each, that outlive their processes: what bounds the restarts, and what is
known of a death.

A process that is killed cannot say so itself: its start is noted before the engine is opened, and each question
before it is asked and when it is done. A note is a few bytes appended to a file of its own that stays open: nothing
is created, synchronised or renamed for a question. What a process wrote outlives it (and on NFS its close, which the
kernel does, makes it visible to all nodes); the notes of a machine that loses power may be lost, and then its
questions are merely no suspects. Every actor of the build sees the folder. No engine, no Ray.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from steper_ray.distillation.suspects import History, Life
from steper_ray.errors import EngineDeadError

_ASKED, _ALONE, _DONE, _DIED = "asked", "alone", "done", "died"


@dataclass(frozen=True, slots=True)
class EngineLog:
    """At most `limit` starts between two `clear`s, and as many more as deaths are explained by a question."""

    folder: Path
    limit: int

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def started(self) -> tuple[EngineNotes, History]:
        """Notes a start, after which nobody else notes anything. Returns the new engine's notes, and what earlier ones
        tell. Raises EngineDeadError, with the last words of an engine, if there were too many."""
        self.folder.mkdir(parents=True, exist_ok=True)
        read = [_read(path) for path in sorted(self.folder.glob("start-*"))]  # oldest first
        history = History([life for life, _ in read])
        if len(read) - history.explained >= self.limit:
            words = [said for _, said in read if said]
            said = (
                f"the last words of one: {words[-1]}" if words else "they left no word, see the workers' logs"
            )
            raise EngineDeadError(
                f"engines were started {len(read)} times and died; {said}. Committed shards are kept: mend the "
                "engine (memory?), then build again to go on"
            )
        return EngineNotes(self.folder / f"start-{time.time_ns():020}-{uuid.uuid4().hex}"), history


class EngineNotes:
    """The file of one engine's life, open as long as its process lives. A key names what is asked, across processes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def asked(self, key: str, alone: bool) -> None:
        self._write(_ALONE if alone else _ASKED, key)

    def done(self, key: str) -> None:
        self._write(_DONE, key)

    def died(self, words: str) -> None:
        """Notes why an engine is about to be restarted."""
        self._write(_DIED, words)

    def _write(self, event: str, text: str) -> None:
        os.write(self._file, json.dumps([event, text]).encode() + b"\n")


def _read(path: Path) -> tuple[Life, str]:
    """A life and its last words. Of one question, several things may be asked at a time (samples)."""
    asked, done, alone, words = Counter[str](), Counter[str](), set[str](), ""
    for line in path.read_bytes().splitlines():
        try:
            event, text = json.loads(line)
        except ValueError:  # cut short by the death of its machine
            continue
        if event == _DONE:
            done[text] += 1
        elif event == _DIED:
            words = text
        else:
            asked[text] += 1
            if event == _ALONE:
                alone.add(text)
    left = frozenset(asked - done)
    return Life(frozenset(done) - left, left, left & alone, done.total()), words
