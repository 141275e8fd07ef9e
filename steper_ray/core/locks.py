"""Locks on a stage of a run_dir: two processes never do the same work there.

- On a file system the lock ends with its process, however that ends.
- In a store it is a file that its holder writes again every _BEAT_S; one that was not for _DEAD_S, by the store's
  clock, has expired. Locks are numbered: of the processes that find an expired one, only one writes the next number.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from steper_ray.core.errors import LockedError, SteperError
from steper_ray.core.files import storing, write_text
from steper_ray.core.storage import is_remote, place

logger = logging.getLogger(__name__)

_BEAT_S = 15.0
_DEAD_S = 90.0
_LOOK_S = 2.0  # between two looks at a lock that is waited for


@contextmanager
def locked(folder: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds `what` (such as "build") of a run_dir for this process.

    Where another process has it, it waits, or raises LockedError with the holder's host, process and age. A file
    system without locks is one warning.
    """
    with _in_store(folder, what, wait) if is_remote(folder) else _on_disk(folder, what, wait):
        yield


def _refused(folder: Path, what: str, holder: str, wait: bool) -> None:
    held = f"{folder}: another {what} is at work here: {holder}"
    if not wait:
        raise LockedError(f"{held}. Wait for it, stop it, or set another run_dir") from None
    logger.warning("%s. Waiting for it", held)


@contextmanager
def _on_disk(folder: Path, what: str, wait: bool) -> Iterator[None]:
    path, note = folder / ".locks" / f"{what}.lock", folder / ".locks" / f"{what}.holder"
    with storing(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _refused(folder, what, _holder(note), wait)
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


@contextmanager
def _in_store(folder: Path, what: str, wait: bool) -> Iterator[None]:
    warned = False
    while isinstance(taken := _take(folder / ".locks", what), str):
        if not warned:
            _refused(folder, what, taken, wait)
            warned = True
        time.sleep(_LOOK_S)
    (own, note), ended = taken, threading.Event()
    beat = threading.Thread(target=_beat, args=(own, note, ended), name=f"lock of {what}", daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        for number, path in _numbered(own.parent, what).items():
            if number <= _number(own):
                path.unlink(missing_ok=True)


def _take(locks: Path, what: str) -> tuple[Path, bytes] | str:
    """The file of a lock that is now this process's, and its content; or who has it, in words."""
    numbered = _numbered(locks, what)  # one look: the number after what it shows can be written once
    last = max(numbered, default=0)
    if last and (holder := _alive(numbered[last])) is not None:
        return holder
    path = locks / f"{what}.{last + 1:06}"
    about = {"host": socket.gethostname(), "process": os.getpid(), "boot": _boot(), "key": uuid.uuid4().hex}
    note = json.dumps(about).encode()
    try:
        store, name = place(path)
        store.pipe_file(name, note, mode="create")
    except FileExistsError:
        with suppress(FileNotFoundError):
            if path.read_bytes() == note:  # the answer was lost, and this is the one
                return path, note
        return "a process that took it just now"
    return path, note


def _alive(path: Path) -> str | None:
    """The holder of a lock by its file, in words; None where it has expired."""
    try:
        store, name = place(path)
        info, note = store.info(name), json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    age = (_now(path.parent) - _written(info)).total_seconds()
    if age > _DEAD_S or _is_gone(note):
        return None
    return (
        f"host {note['host']}, process {note['process']}, seen {max(0.0, age):,.0f} s ago (if it was killed, its lock "
        f"ends {_DEAD_S:.0f} s after that)"
    )


def _is_gone(note: dict[str, Any]) -> bool:
    """Whether a process of this machine ended."""
    here = (note["host"], note["boot"]) == (socket.gethostname(), _boot())
    return here and not Path(f"/proc/{note['process']}").exists()


def _boot() -> str:
    """Names this machine, its start and its processes' numbers."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return uuid.uuid4().hex


def _now(locks: Path) -> Any:
    """The store's clock."""
    path = locks / f"now-{uuid.uuid4().hex}"
    store, name = place(path)
    store.pipe_file(name, b"")
    try:
        return _written(store.info(name))
    finally:
        path.unlink(missing_ok=True)


def _written(info: dict[str, Any]) -> Any:
    """The time a file was written, by the store's clock."""
    return info.get("LastModified") or info["mtime"]


def _numbered(locks: Path, what: str) -> dict[int, Path]:
    return {_number(path): path for path in locks.glob(f"{what}.[0-9]*")}


def _number(path: Path) -> int:
    return int(path.name.rpartition(".")[2])


def _beat(own: Path, note: bytes, ended: threading.Event) -> None:
    """Shows that this process lives. The first error is a warning; the work goes on: what it writes is the same."""
    warned = False
    while not ended.wait(_BEAT_S):
        try:
            store, name = place(own)
            store.pipe_file(name, note)
        except SteperError as error:
            if not warned:
                logger.warning("%s: the lock cannot be renewed: %s", own, error)
                warned = True
