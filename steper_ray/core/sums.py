"""SHA-256 sums of a folder's files: taken when the folder is written, compared before its files are believed.

`SHA256SUMS` has the format of the tool sha256sum: `sha256sum -c SHA256SUMS` checks a folder without this project.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from steper_ray.core.copies import local
from steper_ray.core.files import file_sha256, synchronise, write_text
from steper_ray.core.fingerprints import file_fingerprint
from steper_ray.core.storage import is_remote

SUMS = "SHA256SUMS"
#: The file of a student's folder that says what it was trained from.
PROVENANCE = "steper.json"
#: The card of a model folder: people edit it, and nothing reads it.
_CARD = "README.md"
#: Names of what loaders read besides what is listed.
_LOADED = (".bin", ".jinja", ".json", ".model", ".safetensors")
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")

#: By a file's name below the folder, its size in bytes, None where it is not known, and its SHA-256.
Sums = Mapping[str, tuple[int | None, str]]


def take(folder: Path) -> dict[str, tuple[int, str]]:
    """The sums of all files below a folder, which are on the disk when it returns."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        synchronise(file)
        found[file.relative_to(folder).as_posix()] = (file.stat().st_size, file_sha256(file))
    return found


def damage(folder: Path, sums: Sums, read: Callable[[Path], str] = file_fingerprint) -> str | None:
    """The fault of the first file that is missing or was changed since it was written; None if there is none.

    `read` returns a file's SHA-256: by default a file is read once, and again when it changes. Of a store's folder it
    is this node's copy that is read, as by those who use it.
    """
    if is_remote(folder):
        if not folder.is_dir():
            return f"{folder.name} is missing"
        folder = local(folder)
    for name, (size, sha256) in sums.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if size is not None and (found := file.stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
        try:
            if read(file) != sha256:
                return f"{name} was changed since it was written (SHA-256)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS over all other files below a folder, which takes no more files after it."""
    sums = {name: sha256 for name, (_, sha256) in take(folder).items() if name != SUMS}
    write_text(folder / SUMS, "".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()))


def listed(folder: Path) -> dict[str, tuple[None, str]] | None:
    """The entries of a folder's SHA256SUMS, or None where it cannot be read or is no such file."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    lines = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    if not all(lines) or not text.endswith("\n"):
        return None
    return {line[2]: (None, line[1]) for line in lines if line}


def sums_damage(folder: Path) -> str | None:
    """The fault of a folder by its SHA256SUMS; None if there is none. Its README.md may be edited."""
    if not (folder / SUMS).is_file():
        return f"{SUMS} is missing"
    folder = local(folder)
    if (sums := listed(folder)) is None:
        return f"{SUMS} cannot be read"
    if wrong := damage(folder, {name: seal for name, seal in sums.items() if name != _CARD}):
        return wrong
    here = sorted(file.name for file in folder.iterdir() if file.name.endswith(_LOADED))
    return next((f"{name} is not listed in {SUMS}" for name in here if name not in sums), None)
