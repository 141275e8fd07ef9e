"""Which chunk of which job runs next. A pure state machine: it owns no actor, no engine and no file.

Every chunk is handed out until it is done exactly once; a job is complete when all its chunks are. Chunks of one
model go to the engine that has it loaded, so that a model is loaded as seldom as possible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from steper_ray.errors import EngineDeadError
from steper_ray.schema import Trajectory

MAX_ATTEMPTS = 3  # one engine may die by accident; the same chunk killing three is no accident


@dataclass(frozen=True, slots=True)
class EvalJob:
    """One model judged with one step unit. `name` and `unit` together name the result and are unique in a call.

    `model` is a Hugging Face folder or hub name, `miniature:...`, or what an endpoint serves.
    """

    name: str
    model: str
    unit: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A trajectory, and how many of the passages it found were not new."""

    trajectory: Trajectory
    repeats: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Questions start..stop of one job."""

    job: EvalJob
    start: int
    stop: int


class Schedule:
    """The chunks of all jobs, each over the same `n_questions` questions."""

    def __init__(self, jobs: Sequence[EvalJob], n_questions: int, chunk_size: int) -> None:
        self._n_questions = n_questions
        self._waiting = [
            Chunk(job, start, min(start + chunk_size, n_questions))
            for job in jobs
            for start in range(0, n_questions, chunk_size)
        ]
        self._busy: Counter[str] = Counter()
        self._attempts: Counter[Chunk] = Counter()
        self._done: dict[EvalJob, dict[int, Sequence[Answered]]] = {job: {} for job in jobs}

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def finished(self) -> bool:
        return not self._waiting and not self._busy.total()

    def take(self, loaded: str | None) -> Chunk | None:
        """The next chunk for an engine with model `loaded`: of the same model, else of one nobody runs, else any."""
        if not self._waiting:
            return None

        def rank(chunk: Chunk) -> int:
            return 0 if chunk.job.model == loaded else 1 if not self._busy[chunk.job.model] else 2

        chunk = min(self._waiting, key=rank)
        self._waiting.remove(chunk)
        self._busy[chunk.job.model] += 1
        return chunk

    def complete(self, chunk: Chunk, answered: Sequence[Answered]) -> list[Answered] | None:
        """Books a chunk; the whole job in the order of the questions, if this was its last chunk."""
        self._busy[chunk.job.model] -= 1
        parts = self._done[chunk.job]
        parts[chunk.start] = answered
        whole = [one for start in sorted(parts) for one in parts[start]]
        return whole if len(whole) == self._n_questions else None

    def give_back(self, chunk: Chunk, reason: Exception) -> None:
        """Takes back a chunk whose engine died. Raises EngineDeadError when that happened MAX_ATTEMPTS times."""
        self._busy[chunk.job.model] -= 1
        self._attempts[chunk] += 1
        if self._attempts[chunk] >= MAX_ATTEMPTS:
            raise EngineDeadError(
                f"evaluation of '{chunk.job.name}' ({chunk.job.unit}): the engine died {MAX_ATTEMPTS} times on "
                f"questions {chunk.start + 1} to {chunk.stop}: {reason}"
            ) from reason
        self._waiting.insert(0, chunk)
