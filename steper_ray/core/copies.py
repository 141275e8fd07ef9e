"""This node's copies of what lies in a store: what a library maps or reads by itself it reads from `local(path)`.

- A copy is named by what the store says of its files: a changed file is another copy, and an unchanged one is fetched
  once a node, for all processes.
- Copies are bounded: those that were not used lately make room, at half of the disk or STEPER_CACHE_GB.
- A copy is there whole or not at all; whether its bytes are what was written is for its reader's checksums to say.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from steper_ray.core.errors import StorageError
from steper_ray.core.storage import as_path, has_scheme, is_remote, place, tag

_IN_USE_S = 3600.0  # a copy that was asked for within this time may be about to be opened
_WRITING = ".writing-"
#: By the folder of a copy, what it is a copy of: for messages.
_origins: dict[str, str] = {}


def cache_folder() -> Path:
    """The folder of this user's copies and remembered checksums. Raises RuntimeError for a user without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "steper_ray"


def local(path: Path) -> Path:
    """A path of this machine as it is; of a store's file or folder, this node's copy, by the same name.

    Raises FileNotFoundError where nothing is there, and StorageError.
    """
    if not is_remote(path):
        return path
    files = _files(path)
    key = hashlib.sha256(json.dumps([str(path), sorted(files.items())]).encode()).hexdigest()[:32]
    try:
        root = cache_folder() / "copies" / key
        copy = root / path.name
        root.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            with FileLock(f"{root}.lock"):
                if not copy.exists():
                    _make_room(root.parent, sum(size for size, _ in files.values()))
                    _fetch(path, files, root)
        with suppress(OSError):
            os.utime(root)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be copied to {cache_folder()}: {error.strerror or error}. Make room there, or set "
            "XDG_CACHE_HOME to a larger disk"
        ) from error
    _origins[str(root)] = str(path.parent)
    return copy


def local_name(name: str) -> str:
    """A model's name or folder as the libraries of this node open it. Raises FileNotFoundError and StorageError."""
    return str(local(as_path(name))) if has_scheme(name) else name


def origin(path: Path | str) -> str:
    """The name of a file for people: of a copy, that of what it is a copy of."""
    text = str(path)
    for root, parent in _origins.items():
        if text.startswith(f"{root}/"):
            return f"{parent}{text.removeprefix(root)}"
    return text


def scratch(name: str) -> Path:
    """A free path of this machine, of that name, for what is written here before a store gets it.

    What killed processes left there is removed; those of other containers are not known, and theirs stays.
    """
    mark = f"steper-scratch-{_processes()}-"
    for left in Path(tempfile.gettempdir()).glob(f"{mark}*"):
        if not Path(f"/proc/{left.name.removeprefix(mark).partition('-')[0]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{mark}{os.getpid()}-")) / name


def _processes() -> str:
    """The namespace that this process's /proc numbers belong to."""
    with suppress(OSError):
        return "".join(filter(str.isdigit, os.readlink("/proc/self/ns/pid")))
    return uuid.uuid4().hex


def _files(path: Path) -> dict[str, tuple[int, str]]:
    """Size and state of a file, or of all files below a folder by their names there."""
    store, root = place(path)
    info = store.info(root)
    if info["type"] == "file":
        return {"": (info["size"], tag(info))}
    found: dict[str, dict[str, Any]] = store.find(root, detail=True)
    return {name.removeprefix(root).lstrip("/"): (info["size"], tag(info)) for name, info in found.items()}


def _fetch(path: Path, files: dict[str, tuple[int, str]], root: Path) -> None:
    fresh = root.with_name(f"{_WRITING}{root.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    names = {name: fresh / path.name / name if name else fresh / path.name for name in files}
    for target in names.values():
        target.parent.mkdir(parents=True, exist_ok=True)
    store, where = place(path)
    sources = [f"{where}/{name}" if name else where for name in names]
    with suppress(FileNotFoundError):
        store.get(sources, [str(target) for target in names.values()])
    for name, target in names.items():
        if not target.is_file() or target.stat().st_size != files[name][0]:
            shutil.rmtree(fresh, ignore_errors=True)
            raise StorageError(f"{path / name if name else path}: changed while it was read. Run it again")
    shutil.rmtree(root, ignore_errors=True)
    fresh.rename(root)


def _make_room(folder: Path, size: int) -> None:
    """Removes the copies that were used least lately, until `size` more bytes are within the bound."""
    bound = float(os.environ.get("STEPER_CACHE_GB") or shutil.disk_usage(folder).total / 2e9) * 1e9
    copies = {
        one: sum(file.stat().st_size for file in one.rglob("*") if file.is_file())
        for one in folder.glob("*")
        if one.is_dir() and not one.name.startswith(_WRITING)
    }
    total = sum(copies.values())
    for one in sorted(copies, key=lambda one: one.stat().st_mtime):
        if total + size <= bound or time.time() - one.stat().st_mtime < _IN_USE_S:
            return
        shutil.rmtree(one, ignore_errors=True)
        total -= copies[one]
