"""The files that a setting names, and their bytes: plain or compressed, members of a .zip, data sets of the hub.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from steper_ray.core.copies import local, origin
from steper_ray.core.errors import DataError
from steper_ray.core.storage import is_remote
from steper_ray.corpora.hub import PREFIX, hub_files, is_local

_COMPRESSED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_BINARY = (".parquet", ".arrow")
#: Files of prose, which become passages.
DOCUMENTS = (".txt", ".md", ".markdown", ".html", ".htm")
#: What a broken or truncated compressed file raises while it is read.
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, order=True)
class DataFile:
    """A file, or one member of a .zip."""

    path: Path
    member: str = ""
    label: str = ""
    """Its path below the folder that was named: the same wherever that folder lies."""

    def __str__(self) -> str:
        return f"{origin(self.path)}/{self.member}" if self.member else origin(self.path)

    @property
    def name(self) -> str:
        return Path(self.member or self.path).name

    @property
    def suffix(self) -> str:
        """That of the content: `.csv` for `x.csv.gz`."""
        return Path(_uncompressed(self.name)).suffix.lower()

    @property
    def is_compressed(self) -> bool:
        return bool(self.member) or self.path.suffix in _COMPRESSED

    def open(self) -> io.BufferedReader:
        """The uncompressed bytes, behind a byte order mark, as a stream that can peek. Raises DataError."""
        try:
            if self.member:
                stream: Any = zipfile.ZipFile(self.path).open(self.member)  # noqa: SIM115
            else:
                stream = _COMPRESSED.get(self.path.suffix, partial(open, mode="rb"))(self.path)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{self}: cannot be opened: {getattr(error, 'strerror', None) or error}"
            ) from error
        buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)
        try:
            if buffered.peek(len(_BOM)).startswith(_BOM):
                buffered.read(len(_BOM))
        except BROKEN:
            pass  # the reader meets it again, at a place it can name
        return buffered

    def beside(self, name: str) -> DataFile | None:
        """The file of this name in the same folder, or in the same folder of the .zip."""
        if not self.member:
            path = self.path.with_name(name)
            return DataFile(path) if path.is_file() else None
        member = (Path(self.member).parent / name).as_posix()
        return DataFile(self.path, member) if member in zipfile.ZipFile(self.path).namelist() else None


def find_files(
    path: Path, setting: str, *, ignore: tuple[str, ...] = (), documents: bool = False
) -> list[DataFile]:
    """The files a setting names, sorted by name.

    A file; a folder (its data files, or those of its subfolders where it has none, or its `documents`); a glob; a .zip
    with one data file or with documents alone, or `x.zip/member`; `hub:NAME[/CONFIG]/SPLIT`. Names in `ignore` are
    left out of folders and archives. Raises DataError where there are none.
    """
    if str(path).startswith(PREFIX):
        return [DataFile(file) for file in hub_files(str(path), setting)]
    if is_remote(path):
        return _in_store(path, setting, ignore, documents)
    path = path.expanduser()
    if (archive := _archive(path)) is not None:
        return _members(archive, path, setting, ignore, documents)
    if path.is_dir():
        return _in_folder(path, setting, ignore, documents)
    if path.is_file():
        if ".tar" in path.suffixes:
            raise DataError(f"{path}: an archive: unpack it, and give its folder as {setting}")
        return [DataFile(path)]
    files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not files:
        raise DataError(f"{path}: no such file: correct {setting}")
    folder = Path(os.path.commonpath([file.parent for file in files]))
    return [DataFile(file, label=file.relative_to(folder).as_posix()) for file in files]


def _in_store(path: Path, setting: str, ignore: tuple[str, ...], documents: bool) -> list[DataFile]:
    """As `find_files`, of this node's copy of what the path names in a store."""
    whole = next((one for one in (path, *path.parents) if one.suffix == ".zip"), path)
    if glob.has_magic(path.name):
        found = [local(one) for one in sorted(path.parent.glob(path.name))]
        if not found:
            raise DataError(f"{path}: no such file: correct {setting}")
        return [DataFile(file, label=file.name) for file in found]
    try:
        copy = local(whole)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: correct {setting}") from error
    inside = path.relative_to(whole).as_posix() if path != whole else ""
    return find_files(copy / inside, setting, ignore=ignore, documents=documents)


def absolute(path: Path | None) -> Path | None:
    """The same place for a process in another folder."""
    if path is None or not str(path).startswith(PREFIX):
        return path and path.expanduser().resolve()
    if not is_local(str(path)):
        return path
    return Path(f"{PREFIX}{Path(str(path).removeprefix(PREFIX)).expanduser().resolve()}")


def _uncompressed(name: str) -> str:
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in _COMPRESSED else name


def _is_data(name: str) -> bool:
    """By its name; a compressed file without another suffix is data (HotpotQA's wiki_00.bz2)."""
    plain = _uncompressed(name)
    suffix = Path(plain).suffix.lower()
    return suffix in (*_TEXT, *_BINARY) or (plain != name and not suffix)


def _is_document(name: str) -> bool:
    return Path(name).suffix.lower() in DOCUMENTS


def _in_folder(folder: Path, setting: str, ignore: tuple[str, ...], documents: bool) -> list[DataFile]:
    def among(files: Iterator[Path], wanted: Callable[[str], bool]) -> list[DataFile]:
        shown = (
            file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)
        )
        return sorted(
            DataFile(file, label=file.relative_to(folder).as_posix())
            for file in shown
            if wanted(file.name) and file.name not in ignore and file.is_file()
        )

    found = among(folder.iterdir(), _is_data) or among(folder.rglob("*"), _is_data)
    if not found and documents:
        found = among(folder.rglob("*"), _is_document)
    if not found:
        kinds = ", ".join((*_TEXT, *_BINARY, *(DOCUMENTS if documents else ())))
        raise DataError(f"{folder}: no data files in this folder ({kinds}): correct {setting}")
    return found


def _archive(path: Path) -> Path | None:
    """The .zip that a path names, or names a member of."""
    return next((one for one in (path, *path.parents) if one.suffix == ".zip" and one.is_file()), None)


def _members(
    archive: Path, path: Path, setting: str, ignore: tuple[str, ...], documents: bool
) -> list[DataFile]:
    """The named member, else the only data file, else all documents."""
    try:
        names = zipfile.ZipFile(archive).namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: not readable as .zip: {error}") from error
    chosen = path.relative_to(archive).as_posix() if path != archive else ""
    if chosen in names:
        return [DataFile(archive, chosen)]
    shown = sorted(name for name in names if not name.startswith(("__MACOSX/", ".")))
    data = [name for name in shown if _is_data(name) and Path(name).name not in ignore]
    if not chosen and len(data) == 1:
        return [DataFile(archive, data[0])]
    prose = [name for name in shown if _is_document(name)] if documents and not data else []
    if not chosen and prose:
        return [DataFile(archive, name, label=name) for name in prose]
    listed = ", ".join(data[:10]) or "none"
    example = f", such as {setting}={archive}/{data[0]}" if data else ""
    raise DataError(f"{path}: name one data file of the archive (it has: {listed}){example}")
