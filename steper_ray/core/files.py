"""Files that are there whole or not at all, with checksums, and locks on folders.

- A name never stands for half a file: contents are written under a temporary name, synchronised and renamed.
- A Parquet file carries page checksums, and reading verifies them.
- A full or read-only disk is a StorageError of one line that names the folder and the free space.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from steper_ray.core.errors import DataError, LockedError, StorageError

logger = logging.getLogger(__name__)

#: Opens the name of every file that is being written; `remove_unfinished` deletes what a killed process left.
TEMPORARY = ".writing-"
_FULL = 50 << 20  # bytes: with less than this free, a failed write is reported as a full disk


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Turns an OSError of a write below `folder` into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written: {error.strerror or error} ({room(folder)}). Make room, or set another "
            "run_dir; the same command continues from what is committed"
        ) from error


def room(folder: Path) -> str:
    """The free space on the file system of `folder`, in words."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return "the disk is full" if free < _FULL else f"{free / 1e9:.2f} GB free"


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces `path` by what `write` puts into the temporary path it is given. Raises StorageError."""
    fresh = temporary(path)
    with storing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(fresh)
            synchronise(fresh)
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise


def temporary(path: Path) -> Path:
    """A free name beside `path` for what is being written and will be renamed to it."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{path.name}")


def write_text(path: Path, text: str) -> None:
    write_file(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def write_table(path: Path, table: pa.Table) -> str:
    """Replaces `path` by a Parquet file of `table`; returns its SHA-256. Raises StorageError."""
    digest: list[str] = []

    def write(fresh: Path) -> None:
        pq.write_table(table, fresh, compression="zstd", write_page_checksum=True)
        digest.append(file_sha256(fresh))

    write_file(path, write)
    return digest[0]


def read_table(path: Path, sha256: str | None = None, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file whose bytes are verified: against `sha256` where it is known, else by its page checksums.

    Starts no thread: those of pyarrow's pool abort the process as it ends, one time in ten (pyarrow 26).
    Raises DataError, naming the file, for one that is missing, damaged or no Parquet file.
    """
    try:
        data = path.read_bytes()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"{path}: not what was written (its SHA-256 differs)")
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=sha256 is None) as parquet:
            return parquet.read(columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def synchronise(path: Path) -> None:
    """Returns once the bytes of a file are on the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def replace_folder(fresh: Path, folder: Path) -> None:
    """Renames `fresh`, a sibling, to `folder` and removes what was there."""
    # Named after `fresh`: beside a folder that a user named, `folder.old` may be theirs.
    old = fresh.with_name(f"{fresh.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place once the block has filled it, synchronised to the disk.

    Raises StorageError.
    """
    with storing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = temporary(folder)
        fresh.mkdir()
    try:
        yield fresh
        with storing(folder.parent):
            for file in filter(Path.is_file, fresh.rglob("*")):
                synchronise(file)
            replace_folder(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Creates the folder and deletes the files that a killed process left half-written. The caller holds the lock."""
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{TEMPORARY}*"):
            if not leftover.is_dir():  # who makes a folder holds another lock
                leftover.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Deletes the temporary files and folders that killed writers of `path` left. The caller holds its lock."""
    name = f"{TEMPORARY}{'?' * 32}-{glob.escape(path.name)}"
    with storing(path.parent):
        for leftover in (*path.parent.glob(name), *path.parent.glob(f"{name}.old")):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def locked(folder: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds `what` (such as "build") of a run_dir for this process; the lock ends with the process, however it ends.

    Where another process has it, it waits, or raises LockedError with the holder's host, process and age. A file
    system without locks is one warning.
    """
    path, note = folder / ".locks" / f"{what}.lock", folder / ".locks" / f"{what}.holder"
    with storing(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        held = f"{folder}: another {what} is at work here: {_holder(note)}"
        if not wait:
            raise LockedError(f"{held}. Wait for it, stop it, or set another run_dir") from None
        logger.warning("%s. Waiting for it", held)
        lock.acquire()
    except OSError as error:
        logger.warning("%s cannot be locked (%s): start no second %s here", folder, error, what)
    try:
        write_text(note, f"host {socket.gethostname()}, process {os.getpid()}, {time.time():.0f}\n")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    try:
        who, _, since = note.read_text(encoding="utf-8").rpartition(", ")
        return f"{who}, for {max(0.0, time.time() - float(since)):,.0f} s"
    except (OSError, ValueError):
        return "its host and process are not known"
