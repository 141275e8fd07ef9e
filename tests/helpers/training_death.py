"""The death of a training worker, for the tests of resuming."""

import threading
from pathlib import Path

import psutil

from steper_ray.core.jsonl import read_lines


class KillRankOne(threading.Thread):
    """Watches a log and kills the process of rank 1, once, when a line of `step` is there."""

    def __init__(self, log: Path, step: int):
        super().__init__(daemon=True)
        self.killed: int | None = None
        self.lines = 0
        self._log, self._step, self._halt = log, step, threading.Event()

    def run(self):
        while not self._halt.wait(0.02):
            if len(read_lines(self._log)) >= self._step:
                self.killed = self._rank_one()
                psutil.Process(self.killed).kill()
                self.lines = len(read_lines(self._log))
                return

    def stop(self):
        self._halt.set()
        self.join()

    def _rank_one(self) -> int:
        """The training worker below this process that does not hold the log: rank 0 writes it."""
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name()]
        log = str(self._log)
        (other,) = [p.pid for p in workers if log not in [file.path for file in p.open_files()]]
        return other
