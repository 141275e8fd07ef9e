"""Students of earlier steps that wait for validation questions: folders next to the training's metrics.

Rank 0 writes `students/step-N` (whole, by rename), the driver's watcher asks it, appends a line to validation.jsonl and
removes it. So a restart of either finds what is left to do: a step with a line is done, a folder without one is not.
Neither torch nor Ray.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steper_ray.core.files import write_text
from steper_ray.training.job import Task, provenance
from steper_ray.training.metrics import read_records


class Students:
    """Of one training."""

    def __init__(self, task: Task) -> None:
        self._fingerprint = task.fingerprint
        self._folder = task.metrics.parent / "students"
        self.log = task.metrics.parent / "validation.jsonl"

    def folder(self, step: int) -> Path:
        return self._folder / f"step-{step:08}"

    def done(self) -> set[int]:
        """Steps whose student was asked, with or without success."""
        return {record["step"] for record in read_records(self.log) if self._ours(record)}

    def waiting(self) -> list[int]:
        """Steps whose student was not asked yet, the first ones first. One that is being asked is among them."""
        done = self.done()
        steps = [int(folder.name.removeprefix("step-")) for folder in sorted(self._folder.glob("step-*"))]
        return [step for step in steps if step not in done]

    def wanted(self, step: int, steps: int) -> bool:
        """Whether to write the student of `step`: not what was done or waits, nor while one waits beside the one that
        may be under way; but the last one in any case."""
        waiting = self.waiting()
        if step in waiting or step in self.done():
            return False
        return len(waiting) < 2 or step == steps

    def finish(self, step: int, result: Mapping[str, Any]) -> None:
        """Notes the result for good, then lets the student go. Raises OSError where it cannot be noted: it stays."""
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **result, "fingerprint": self._fingerprint}) + "\n")
        shutil.rmtree(self.folder(step), ignore_errors=True)

    def tidy(self) -> None:
        """Drops what an earlier training of this name left, other than this one, and what is done."""
        records = read_records(self.log)
        if not all(map(self._ours, records)) or self._torn():
            lines = [json.dumps(record) + "\n" for record in records if self._ours(record)]
            write_text(self.log, "".join(lines))
        done = self.done()
        for folder in self._folder.glob("step-*"):
            record = provenance(folder)
            if record is None or not self._ours(record) or int(folder.name.removeprefix("step-")) in done:
                shutil.rmtree(folder, ignore_errors=True)

    def _ours(self, record: Mapping[str, Any]) -> bool:
        return record.get("fingerprint") == self._fingerprint

    def _torn(self) -> bool:
        """Whether the log's last line was cut off: what is appended must not go on with it."""
        return self.log.exists() and not self.log.read_bytes().endswith(b"\n") and self.log.stat().st_size > 0
