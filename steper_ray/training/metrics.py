"""The log of one training: metrics.jsonl, one line an optimiser step, and a bar that follows such logs.

The log is exact after a resume: lines of steps that are run again are dropped. Neither torch nor Ray.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm


class MetricsLog:
    """Appends one JSON line a step, flushed at once. Lines of steps after `start` are dropped when opened."""

    def __init__(self, path: Path, start: int) -> None:
        lines = read_lines(path)[:start]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        partial.replace(path)
        self.last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        self._stream = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self.last = record
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def read_lines(path: Path) -> list[str]:
    """The whole lines of a log; a last line that is still being written is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


class ProgressBars:
    """Follows the logs of several trainings with one tqdm bar each, from a thread of its own.

    A log that lies there from an earlier run is shown once it changes.
    """

    def __init__(self, logs: Sequence[tuple[str, Path]], *, every_s: float = 0.5) -> None:
        self._logs, self._every_s = logs, every_s
        self._seen = {path: _changed(path) for _, path in logs}
        self._bars: dict[str, tqdm[Any]] = {}
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
        for name, path in self._logs:
            changed = _changed(path)
            if changed == self._seen[path]:
                continue
            self._seen[path] = changed
            lines = read_lines(path)
            if lines:
                self._show(name, json.loads(lines[-1]))

    def _show(self, name: str, record: dict[str, Any]) -> None:
        step, steps = record["step"], record["steps"]
        if name not in self._bars:
            self._bars[name] = tqdm(total=steps, desc=name, unit="step", initial=step - 1)
        bar = self._bars[name]
        bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
        bar.update(step - bar.n)
        if step == steps:
            bar.close()


def _changed(path: Path) -> tuple[int, int] | None:
    """When a file was written last and its size; None where there is none."""
    if not path.exists():
        return None
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
