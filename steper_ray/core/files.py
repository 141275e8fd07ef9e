"""Files that are there whole or not at all, with checksums, on this machine or in a store.

- A name never stands for half a file: contents are written under a temporary name, synchronised and renamed, or written
  here and then put into the store.
- A folder of a store takes the files that say it is whole last, and loses them first.
- A Parquet file carries page checksums, and reading verifies them.
- A full or read-only disk is a StorageError of one line that names the folder and the free space.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from steper_ray.core.copies import local, scratch
from steper_ray.core.errors import DataError, StorageError
from steper_ray.core.storage import is_remote, place

#: Opens the name of every file that is being written; `remove_unfinished` deletes what a killed process left.
TEMPORARY = ".writing-"
_FULL = 50 << 20  # bytes: with less than this free, a failed write is reported as a full disk
#: What says that a folder is whole, the last one last.
_MARKS = ("steper.json", "manifest.json", "SHA256SUMS")


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Turns an OSError of a write below `folder` into a StorageError."""
    try:
        yield
    except OSError as error:
        if is_remote(folder):
            raise StorageError(
                f"{folder}: cannot be written: {error.strerror or error}. Correct the path"
            ) from error
        raise StorageError(
            f"{folder}: cannot be written: {error.strerror or error} ({room(folder)}). Make room, or set another "
            "run_dir; the same command continues from what is committed"
        ) from error


def room(folder: Path) -> str:
    """The free space on the file system of `folder`, in words."""
    if is_remote(folder):
        return "in a store"
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return "the disk is full" if free < _FULL else f"{free / 1e9:.2f} GB free"


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces `path` by what `write` puts into the path of this machine it is given. Raises StorageError."""
    with storing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = temporary(path)
        try:
            write(fresh)
            commit(fresh, path)
        except BaseException:
            discard(fresh)
            raise


def temporary(path: Path) -> Path:
    """A free path of this machine for what is being written: `commit` puts it in place of `path`."""
    return (
        scratch(path.name)
        if is_remote(path)
        else path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{path.name}")
    )


def commit(fresh: Path, path: Path) -> None:
    """Puts a file that was written to `temporary(path)` in place of `path`. Raises OSError or StorageError."""
    if is_remote(path):
        store, name = place(path)
        store.put_file(str(fresh), name)
        discard(fresh)
    else:
        synchronise(fresh)
        fresh.replace(path)


def discard(fresh: Path) -> None:
    """Removes what was written to a `temporary` path, if anything was."""
    fresh.unlink(missing_ok=True)
    if not fresh.name.startswith(TEMPORARY):  # of `scratch`, alone in its folder
        shutil.rmtree(fresh.parent, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    if is_remote(path):
        store, name = place(path)
        with storing(path.parent):
            store.pipe_file(name, text.encode())
    else:
        write_file(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def append_text(path: Path, text: str) -> None:
    """Adds to the end of a file that one process writes; in a store the file is written again. Raises OSError."""
    if is_remote(path):
        write_text(path, (path.read_text() if path.exists() else "") + text)
    else:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text)


def read_many(paths: Sequence[Path]) -> list[bytes | None]:
    """The bytes of small files, None for those that cannot be read; a store is asked for many at once.

    Raises StorageError.
    """
    if not paths or not is_remote(paths[0]):
        return [_bytes(path) for path in paths]
    store, _ = place(paths[0])
    names = [place(path)[1] for path in paths]
    found = store.cat(names, on_error="return")
    for path, name in zip(paths, names, strict=True):
        if isinstance(found[name], FileNotFoundError):
            found[name] = None
        elif isinstance(found[name], Exception):
            found[name] = _bytes(path)  # again, with patience
    return [found[name] for name in names]


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def copy_file(source: Path, target: Path) -> None:
    """Copies a file from anywhere to anywhere. Raises FileNotFoundError and StorageError."""
    here = local(source)
    write_file(target, lambda fresh: shutil.copyfile(here, fresh))


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
            raise DataError(f"{path}: changed since it was written (its SHA-256 differs)")
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
    if is_remote(folder):
        remove_folder(folder)
        (store, source), (_, target) = place(fresh), place(folder)
        names = store.find(source)
        store.copy(names, [f"{target}{name.removeprefix(source)}" for name in names])
        store.rm(names)
        return
    # Named after `fresh`: beside a folder that a user named, `folder.old` may be theirs.
    old = fresh.with_name(f"{fresh.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder with all it holds, where there is one."""
    if is_remote(folder):
        with suppress(FileNotFoundError):
            store, name = place(folder)
            store.rm(name, recursive=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder of this machine that takes the place of `folder` once the block has filled it.

    Raises StorageError.
    """
    with storing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = temporary(folder)
        fresh.mkdir()
    try:
        yield fresh
        with storing(folder.parent):
            if is_remote(folder):
                put_folder(fresh, folder)
                return
            for file in filter(Path.is_file, fresh.rglob("*")):
                synchronise(file)
            replace_folder(fresh, folder)
    finally:
        shutil.rmtree(fresh if fresh.name.startswith(TEMPORARY) else fresh.parent, ignore_errors=True)


def put_folder(source: Path, folder: Path) -> None:
    """Makes `folder`, of a store, hold what `source` does and nothing else. Raises OSError and StorageError."""
    store, root = place(folder)
    for name in reversed(_MARKS):
        (folder / name).unlink(missing_ok=True)
    files = {
        file.relative_to(source).as_posix(): file for file in sorted(source.rglob("*")) if file.is_file()
    }
    marks = [name for name in _MARKS if name in files]
    rest = [name for name in files if name not in marks]
    if rest:
        store.put([str(files[name]) for name in rest], [f"{root}/{name}" for name in rest])
    old = {*store.find(root)} - {f"{root}/{name}" for name in files}
    if old:
        store.rm(sorted(old))
    for name in marks:
        store.put_file(str(files[name]), f"{root}/{name}")


def remove_unfinished(folder: Path) -> None:
    """Creates the folder and deletes the files that a killed process left half-written. The caller holds the lock."""
    if is_remote(folder):
        return  # a store never shows half a file
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{TEMPORARY}*"):
            if not leftover.is_dir():  # who makes a folder holds another lock
                leftover.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Deletes the temporary files and folders that killed writers of `path` left. The caller holds its lock."""
    if is_remote(path):
        return
    name = f"{TEMPORARY}{'?' * 32}-{glob.escape(path.name)}"
    with storing(path.parent):
        for leftover in (*path.parent.glob(name), *path.parent.glob(f"{name}.old")):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with local(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
