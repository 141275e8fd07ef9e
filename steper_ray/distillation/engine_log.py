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
from collections.abc import Iterator, Sequence
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
        read = [_read(path) for path in lives(self.folder)]
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

    def done(self, key: str, counts: Sequence[int] = ()) -> None:
        """`counts` are for whoever watches (see live.py)."""
        self._write(_DONE, key, list(counts))

    def died(self, words: str) -> None:
        """Notes why an engine is about to be restarted."""
        self._write(_DIED, words)

    def _write(self, event: str, text: str, *more: Sequence[int]) -> None:
        os.write(self._file, json.dumps([event, text, *more]).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Event:
    """One line of an engine's notes: `text` is the key of what was asked, or an engine's last words."""

    kind: str
    text: str
    counts: tuple[int, ...] = ()

    @property
    def is_end(self) -> bool:
        return self.kind == _DONE


def lives(folder: Path) -> list[Path]:
    """The notes of all engines that were started, oldest first."""
    return sorted(folder.glob("start-*"))


def events(lines: bytes) -> Iterator[Event]:
    """The events of some lines of notes; one that was cut short by the death of its machine is passed over."""
    for line in lines.splitlines():
        try:
            kind, text, *counts = json.loads(line)
        except ValueError:
            continue
        yield Event(kind, text, tuple(*counts))


def _read(path: Path) -> tuple[Life, str]:
    """A life and its last words. Of one question, several things may be asked at a time (samples)."""
    asked, done, alone, words = Counter[str](), Counter[str](), set[str](), ""
    for event in events(path.read_bytes()):
        if event.is_end:
            done[event.text] += 1
        elif event.kind == _DIED:
            words = event.text
        else:
            asked[event.text] += 1
            if event.kind == _ALONE:
                alone.add(event.text)
    left = frozenset(asked - done)
    return Life(frozenset(done) - left, left, left & alone, done.total()), words
