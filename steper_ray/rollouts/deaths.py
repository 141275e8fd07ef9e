"""Finds questions that kill engines: those in flight at a death are asked alone, proven ones no more.

- A question in flight at COMPANY deaths is asked alone, so that another death is its own.
- A question that killed ALONE engines while alone is given up for this run; no other question is.
- An engine that dies BARREN times before it ever answered anything ends the run, and so does one that dies
  BARREN_LATER times in a row answering nothing, deaths of questions given up left aside.

Pure bookkeeping over the actors' notes: no engine, no Ray. A question lies in one shard and a shard in one actor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from steper_ray.core.errors import EngineDeadError

COMPANY, ALONE = 2, 2
BARREN, BARREN_LATER = 5, 15


@dataclass(slots=True)
class _Life:
    """One process of an actor: what it is asked now, and what it was asked alone."""

    asked: set[str] = field(default_factory=set)
    alone: str | None = None


@dataclass(frozen=True, slots=True)
class Verdicts:
    """State for a new process: questions to ask alone, and engines killed by each question given up."""

    suspects: frozenset[str]
    given_up: dict[str, int]


class Deaths:
    """The notes of all actors of a run."""

    def __init__(self) -> None:
        self._lives: dict[str, _Life] = {}
        self._deaths: Counter[str] = Counter()
        self._alone: Counter[str] = Counter()
        self._barren: dict[str, list[frozenset[str]]] = {}
        self._worked: set[str] = set()
        self._words = "it left no word: see the workers' logs"

    def start(self, actor: str) -> Verdicts:
        """A process of this actor begins; an earlier one of it has died. Raises EngineDeadError."""
        life = self._lives.get(actor)
        self._lives[actor] = _Life()
        barren = self._barren.setdefault(actor, [])
        if life is not None:
            self._deaths.update(life.asked)
            if life.alone is not None:
                self._alone[life.alone] += 1
            barren.append(frozenset(life.asked))
        given_up = {key: self._deaths[key] for key, times in self._alone.items() if times >= ALONE}
        unexplained = [asked for asked in barren if not asked & given_up.keys()]
        explained = set().union(*barren) & given_up.keys()
        limit = BARREN_LATER if actor in self._worked else BARREN
        if max(len(unexplained), len(explained)) >= limit:
            raise EngineDeadError(
                f"an engine was started {len(barren) + 1} times and died before it answered anything: {self._words}. "
                "Committed shards are kept: correct the engine's settings (memory?), then run the same command again"
            )
        suspects = {key for key, times in self._deaths.items() if times >= COMPANY and key not in given_up}
        return Verdicts(frozenset(suspects), given_up)

    def asked(self, actor: str, keys: Iterable[str], alone: bool) -> None:
        """The actor is about to ask these. One that is not known began before these notes did."""
        life = self._lives.setdefault(actor, _Life())
        life.asked.update(keys)
        life.alone = next(iter(keys), None) if alone else None

    def done(self, actor: str, keys: Iterable[str]) -> None:
        """These have an end, whichever it is."""
        life = self._lives.setdefault(actor, _Life())
        life.asked.difference_update(keys)
        life.alone = None
        for key in keys:
            self._deaths.pop(key, None)
        self._barren[actor] = []
        self._worked.add(actor)

    def dying(self, words: str) -> None:
        """Why an engine is about to be started again."""
        self._words = words

    @property
    def in_flight(self) -> int:
        return sum(len(life.asked) for life in self._lives.values())
