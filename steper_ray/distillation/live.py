"""What engines are doing right now, read from their notes as these grow. Pure files: no engine, no Ray."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from steper_ray.distillation.engine_log import Event, events, lives
from steper_ray.distillation.progress import Work


@dataclass(slots=True)
class _Asked:
    """What the newest engine that was asked a question has noted of it."""

    life: Path
    asked: int = 0
    done: int = 0
    work: Work = field(default_factory=Work)

    @property
    def in_flight(self) -> bool:
        return self.asked > self.done


class Live:
    """The engines of one run, below `folder`. `groups` is how often a question is asked for (see teachers.turns)."""

    def __init__(self, folder: Path, questions: Iterable[str], groups: int = 1) -> None:
        self._folder, self._groups = folder, groups
        self._questions = set(questions)  # verifiers note their keys too
        self._read: dict[Path, int] = {}
        self._state: dict[str, _Asked] = {}

    def read(self) -> None:
        """Reads what was noted since the last call. What a machine's death cut short is left for later."""
        for life in lives(self._folder):
            with life.open("rb") as stream:
                stream.seek(self._read.get(life, 0))
                new = stream.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[life] = self._read.get(life, 0) + len(whole)
            for event in events(whole):
                if event.text in self._questions:
                    self._note(life, event)

    def committed(self, questions: Iterable[str]) -> None:
        """Forgets these: their shard tells of them from now on."""
        for question in questions:
            self._questions.discard(question)
            self._state.pop(question, None)

    @property
    def in_flight(self) -> int:
        """Questions that an engine is working on; those of one that died are among them until they are asked again."""
        return sum(state.in_flight for state in self._state.values())

    @property
    def work(self) -> Work:
        """What is done but not committed."""
        total = Work()
        for state in self._state.values():
            total += state.work
            total.questions += state.done >= self._groups and not state.in_flight
        return total

    def _note(self, life: Path, event: Event) -> None:
        state = self._state.get(event.text)
        if state is None or state.life != life:  # lives are read oldest first
            state = self._state[event.text] = _Asked(life)
        if event.is_end:
            state.done += 1
            state.work += Work(0, *event.counts)
            state.work.right = min(state.work.right, 1)  # several samples of one question may be
        else:
            state.asked += 1
