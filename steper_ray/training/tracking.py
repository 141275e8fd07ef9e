"""Feeds trackers with the logs that rank 0 and the watcher write, from a thread of the driver.

No worker waits for a tracker, keys stay in this process, and a tracker that fails costs one warning. What each has got
is noted beside the log after every step: a step that is run again after a restart is not sent again, and what a failed
tracker has missed is sent when the training continues. Knows no Ray.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from steper_ray.core.errors import StorageError, TrainingError
from steper_ray.core.files import write_text
from steper_ray.training.job import Task
from steper_ray.training.metrics import Follower
from steper_ray.training.students import Students
from steper_ray.training.trackers import TRACKERS, Run, Tracker

logger = logging.getLogger(__name__)

_ID = 16  # characters of a task's fingerprint that name its run
_WHY = 500  # characters of an error
_CREDENTIALS = re.compile(r"//[^/@\s]+@")


def check_trackers(tasks: Sequence[Task]) -> None:
    """Raises TrainingError for a tracker that is not installed, or that would ask for a key."""
    for name in dict.fromkeys(name for task in tasks for name in task.job.config.tracking):
        if find_spec(TRACKERS[name][0]) is None:
            raise TrainingError(
                f"train.tracking: {name} is not installed: pip install 'steper-ray[tracking]', or leave it out"
            )
        if name == "wandb":
            import wandb

            if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
                raise TrainingError(
                    "train.tracking: wandb has no key: set WANDB_API_KEY, or WANDB_MODE=offline"
                )


def values(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record, nested ones as `losses/expansion`; its step and what is no number are omitted."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= values(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name not in ("step", "steps"):
            found[prefix + name] = float(value)
    return found


class Tracking:
    """Everything that `tasks` log, to the trackers that each of them names.

    At the end it waits `last_s` seconds at most for what is still to be sent, after an error a tenth of them.
    """

    def __init__(self, tasks: Sequence[Task], *, every_s: float = 0.5, last_s: float = 60.0) -> None:
        self._dead: set[str] = set()
        self._feeds = [_Feed(task, self._dead) for task in tasks if task.job.config.tracking]
        self._every_s, self._last_s = every_s, last_s
        self._halt, self._well = threading.Event(), True
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        if self._feeds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._well = kind is None
        self._halt.set()
        if self._feeds:
            self._thread.join(self._last_s if self._well else self._last_s / 10)
            if self._thread.is_alive():
                logger.warning("tracking: not everything was sent in time; the same command goes on with it")

    def _run(self) -> None:
        while not self._halt.wait(self._every_s):
            for feed in self._feeds:
                feed.send()
        for feed in self._feeds:
            feed.send()
            feed.close(well=self._well)


class _Feed:
    """One training's logs and trackers. A tracker is opened with the first record that it gets."""

    def __init__(self, task: Task, dead: set[str]) -> None:
        self._task, self._dead = task, dead
        self._steps, self._answers = Follower(task.metrics), Follower(Students(task).log)
        self._open: dict[str, Tracker] = {}
        self._path = task.metrics.parent / "tracked.json"
        self._sent = self._read()
        self._noted = True  # or the last note could not be written

    def send(self) -> None:
        """Sends each tracker the new part of the logs."""
        steps, answers = self._steps.new(), self._answers.new()
        for name in self._task.job.config.tracking:
            sent = self._sent.setdefault(name, {"steps": 0, "questions": []})
            for record in (*steps, *answers):
                if name in self._dead:
                    break
                step, of_questions = record["step"], "fingerprint" in record
                if step in sent["questions"] if of_questions else step <= sent["steps"]:
                    continue
                numbers = values(record, "questions/" if of_questions else "")
                try:
                    self._tracker(name).log(step, numbers)
                except Exception as error:
                    self._give_up(name, error)
                    break
                if of_questions:
                    sent["questions"].append(step)
                else:
                    sent["steps"] = step
                self._write()

    def close(self, *, well: bool) -> None:
        for name, tracker in self._open.items():
            if name not in self._dead:
                try:
                    tracker.close(well=well)
                except Exception as error:
                    self._give_up(name, error)

    def _tracker(self, name: str) -> Tracker:
        if name not in self._open:
            config = self._task.job.config
            params = config.model_dump(mode="json", exclude={"tracking", "validation"})
            run = Run(
                id=self._task.fingerprint[:_ID],
                name=self._task.name,
                project=config.tracking_project,
                folder=self._task.metrics.parent,
                params={key: value for key, value in params.items() if isinstance(value, str | int | float)},
                after=self._sent[name]["steps"],
            )
            tracker: Tracker = TRACKERS[name][1](run)
            self._open[name] = tracker
        return self._open[name]

    def _give_up(self, name: str, error: Exception) -> None:
        self._dead.add(name)
        why = _CREDENTIALS.sub("//", f"{type(error).__name__}: {error}")
        logger.warning("tracking by %s failed, the training goes on without it: %s", name, why[:_WHY])

    def _read(self) -> dict[str, dict[str, Any]]:
        """Records each tracker has got of this very training, as `_write` noted them."""
        try:
            notes = json.loads(self._path.read_text(encoding="utf-8"))
            return dict(notes["sent"]) if notes["fingerprint"] == self._task.fingerprint else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write(self) -> None:
        text = json.dumps({"fingerprint": self._task.fingerprint, "sent": self._sent})
        try:
            write_text(self._path, text)
        except StorageError as error:  # the next record's note says all that this one does
            if self._noted:
                logger.warning(
                    "tracking of '%s' goes on, but what was sent cannot be noted in %s: %s. It is tried again with "
                    "every step; a restart before that sends again what is not noted",
                    self._task.name,
                    self._path,
                    error.__cause__,
                )
            self._noted = False
        else:
            self._noted = True
