"""An index that knows what it was built from: built whole or not at all, opened only for the corpus it fits.

- A finished index is a folder with `manifest.json`, `passages.arrow` and the files of its kind.
- It is built in a sibling folder and renamed, so a folder without a manifest was never finished.
- What a killed build has done lies in `.parts-NAME` beside it. The next build of that name continues it if corpus and
  settings are the same, and removes it otherwise.
- The manifest lists size and SHA-256 of every file, and its own digest: a process compares them when it opens the
  index (large files once a node), so that no search reads a damaged one.

Knows passages, not corpora.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from steper_ray.config import RetrievalConfig
from steper_ray.core.copies import local
from steper_ray.core.errors import DataError, RetrievalError
from steper_ray.core.files import (
    copy_file,
    new_folder,
    remove_folder,
    remove_leftovers,
    storing,
    write_file,
    write_text,
)
from steper_ray.core.fingerprints import digest
from steper_ray.core.locks import locked
from steper_ray.core.storage import is_remote
from steper_ray.core.sums import damage, take
from steper_ray.retrieval import kinds
from steper_ray.retrieval.base import Retriever
from steper_ray.retrieval.kinds import index_settings
from steper_ray.retrieval.store import PASSAGES, PassageStore, write_passages
from steper_ray.schema import Passage

logger = logging.getLogger(__name__)

FORMAT = 3
_MANIFEST = "manifest.json"
_PASSAGES = PASSAGES
_FIX = "delete the folder and build it again (`steper index`), or set retrieval.index_dir to another one"


class DamagedIndexError(RetrievalError):
    """A file of an index is missing, was changed since it was written, or is of another version."""


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """The sources and the files of an index.

    `fingerprint` is the corpus's, `files` are (size, SHA-256) by name below the folder.
    """

    settings: dict[str, Any]
    """All of `RetrievalConfig` that decides what is found."""
    passages: int
    fingerprint: str
    library: str
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    format: int = FORMAT


def build_index(
    corpus_passages: Iterable[Passage],
    config: RetrievalConfig,
    folder: Path,
    expected_fingerprint: str | None = None,
) -> IndexManifest:
    """Builds the index of a corpus in `folder`, in one pass over the passages, and replaces an index there.

    A build that fails or is killed leaves `folder` as it was, and with the corpus's fingerprint given the next one
    continues it. One process at a time builds an index, others wait.
    Raises DataError (no passages, an id twice), StorageError, and RetrievalError (a folder that holds something else,
    Java or Pyserini missing).
    """
    _check_target(folder)
    with _building(folder):
        return _build_aside(corpus_passages, config, folder, expected_fingerprint)


def index_folder(config: RetrievalConfig, run_dir: Path, fingerprint: str) -> Path:
    """The folder of a corpus's index: `index_dir` if it is set, else one for each setting."""
    if config.index_dir is not None:
        return config.index_dir.resolve()
    return (
        run_dir.resolve()
        / "index"
        / f"{config.kind}-{digest(index_settings(config))[:12]}-{fingerprint[:16]}"
    )


def open_index(
    folder: Path,
    config: RetrievalConfig,
    expected_fingerprint: str | None = None,
    part: tuple[int, int] = (0, 1),
) -> Retriever:
    """The retriever of a finished index, or of the i-th of n parts of it (`part`, from 0; bm25 alone).

    Raises RetrievalError, with the fix, for an index that is missing, half-built or damaged, that has other
    settings than `config`, or that was built from another corpus than the expected one (None: any corpus).
    """
    manifest = read_manifest(folder)
    where, folder = folder, local(folder)
    for name, want in index_settings(config).items():
        have = manifest.settings.get(name)
        if have != want:
            raise RetrievalError(f"{where}: built with retrieval.{name} {have}, asked for {want}: {_FIX}")
    if expected_fingerprint is not None and manifest.fingerprint != expected_fingerprint:
        raise RetrievalError(
            f"{where}: stale: built from corpus {manifest.fingerprint[:12]} ({manifest.passages} passages), "
            f"the corpus is now {expected_fingerprint[:12]}: {_FIX}"
        )
    if wrong := damage(folder, manifest.files):
        raise DamagedIndexError(f"{where}: broken index: {wrong}: {_FIX}")
    try:
        return kinds.open_files(config, folder, PassageStore(folder / _PASSAGES), part)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DamagedIndexError(f"{where}: broken index ({error}): {_FIX}") from error


def ensure_index(
    corpus_passages: Iterable[Passage],
    config: RetrievalConfig,
    folder: Path,
    expected_fingerprint: str | None = None,
) -> Retriever:
    """The retriever of the index in `folder`, which is built from the passages if nothing is there yet.

    An index that is there is opened, and refused, as by `open_index`; the passages are then not read. A damaged one
    is built again, unless `retrieval.index_dir` names it. With the corpus's fingerprint given, an index built here from
    other passages is refused too.
    """
    wrong = None
    if is_there(folder, config):
        try:
            return open_index(folder, config, expected_fingerprint)
        except DamagedIndexError as error:
            if config.index_dir is not None:
                raise
            wrong = str(error).removesuffix(f": {_FIX}")
    with _building(folder):
        if not is_there(folder, config) or _is_damaged(folder):  # else another process built it meanwhile
            if wrong is not None:
                logger.warning("%s. It is built again", wrong)
            _build_aside(corpus_passages, config, folder, expected_fingerprint)
    return open_index(folder, config, expected_fingerprint)


def read_manifest(folder: Path) -> IndexManifest:
    """Raises RetrievalError for an index that is missing, half-built or of another version."""
    if not folder.is_dir():
        raise RetrievalError(
            f"{folder}: no index here: build one (`steper index`) or correct retrieval.index_dir"
        )
    path = folder / _MANIFEST
    if not path.is_file():
        raise RetrievalError(f"{folder}: no {_MANIFEST}: not an index, or a half-built one: {_FIX}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise DamagedIndexError(
                f"{path}: index format {record['format']}, this version reads {FORMAT}: {_FIX}"
            )
        if record.pop("digest") != digest(record):
            raise DamagedIndexError(f"{path}: changed since it was written (its digest differs): {_FIX}")
        files = {name: (size, sha256) for name, (size, sha256) in record.pop("files").items()}
        return IndexManifest(**record, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedIndexError(f"{path}: not an index manifest ({error}): {_FIX}") from error


def _building(folder: Path) -> AbstractContextManager[None]:
    return locked(folder.parent, f"build of {folder.name}", wait=True)


def is_there(folder: Path, config: RetrievalConfig) -> bool:
    """In a store a build that was killed leaves files without a manifest; in a folder that a user named, they stay."""
    return (folder / _MANIFEST if is_remote(folder) and config.index_dir is None else folder).exists()


def _is_damaged(folder: Path) -> bool:
    try:
        return damage(folder, read_manifest(folder).files) is not None
    except DamagedIndexError:
        return True


def _build_aside(
    passages: Iterable[Passage], config: RetrievalConfig, folder: Path, fingerprint: str | None
) -> IndexManifest:
    """Builds in sibling folders and replaces `folder`. The caller holds the lock."""
    remove_leftovers(folder)
    parts = folder.with_name(f".parts-{folder.name}")
    try:
        count, found = _read_passages(passages, config, parts, fingerprint)
        with new_folder(folder) as work:
            manifest = _build(config, parts, work, count, found)
    except DataError:
        remove_folder(parts)
        raise
    remove_folder(parts)
    return manifest


def _read_passages(
    passages: Iterable[Passage], config: RetrievalConfig, parts: Path, fingerprint: str | None
) -> tuple[int, str]:
    """The number and fingerprint of the passages in `parts`, read now or by a build of the same index before."""
    note, key = parts / "note.json", [FORMAT, kinds.library(config), index_settings(config), fingerprint]
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if fingerprint is not None and known["key"] == key and (parts / _PASSAGES).is_file():
            return known["passages"], fingerprint
    except (OSError, ValueError, KeyError, TypeError):
        pass
    remove_folder(parts)
    count, found = 0, ""

    def write(fresh: Path) -> None:
        nonlocal count, found
        count, found = write_passages(passages, fresh)

    write_file(parts / _PASSAGES, write)
    if found == fingerprint:
        write_text(note, json.dumps({"key": key, "passages": count}))
    return count, found


def _build(config: RetrievalConfig, parts: Path, work: Path, count: int, fingerprint: str) -> IndexManifest:
    with storing(work.parent):
        kinds.build(config, parts / _PASSAGES, parts, work)
        if is_remote(parts):
            copy_file(parts / _PASSAGES, work / _PASSAGES)
        else:
            (parts / _PASSAGES).rename(work / _PASSAGES)
        manifest = IndexManifest(
            index_settings(config), count, fingerprint, kinds.library(config), take(work)
        )
    record = json.loads(json.dumps(dataclasses.asdict(manifest)))
    text = json.dumps({**record, "digest": digest(record)}, indent=2)
    write_text(work / _MANIFEST, text + "\n")  # last: its presence says the index is whole
    return manifest


def _check_target(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MANIFEST).is_file():
        raise RetrievalError(
            f"{folder}: holds files but no {_MANIFEST}, so it is not replaced: delete it, or set "
            "retrieval.index_dir to another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise RetrievalError(f"{folder}: is a file: set retrieval.index_dir to a folder")
