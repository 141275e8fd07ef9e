"""Rollouts on Ray Data: shard numbers to engine actors, progress and faults back. The room's only module with Ray."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from steper_ray.cluster import Need, lacking
from steper_ray.core import errors
from steper_ray.core.errors import EngineDeadError, EngineSetupError, OwedError, SteperError, in_one_line
from steper_ray.core.files import remove_unfinished
from steper_ray.core.progress import Bar
from steper_ray.rollouts.actor import Job, RolloutActor
from steper_ray.rollouts.asker import Tag
from steper_ray.rollouts.deaths import Deaths, Verdicts
from steper_ray.rollouts.progress import Now, Progress
from steper_ray.rollouts.questions import QuestionFile
from steper_ray.rollouts.set import OwedReport, RolloutSet, owed_report
from steper_ray.rollouts.shards import DamagedShardError
from steper_ray.rollouts.spec import Pool, RolloutSpec
from steper_ray.rollouts.work import Work

logger = logging.getLogger(__name__)

_ROW = pa.schema([("spec", pa.int64()), ("shard", pa.int64())])
#: Most blocks of one pass: Ray Data keeps some 40 kB of each in the driver, also when it is done.
_BLOCKS = 2048
_ALIVE_S = 5.0  # between two looks at this driver's node
_WAIT_S = 20.0  # without an engine before it is said what the cluster lacks


def run(
    specs: Sequence[RolloutSpec], questions: QuestionFile, pool: Pool, *, what: str, shown: bool = True
) -> list[RolloutSet]:
    """See the room's docstring (rollouts/__init__.py). The sets, in the order of the specs."""
    sets = [RolloutSet(spec, questions) for spec in specs]
    for found in sets:
        remove_unfinished(found.spec.folder)
    missing = {number: found.missing() for number, found in enumerate(sets)}
    if not any(missing.values()):
        return sets
    notes = _start_notes()
    try:
        job = Job(tuple(specs), questions, pool)
        _pass(job, missing, notes, what=what, shown=shown)
        owing = {number: found.missing() for number, found in enumerate(sets)}
        if any(owing.values()):
            logger.warning("%s: %s. Asking them again", what, owed_report(sets))
            try:
                _pass(job, owing, notes, what=f"{what}, again", shown=shown)
            except EngineSetupError as error:  # it answered before: they stay owed
                logger.warning("%s: %s", what, error)
    finally:
        ray.kill(notes)
    return sets


def check_owed(report: OwedReport, max_failed: float, what: str, summary: str) -> None:
    """Raises OwedError where more than the share `max_failed` of the questions is owed; fewer are a warning.

    `summary` describes the command's result.
    """
    if not report.owed:
        return
    if len(report.owed) > max_failed * report.questions:
        raise OwedError(
            f"{what}: {report}. What is done is kept: run the same command again, and it asks these alone "
            f"(more than max_failed={max_failed:g} of the questions are owed)",
            summary,
        )
    logger.warning("%s: %s. Run the same command again to ask them", what, report)


class NotesActor:
    """The notes of all actors of a run: deaths, and what is done but not committed yet.

    If its process dies it begins with none: a question that killed engines is suspected a little later.
    """

    def __init__(self) -> None:
        self._deaths = Deaths()
        self._done: dict[Tag, dict[str, Work]] = {}
        self._starts = 0

    def start(self, actor: str) -> Verdicts:
        self._starts += 1
        return self._deaths.start(actor)

    def asked(self, actor: str, key: str, alone: bool) -> None:
        self._deaths.asked(actor, [key], alone)

    def done(self, actor: str, key: str, tag: Tag, work: Work) -> None:
        self._deaths.done(actor, [key])
        self._done.setdefault(tag, {})[key] = work

    def dying(self, words: str) -> None:
        self._deaths.dying(words)

    def committed(self, tag: Tag) -> None:
        self._done.pop(tag, None)

    def snapshot(self) -> tuple[int, int, Work]:
        """Engines started, questions in flight, and the work of shards that are not committed."""
        total = Work()
        for shard in self._done.values():
            for work in shard.values():
                total += work
        return self._starts, self._deaths.in_flight, total


@dataclass(frozen=True, slots=True)
class _RayNotes:
    """The notes as an actor reaches them."""

    handle: Any

    def _me(self) -> str:
        return str(ray.get_runtime_context().get_actor_id())

    async def start(self) -> Verdicts:
        try:
            verdicts: Verdicts = await self.handle.start.remote(self._me())
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, SteperError) else error from None
        return verdicts

    async def asked(self, key: str, alone: bool) -> None:
        await self.handle.asked.remote(self._me(), key, alone)

    async def done(self, key: str, tag: Tag, work: Work) -> None:
        self.handle.done.remote(self._me(), key, tag, work)  # not waited for: calls arrive in order

    async def dying(self, words: str) -> None:
        await self.handle.dying.remote(words)


def _start_notes() -> Any:
    """On this driver's node, for as long as the run."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(NotesActor)
        .options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
        .remote()
    )


def _pass(job: Job, missing: dict[int, list[int]], notes: Any, *, what: str, shown: bool) -> None:
    """Makes and commits the missing shards of each spec. Ctrl-C leaves those that are committed."""
    size, total = job.questions.shard_size, len(job.specs) * job.questions.count
    left = sum(len(shards) for shards in missing.values()) * size
    done = max(0, total - left)
    with Progress(Bar(what, "questions", total, done, shown=shown), done, _look(job, notes)) as progress:
        for tag, work in _committed(job, missing, notes):
            notes.committed.remote(tag)
            progress.advance(work)


def _look(job: Job, notes: Any) -> Callable[[], Now]:
    """The engines' current work, in words."""
    began = time.monotonic()
    # One note a group of samples: how many groups a question has.
    per_question = max(1 if spec.asking.until_right else spec.asking.samples for spec in job.specs)

    def look() -> Now:
        starts, in_flight, work = ray.get(notes.snapshot.remote(), timeout=30)
        work.questions //= per_question
        waits = not starts and time.monotonic() - began > _WAIT_S
        return Now(in_flight, work, lacking(_need(job.pool)) if waits else "")

    return look


def _need(pool: Pool) -> Need:
    """Of one engine: a run begins with the first that starts."""
    fields = (f"{pool.section}.{name}" for name in ("engines", "num_cpus", "num_gpus"))
    return Need(1, pool.num_cpus, pool.num_gpus, tuple(fields))  # type: ignore[arg-type]


def _committed(job: Job, missing: dict[int, list[int]], notes: Any) -> Iterator[tuple[Tag, Work]]:
    """Each shard's tag and its counts, as it is committed."""
    pool, size = job.pool, job.questions.shard_size
    rows = [(spec, shard) for spec, shards in missing.items() for shard in shards]
    at_once, a_block = pool.shards_at_once(size), math.ceil(len(rows) / _BLOCKS)
    blocks = [rows[at : at + a_block] for at in range(0, len(rows), a_block)]
    dataset = ray.data.from_arrow(
        [
            pa.Table.from_pylist([{"spec": spec, "shard": shard} for spec, shard in block], schema=_ROW)
            for block in blocks
        ]
    ).map_batches(
        RolloutActor,
        fn_constructor_args=(job, _RayNotes(notes)),
        batch_size=None,  # one block a call
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=min(pool.engines, len(blocks)),
            max_tasks_in_flight_per_actor=at_once,
            max_concurrent_calls_per_actor=at_once,
        ),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus or None,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    for row in _alive(lambda: _rows(dataset)):
        if row["error"] is not None:
            raise _error(row["kind"], row["error"])
        yield (row["spec"], row["shard"]), Work(**row["work"])


def _error(kind: str, message: str) -> SteperError:
    """An actor's error, with its own type."""
    found = DamagedShardError if kind == DamagedShardError.__name__ else getattr(errors, kind, SteperError)
    error: SteperError = found(message)
    return error


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def _alive(rows: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """The rows, read by a thread, while this driver's node lives: a dead raylet would keep the reader waiting forever.

    Raises EngineDeadError when the node is gone.
    """
    found: queue.Queue[tuple[str, Any]] = queue.Queue()
    stopped = threading.Event()

    def read() -> None:
        try:
            for row in rows():
                found.put(("row", row))
                if stopped.is_set():
                    return
            found.put(("end", None))
        except BaseException as error:
            found.put(("error", error))

    threading.Thread(target=read, name="rollouts", daemon=True).start()
    node = ray.get_runtime_context().get_node_id()
    try:
        while True:
            try:
                kind, value = found.get(timeout=_ALIVE_S)
            except queue.Empty:
                if not any(one["NodeID"] == node and one["Alive"] for one in ray.nodes()):
                    raise _lost() from None
                continue
            if kind == "end":
                return
            if kind == "error":
                if isinstance(value, RayActorError | RayError):
                    raise _lost(value) from value
                raise value
            yield value
    finally:
        stopped.set()


def _lost(error: BaseException | None = None) -> EngineDeadError:
    said = f" ({in_one_line(error)})" if error is not None else ""
    return EngineDeadError(
        f"the Ray cluster lost this driver's node or its actors{said}. Committed shards are kept: start Ray again and "
        "run the same command"
    )
