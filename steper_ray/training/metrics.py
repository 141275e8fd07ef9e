"""The log of one training: metrics.jsonl, one line an optimiser step, and bars that follow such logs.

The log is exact after a resume: lines of steps that are run again are dropped. Neither torch nor Ray.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from tqdm import tqdm

from steper_ray.core.errors import StorageError
from steper_ray.core.files import append_text, write_text
from steper_ray.core.jsonl import read_lines, read_records
from steper_ray.core.storage import is_remote, state
from steper_ray.schema.records import StepRecord

#: A log in a store is written whole, and no more often than this.
_EVERY_S = 5.0


class MetricsLog:
    """Appends one JSON line a step, flushed at once. Lines of steps after `start` are dropped when opened."""

    def __init__(self, path: Path, start: int) -> None:
        self._path, self._waiting, self._written = path, list[str](), time.monotonic()
        write_text(path, "".join(line + "\n" for line in read_lines(path)[:start]))
        self._stream = None if is_remote(path) else path.open("a", encoding="utf-8")

    def write(self, record: StepRecord) -> None:
        self._waiting.append(json.dumps(record) + "\n")
        if self._stream is not None or time.monotonic() - self._written > _EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Makes every line visible to readers of the log."""
        text = "".join(self._waiting)
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
        elif text:
            append_text(self._path, text)
        self._waiting.clear()
        self._written = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._stream is not None:
            self._stream.close()


def read_steps(path: Path) -> list[StepRecord]:
    """The steps of a metrics.jsonl. Raises DataError for a damaged line."""
    return cast(list[StepRecord], read_records(path))


class Follower:
    """Reads a log while another process writes it. What lies there from an earlier run counts once it changes."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, changed(path)
        self._inode, self._at = 0, 0

    def new(self) -> list[dict[str, Any]]:
        """The records since the last call; those of the whole log, if it was rewritten in between."""
        now = changed(self._path)
        if now is None or now == self._seen:
            return []
        self._seen = now
        if is_remote(self._path):
            text = self._path.read_bytes()
            self._at = 0 if len(text) < self._at else self._at
            text = text[self._at :]
        else:
            with self._path.open("rb") as stream:
                inode, size = os.fstat(stream.fileno()).st_ino, os.fstat(stream.fileno()).st_size
                if inode != self._inode or size < self._at:
                    self._inode, self._at = inode, 0
                stream.seek(self._at)
                text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class WarningLog(logging.Handler):
    """Writes warnings as JSON lines beside a metrics log: workers have no console, the driver shows them."""

    def __init__(self, metrics: Path) -> None:
        super().__init__(logging.WARNING)
        self._path = warnings_of(metrics)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, StorageError):
            append_text(self._path, json.dumps({"warning": record.getMessage()}) + "\n")

    def __enter__(self) -> None:
        logging.getLogger("steper_ray").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("steper_ray").removeHandler(self)


def warnings_of(metrics: Path) -> Path:
    return metrics.with_name("warnings.jsonl")


class ProgressBars:
    """Follows the logs of several trainings with one tqdm bar each, from a thread, and prints their warnings once.

    A bar shows the loss, those of the abilities, tokens a second and the lowest loss on held-out examples so far.
    """

    def __init__(self, logs: Sequence[tuple[str, Path]], *, every_s: float = 0.5) -> None:
        self._logs = [(name, Follower(path)) for name, path in logs]
        for _, path in logs:
            warnings_of(path).unlink(missing_ok=True)  # an earlier run's
        self._warnings = [(name, Follower(warnings_of(path))) for name, path in logs]
        self._warned = set[str]()
        self._every_s = every_s
        self._bars: dict[str, tqdm[Any]] = {}
        self._best: dict[str, float] = {}
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._halt.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._halt.wait(self._every_s):
            self._look()
        self._look()
        for bar in self._bars.values():
            bar.close()

    def _look(self) -> None:
        for name, log in self._logs:
            records = log.new()
            for record in records:
                if look := record.get("validation"):
                    self._best[name] = min(look["loss"], self._best.get(name, look["loss"]))
            if records:
                self._show(name, records[-1])
        for name, log in self._warnings:
            for record in log.new():
                if (
                    line := f"{name}: {record['warning']}"
                ) not in self._warned:  # a restarted worker warns again
                    self._warned.add(line)
                    tqdm.write(line, file=sys.stderr)

    def _show(self, name: str, record: dict[str, Any]) -> None:
        step, steps = record["step"], record["steps"]
        if name not in self._bars:
            self._bars[name] = tqdm(total=steps, desc=name, unit="step", initial=step - 1)
        bar = self._bars[name]
        bar.set_postfix_str(_told(record, self._best.get(name)), refresh=False)
        bar.update(step - bar.n)
        if step == steps:
            bar.close()


def _told(record: dict[str, Any], best: float | None) -> str:
    """The numbers behind a bar: the abilities by their first three letters."""
    parts = [f"loss {record['loss']:.3f}"]
    losses = {name[:3]: loss for name, loss in record.get("losses", {}).items() if loss is not None}
    if len(losses) > 1:
        parts[0] += f" ({' '.join(f'{name} {loss:.3f}' for name, loss in losses.items())})"
    if speed := record.get("tokens_per_second"):
        parts.append(f"{speed:,.0f} tokens/s")
    if chains := record.get("own_chains"):
        parts.append(f"{chains['right']} of {chains['chains']} own chains right")
    if best is not None:
        parts.append(f"best validation {best:.3f}")
    return ", ".join(parts)


def changed(path: Path) -> tuple[Any, ...] | None:
    """A value that changes when a file does; None where there is none."""
    try:
        return state(path)
    except FileNotFoundError:
        return None
