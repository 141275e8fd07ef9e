"""Asynchronous, atomic checkpoints of one training; the last N are kept.

A checkpoint is a folder that all workers see. Every worker copies its shard into it in the background and then, last,
its seal: the names, sizes and SHA-256 of the files it wrote. A folder without every worker's seal was cut off and is
never taken; one whose files are not what the seals say is named, and the one before is taken. Neither torch nor Ray.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steper_ray.core.errors import StorageError, TrainingError
from steper_ray.core.files import copy_file, file_sha256, remove_folder, room, write_text
from steper_ray.core.storage import as_path, is_remote
from steper_ray.core.sums import damage
from steper_ray.training.agreement import Agree

logger = logging.getLogger(__name__)

#: Raise it when a checkpoint of before can no longer be read: it is then refused by name, not by a stack trace.
FORMAT = 1
_SEAL = "seal-{rank}.json"
#: What errors of torch's and safetensors' writers have in their text.
_WRITING = ("inline_container", "PytorchStreamWriter", "os error")


class WriteError(TrainingError):
    """One worker cannot write. It alone knows, so it must be raised: the others are waiting for that worker."""


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Turns a failed write into `folder` into a WriteError that says where, why, and what room there is."""
    try:
        yield
    except Exception as error:
        # Python says OSError; torch a RuntimeError ("unexpected pos 576 vs 534"), safetensors its own error.
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if not isinstance(cause, OSError) and not any(sign in str(error) for sign in _WRITING):
            raise
        raise WriteError(
            f"{what} cannot be written to {folder}: {cause} ({room(folder)}). Make room there and run it again: it "
            "goes on from the last whole checkpoint"
        ) from error


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint that every worker has sealed. `files` are (size, SHA-256) by name below `folder`."""

    folder: Path
    step: int
    workers: int
    files: dict[str, tuple[int, str]]

    def damage(self, rank: int = 0, of: int = 1) -> str | None:
        """The fault among every `of`-th file from `rank` on, so that workers can share the reading."""
        return damage(self.folder, dict(sorted(self.files.items())[rank::of]), file_sha256)


class Checkpoints:
    """The checkpoints of the training `fingerprint` of the job `name`.

    New ones are made in `home`, a folder below `root`; earlier ones are found in any folder below `root`, because
    the same job may have been started beside other jobs.
    """

    def __init__(self, root: Path, home: Path, name: str, fingerprint: str) -> None:
        self._root, self._home, self._name, self._fingerprint = root, home, name, fingerprint

    @property
    def prefix(self) -> str:
        return f"{self._name}-{self._fingerprint[:12]}-"

    def folder(self, step: int) -> Path:
        return self._home / f"{self.prefix}{step:08d}"

    def stored(self) -> list[Stored]:
        """The sealed ones, newest first. Raises TrainingError for one of another version of this code."""
        found = [stored for folder in self._folders() if (stored := self.read(folder)) is not None]
        return sorted(found, key=lambda stored: -stored.step)

    def put(self, local: Path, step: int, rank: int, workers: int) -> None:
        """Copies one worker's files of `step` from `local` and seals them."""
        folder = self.folder(step)
        # Without parents: a node that does not see the run's folder must not write into a local one.
        folder.mkdir(exist_ok=True)
        files = {}
        for file in sorted(path for path in local.rglob("*") if path.is_file()):
            name = file.relative_to(local)
            if is_remote(folder):
                copy_file(file, folder / name)
            else:  # a folder without a seal is not read, so its files need no second names
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / name)
            files[str(name)] = (file.stat().st_size, file_sha256(file))
        seal = {
            "format": FORMAT,
            "fingerprint": self._fingerprint,
            "step": step,
            "workers": workers,
            "files": files,
        }
        write_text(folder / _SEAL.format(rank=rank), json.dumps(seal))

    def prune(self, keep: int) -> None:
        """Removes all but the `keep` newest; one that is under way stays."""
        for stored in self.stored()[keep:]:
            remove_folder(stored.folder)

    def clear_beyond(self, step: int) -> None:
        """Removes what was cut off, and what lies beyond the step that a training continues from: damaged, and soon
        made again. Only while none is written."""
        good = {stored.folder for stored in self.stored() if stored.step <= step}
        for folder in self._folders():
            if folder not in good:
                remove_folder(folder)

    def _folders(self) -> list[Path]:
        return sorted(self._root.glob(f"*/{glob.escape(self.prefix)}*"))

    def read(self, folder: Path) -> Stored | None:
        """The checkpoint in a folder, or None if not every worker has sealed it."""
        first = _json(folder / _SEAL.format(rank=0))
        if first is None:
            return None
        if first.get("format") != FORMAT:
            raise TrainingError(
                f"{folder}: a checkpoint of another version of steper_ray (format {first.get('format')}, this one "
                f"reads {FORMAT}): continue with that version, or delete the folder to train from the start"
            )
        seals = [first, *(_json(folder / _SEAL.format(rank=rank)) for rank in range(1, first["workers"]))]
        # A folder may hold seals of two attempts at its step: they count together only if they are of one group.
        if any(seal is None or seal["workers"] != first["workers"] for seal in seals):
            return None
        if first["fingerprint"] != self._fingerprint:
            return None
        files = {
            name: (size, digest) for seal in seals if seal for name, (size, digest) in seal["files"].items()
        }
        return Stored(folder, first["step"], first["workers"], files)


class Saver:
    """Saves a training's checkpoints in the background. All workers call it, `finish` and `close` together.

    One checkpoint at most is under way, so that a slow store cannot fill the local disk. `stored` is told of each
    that is whole.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        rank: int,
        workers: int,
        keep: int,
        agree: Agree,
        stored: Callable[[Path, int], None],
    ) -> None:
        self._checkpoints, self._rank, self._workers, self._keep = checkpoints, rank, workers, keep
        self._agree, self._stored = agree, stored
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: tuple[int, Future[None]] | None = None
        # The same name after a kill, so that what was left is found; another one for the same job of another run.
        key = hashlib.sha256(str(checkpoints.folder(0)).encode()).hexdigest()[:16]
        self._local = Path(tempfile.gettempdir()) / f"steper-checkpoint-{key}-{rank}"
        self._clear()

    def __call__(self, write_shard: Callable[[Path], None], step: int) -> None:
        """Writes this worker's shard to the local disk; the rest happens in the background."""
        self.finish()
        with writing(f"the checkpoint of step {step}", self._local):
            self._local.mkdir(mode=0o700)
            write_shard(self._local)
        self._under_way = (step, self._pool.submit(self._put, step))

    def finish(self) -> None:
        """Waits for the checkpoint under way. Raises TrainingError on all workers if one could not write it."""
        if self._under_way is None:
            return
        (step, future), self._under_way = self._under_way, None
        error = future.exception()
        message = self._agree(None if error is None else str(error))
        if message is not None:
            if self._rank == 0:  # it will never be whole, and takes room
                remove_folder(self._checkpoints.folder(step))
            raise TrainingError(message)
        if self._rank == 0:
            self._checkpoints.prune(self._keep)
        self._stored(self._checkpoints.folder(step), step)

    def close(self) -> None:
        """As `finish` of a training that is through: one that could not be written is no loss any more."""
        try:
            self.finish()
        except TrainingError as error:
            logger.warning("%s", error)
        self._pool.shutdown()

    def _put(self, step: int) -> None:
        folder = self._checkpoints.folder(step)
        try:
            with writing(f"the checkpoint of step {step}", folder.parent):
                self._checkpoints.put(self._local, step, self._rank, self._workers)
        finally:
            self._clear()

    def _clear(self) -> None:
        """Also what a killed worker of the same rank left."""
        shutil.rmtree(self._local, ignore_errors=True)


def newest(checkpoints: Checkpoints, rank: int, workers: int, agree: Agree) -> Stored | None:
    """The newest checkpoint whose files are what was written; None if the training starts from the beginning.

    Called by all workers together, who read a share of the files each. Raises TrainingError on all of them where
    there are checkpoints and none can be taken.
    """
    found, trouble = [], None
    if rank == 0:  # one worker looks: a folder may show on one node later than on another
        try:
            found = [str(stored.folder) for stored in checkpoints.stored()]
        except TrainingError as error:
            trouble = str(error)
    if (message := agree(trouble)) is not None:
        raise TrainingError(message)
    listed = agree("\n".join(found) if rank == 0 else None)
    folders = [as_path(line) for line in (listed or "").split("\n") if line]
    for number, folder in enumerate(folders):
        stored = checkpoints.read(folder)
        damage = agree("it cannot be read" if stored is None else stored.damage(rank, workers))
        if damage is None:
            return stored
        named = f"a checkpoint is damaged: {folder}: {damage}"
        if number + 1 == len(folders):
            raise TrainingError(
                f"{named}. No other is left: restore the file, or delete the folder to train from the start"
            )
        if rank == 0:
            logger.warning("%s. Going on from the one before: %s", named, folders[number + 1].name)
    return None


def _json(file: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
