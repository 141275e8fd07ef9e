"""Which questions are suspected of killing engines, which are given up, and which deaths that explains.

A question that was in flight when SUSPECT engines died is a suspect until it has been done once. A suspect is asked
alone, so that another death is its own; one that killed GIVE_UP engines alone is asked no more. Pure: no files, no
engine, no Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

#: Engines that a question may kill while it is alone in them. One death may be chance.
GIVE_UP = 2
#: Engines that died with a question in flight before it is a suspect. After one death, an accident mostly, all that was
#: in flight is asked again in company: one by one it would keep a large engine busy with one question for long.
SUSPECT = 2


@dataclass(frozen=True, slots=True)
class Life:
    """What one engine's process noted: the questions it did, those `left` in flight at its end, and of these the one
    that was asked `alone`; and how many turns it survived (a question may take several)."""

    done: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()
    survived: int = 0


class History:
    """The lives of a build's engines up to now, oldest first.

    A question lies in one shard and a shard with one actor, so what is left of a question was left by a process that
    ended: those of other actors that are alive do not matter to the one that asks.
    """

    def __init__(self, lives: Sequence[Life]) -> None:
        self._deaths = Counter(key for life in lives for key in life.left)
        self._alone = Counter(key for life in lives for key in life.alone)
        self._suspects: set[str] = set()
        deaths = Counter[str]()  # since the question was done last
        for life in lives:
            for key in life.done:
                deaths.pop(key, None)
            deaths.update(life.left)
            self._suspects -= life.done
            self._suspects |= {key for key in life.left if deaths[key] >= SUSPECT} | life.alone
        at = [life.survived for life in lives if life.alone]
        #: What a new engine must survive before a suspect that killed one is asked again: something, and not as much as
        #: last time, or an engine that always dies of its second question would be taken for a question that kills.
        self.witnesses = 2 if at and at[-1] == 1 else 1
        #: Deaths with a question in flight that was given up later: they do not speak against the engine.
        self.explained = sum(any(self.given_up(key) for key in life.left) for life in lives)

    def given_up(self, key: str) -> int | None:
        """The engines that died with the question in flight, if it is to be asked no more; None otherwise."""
        return self._deaths[key] if self._alone[key] >= GIVE_UP else None

    def killed_alone(self, key: str) -> int | None:
        """For a suspect, the engines that it killed alone; None for any other question."""
        return self._alone[key] if key in self._suspects else None
