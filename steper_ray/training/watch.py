"""Asks students questions during the training, from a thread of the driver; no worker waits for it.

What asks them is passed in, so that the training knows neither corpora nor engines. A failure is a line in the log and
one warning. Knows no Ray.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from steper_ray.training.job import Task
from steper_ray.training.metrics import changed
from steper_ray.training.students import Students

logger = logging.getLogger(__name__)

#: Given a model folder, the training's name and its step, the scores: plain JSON values.
Judge = Callable[[Path, str, int], Mapping[str, Any]]


class Watcher:
    """Judges the students of all tasks, one at a time, in the order of their steps.

    At the end of a training that went well it judges those that still wait, for `last_s` seconds at most; what is
    left then is judged when the same jobs are trained again.
    """

    def __init__(
        self, tasks: Sequence[Task], judge: Judge, *, every_s: float = 0.5, last_s: float = 1800.0
    ) -> None:
        self._tasks = [(task, Students(task)) for task in tasks if task.job.config.validation.questions]
        self._judge, self._every_s, self._last_s = judge, every_s, last_s
        self._before = {task.metrics: changed(task.metrics) for task, _ in self._tasks}
        self._halt, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._warned = False

    def __enter__(self) -> Self:
        for _, students in self._tasks:
            students.tidy()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._given_up.set()
        self._halt.set()
        self._thread.join(self._last_s if kind is None else self._every_s)
        self._given_up.set()
        if kind is None and self._thread.is_alive():
            logger.warning(
                "validation questions are unanswered after %.0f s: no room for their engine? The same command goes on "
                "with them; train.validation.num_cpus=0 needs no free CPU", self._last_s,
            )  # fmt: skip

    def _run(self) -> None:
        while not self._halt.wait(self._every_s):
            if self._begun():
                self._look()
        self._look()

    def _begun(self) -> bool:
        """Whether a step was made since the start: an engine must not take the room of workers that still start."""
        return any(changed(path) != before for path, before in self._before.items())

    def _look(self) -> None:
        for task, students in self._tasks:
            for step in students.waiting():
                if self._given_up.is_set():
                    return
                self._ask(task, students, step)

    def _ask(self, task: Task, students: Students, step: int) -> None:
        started = time.monotonic()
        try:
            result: Mapping[str, Any] = self._judge(students.folder(step), task.name, step)
        except Exception as error:
            if self._given_up.is_set():  # the engine ended with the training; the next start asks again
                return
            result = {"error": f"{type(error).__name__}: {error}"}
            if not self._warned:
                logger.warning("validation questions of '%s', step %d: %s", task.name, step, result["error"])
            self._warned = True
        try:
            students.finish(step, {**result, "seconds": round(time.monotonic() - started, 3)})
        except OSError as error:  # a full disk, say; trying again would start an engine each time
            self._given_up.set()
            logger.warning(
                "validation questions of '%s' are given up, the training goes on: step %d cannot be noted in %s: %s. "
                "The same command asks those that are left", task.name, step, students.log, error,
            )  # fmt: skip
