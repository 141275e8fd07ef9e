"""Paths of this machine and of object stores (s3://bucket/x, gs://bucket/x), distinguished in one place."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from steper_ray.core.store_path import StorePath

#: The package that each kind of store needs, an extra of this project by the same name.
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
_ONE_SLASH = re.compile(r"[a-z][a-z0-9+]+:/(?!/)")
#: s3fs itself tries a request five times.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"read_timeout": 20, "retries": {"max_attempts": 1}}},
    "gs": {},
}


def as_path(name: str | os.PathLike[str]) -> Path:
    """A path of this machine, or of a store where the name has a scheme.

    Raises ValueError for a scheme that no store here has, and where the package for it is not installed.
    """
    text = str(name)
    scheme, colon, rest = text.partition("://")
    if not colon:
        if _ONE_SLASH.match(text):  # what Path() makes of a URL
            raise ValueError(f"{text}: not a URL: write {text.replace(':/', '://', 1)}")
        return Path(text)
    if scheme not in _PACKAGES:
        raise ValueError(
            f"{text}: {scheme}:// is not known: give a path, {', '.join(f'{one}://' for one in _PACKAGES)}"
        )
    if not rest.strip("/"):
        raise ValueError(f"{text}: names no bucket: give {scheme}://bucket/folder")
    if importlib.util.find_spec(_PACKAGES[scheme]) is None:
        raise ValueError(f"{text}: needs {_PACKAGES[scheme]}: pip install 'steper-ray[{scheme}]'")
    from steper_ray.core.store_path import StorePath

    return cast(Path, StorePath(text.rstrip("/"), use_listings_cache=False, **_OPTIONS[scheme]))


def is_remote(path: Any) -> bool:
    """Whether a path is one of a store."""
    if isinstance(path, PurePath | str):
        return False
    from steper_ray.core.store_path import StorePath

    return isinstance(path, StorePath)


def place(path: Path) -> tuple[Any, str]:
    """The file system of fsspec that a path of a store lies in, and its name there."""
    found = cast("StorePath", path)
    return found.fs, found.path


def has_scheme(name: str) -> bool:
    """Whether a model, a folder or a file is named by a URL of a store."""
    return name.partition("://")[0] in _PACKAGES


def for_arrow(path: Path) -> tuple[str, Any]:
    """A path's name and file system for libraries that take pyarrow's; None of them for a path of this machine."""
    if not is_remote(path):
        return str(path), None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    found = cast("StorePath", path)
    return found.path, PyFileSystem(FSSpecHandler(found.plain_fs))


def state(path: Path) -> tuple[Any, ...]:
    """A value that changes when a file does. Raises FileNotFoundError."""
    if is_remote(path):
        store, name = place(path)
        info = store.info(name)
        return str(path), info["size"], tag(info)
    stat = path.stat()
    # A modification time can be set back, the time of the last change cannot.
    return str(path), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def tag(info: dict[str, Any]) -> str:
    """A store's own tag of a file's content."""
    names = ("ETag", "etag", "generation", "md5Hash", "LastModified", "mtime")
    return next((str(info[name]) for name in names if info.get(name)), "")
