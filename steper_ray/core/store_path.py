"""The paths of object stores, with the methods of pathlib.Path (core/storage.py makes them).

- What lies in a store is written through core/files alone, whole or not at all.
- Nothing is remembered: what a path says of a store is what the store holds now.
- A store that refuses is asked again for about a minute, one that does not answer for up to ten; then it is a
  StorageError of one line.

Imported when the first of them is made, since it brings fsspec.
"""

from __future__ import annotations

import errno
import io
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import IO, Any

from upath.implementations.cloud import CloudPath
from upath.registry import register_implementation

from steper_ray.core.errors import StorageError, in_one_line

logger = logging.getLogger(__name__)

_WAITS_S = (1.0, 4.0, 10.0, 20.0)
#: Answers that asking again does not change.
_FINAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, ValueError, TypeError)


class StorePath(CloudPath):
    """A path of an object store. Folders are there as long as they hold files."""

    __slots__ = ()

    @property
    def fs(self) -> Any:
        """The file system of fsspec, with patience."""
        return _Patient(super().fs)

    @property
    def plain_fs(self) -> Any:
        """The file system of fsspec as it is, for libraries that have their own patience."""
        return super().fs

    def read_bytes(self) -> bytes:
        data: bytes = self.fs.cat_file(self.path)
        return data

    def read_text(
        self, encoding: str | None = "utf-8", errors: str | None = None, newline: Any = None
    ) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(  # type: ignore[override]  # for reading alone
        self, mode: str = "r", *_: Any, encoding: str | None = "utf-8", **__: Any
    ) -> IO[Any]:
        """The whole file, for reading alone: write with core/files. Raises ValueError for another mode."""
        if mode not in ("r", "rt", "rb"):
            raise ValueError(
                f"{self}: a file of a store is not opened for '{mode}': write it with core/files"
            )
        data = io.BytesIO(self.read_bytes())
        return data if mode == "rb" else io.TextIOWrapper(data, encoding=encoding)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a store has no empty folders."""

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.fs.rm_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise


register_implementation("s3", StorePath, clobber=True)
register_implementation("gs", StorePath, clobber=True)


class _Patient:
    """A file system whose calls are repeated while they fail for reasons that may pass."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._fs, name)
        scheme = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        return partial(_patiently, value, scheme) if callable(value) else value


def _patiently(call: Callable[..., Any], scheme: str, *args: Any, **kwargs: Any) -> Any:
    where = f"{scheme}://{next((one for one in args if isinstance(one, str)), '')}"
    for wait in (*_WAITS_S, None):
        try:
            return call(*args, **kwargs)
        except _FINAL:
            raise
        except Exception as error:
            said = in_one_line(error)
            if isinstance(error, PermissionError) or "credentials" in said.lower():
                raise StorageError(
                    f"{where}: the store refuses access: {said}. Check its credentials"
                ) from error
            if getattr(error, "errno", None) == errno.EINVAL:
                raise StorageError(f"{where}: {said}: correct the path") from error
            if wait is None:
                raise StorageError(
                    f"{where}: the store fails: {said}. Check the network and the store's address; what is done is "
                    "kept: the same command goes on from there"
                ) from error
            logger.warning("%s: the store fails (%s): trying again in %.0f s", where, said[:200], wait)
            time.sleep(wait)
    raise AssertionError("unreachable")
