"""Progress of a run of rollouts: committed shards, and what the engines are doing. Knows no Ray."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from steper_ray.core.progress import Bar
from steper_ray.rollouts.work import Work

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, slots=True)
class Now:
    """Questions in flight, what is done and not committed, and what the run waits for (empty: nothing)."""

    in_flight: int
    work: Work
    waits_for: str = ""


class Progress:
    """A context in which `advance` counts committed work, and `look` is asked every second what else there is."""

    def __init__(self, bar: Bar, done: int, look: Callable[[], Now]) -> None:
        self._bar, self._before, self._look, self._work = bar, done, look, Work()
        self._now = Now(0, Work())
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._bar.close()

    def advance(self, work: Work) -> None:
        """Counts a committed shard; the next look no longer holds it."""
        with self._lock:
            self._work += work
            self._now = Now(self._now.in_flight, Work())
            self._show()

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                now = self._look()
            except Exception as error:  # the run itself reports what is wrong with the cluster
                logger.debug("no look at the engines: %s", error)
                continue
            with self._lock:
                self._now = now
                self._show()

    def _show(self) -> None:
        work = copy.copy(self._work)
        work += self._now.work
        self._bar.show(self._before + work.questions, self._now.waits_for or self._rates(work))

    def _rates(self, work: Work) -> str:
        """Right answers, steps and tokens of this run, and the share of prompts from the engine's prefix cache."""
        seconds = self._bar.seconds
        done = self._before + work.questions >= self._bar.total  # the last look was before that
        parts = [f"{self._now.in_flight} in flight"] if self._now.in_flight and not done else []
        parts += [f"{work.owed} owed"] if work.owed else []
        parts += [f"{work.right} right", f"{work.steps / seconds:.1f} steps/s"]
        if work.completion_tokens:
            parts.append(f"{work.completion_tokens / seconds:,.0f} tokens/s")
        if work.cached_tokens:
            parts.append(f"{100 * work.cached_tokens / work.prompt_tokens:.0f} % of prompts cached")
        if work.cached_searches:
            parts.append(f"{100 * work.cached_searches / work.searches:.0f} % of searches cached")
        return ", ".join(parts)
