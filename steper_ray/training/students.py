"""Students of earlier steps that wait for validation questions: folders next to the training's metrics.

Rank 0 writes `students/step-N` (whole, by rename), the driver's watcher asks it, appends a line to validation.jsonl and
removes it. So a restart of either finds what is left to do: a step with a line is done, a folder without one is not.
Neither torch nor Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steper_ray.core.files import append_text, remove_folder, write_text
from steper_ray.core.jsonl import read_records
from steper_ray.core.sums import SUMS
from steper_ray.training.job import Task, provenance


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
        whole = sorted(mark.parent for mark in self._folder.glob(f"step-*/{SUMS}"))
        steps = [int(folder.name.removeprefix("step-")) for folder in whole]
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
        append_text(self.log, json.dumps({"step": step, **result, "fingerprint": self._fingerprint}) + "\n")
        remove_folder(self.folder(step))

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
                remove_folder(folder)

    def _ours(self, record: Mapping[str, Any]) -> bool:
        return record.get("fingerprint") == self._fingerprint

    def _torn(self) -> bool:
        """Whether the log's last line was cut off: what is appended must not go on with it."""
        return self.log.exists() and self.log.read_bytes()[-1:] not in (b"", b"\n")
