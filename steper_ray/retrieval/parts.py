"""Arrays of one part of a corpus in a file that is there whole or is made again (its archive carries checksums)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steper_ray.core.copies import local
from steper_ray.core.files import write_file

Arrays = list[NDArray[Any]]


def save(path: Path, *arrays: NDArray[Any]) -> None:
    """Raises StorageError."""

    def write(fresh: Path) -> None:
        with fresh.open("wb") as stream:
            np.savez(stream, *arrays)

    write_file(path, write)


def load(path: Path) -> Arrays:
    """The arrays that were saved, in their order."""
    with np.load(local(path)) as arrays:
        return [arrays[f"arr_{number}"] for number in range(len(arrays.files))]


def is_whole(path: Path) -> bool:
    """Whether a file is there as it was written."""
    try:
        with zipfile.ZipFile(local(path)) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
