"""An index that knows what it was built from: built whole or not at all, opened only for the corpus it fits.

A finished index is a folder with `manifest.json`, `passages.arrow` and the files of its kind. It is built in
a sibling folder and renamed, so a folder without a manifest was never finished. Knows passages, not corpora.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from steper_ray.config import RetrievalConfig
from steper_ray.errors import RetrievalError
from steper_ray.retrieval import bm25, lucene
from steper_ray.retrieval.base import Retriever
from steper_ray.retrieval.store import PASSAGES, PassageStore, write_passages
from steper_ray.schema import Passage

FORMAT = 1
_MANIFEST = "manifest.json"
_PASSAGES = PASSAGES
_FIX = "build it again (`steper index`), or set retrieval.index_dir to another folder"


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """What an index was built from; `fingerprint` is the corpus's (see `fingerprint`)."""

    kind: str
    k1: float
    b: float
    passages: int
    fingerprint: str
    library: str
    format: int = FORMAT


def build_index(corpus_passages: Iterable[Passage], config: RetrievalConfig, folder: Path) -> IndexManifest:
    """Builds the index of a corpus in `folder`, in one pass over the passages, and replaces an index there.

    A build that fails or is killed leaves `folder` as it was. Raises DataError (no passages, an id twice) and
    RetrievalError (a folder that holds something else, Java or Pyserini missing).
    """
    _check_target(folder)
    return _build_aside(corpus_passages, config, folder, replace=True)


def index_folder(config: RetrievalConfig, run_dir: Path, fingerprint: str) -> Path:
    """Where the index of a corpus lies: `index_dir` if it is set, else a folder of its own for each setting."""
    if config.index_dir is not None:
        return config.index_dir.resolve()
    name = f"{config.kind}-k{config.k1:g}-b{config.b:g}-{fingerprint[:16]}"
    return run_dir.resolve() / "index" / name


def open_index(
    folder: Path,
    config: RetrievalConfig,
    expected_fingerprint: str | None = None,
    part: tuple[int, int] = (0, 1),
) -> Retriever:
    """The retriever of a finished index, or of the i-th of n parts of it (`part`, from 0; bm25s alone).

    Raises RetrievalError, with the fix, for an index that is missing, half-built or broken, that has other
    settings than `config`, or that was built from another corpus than the expected one (None: any corpus).
    """
    manifest = read_manifest(folder)
    for name in ("kind", "k1", "b"):
        have, want = getattr(manifest, name), getattr(config, name)
        if have != want:
            raise RetrievalError(f"{folder}: built with retrieval.{name} {have}, asked for {want}: {_FIX}")
    if expected_fingerprint is not None and manifest.fingerprint != expected_fingerprint:
        raise RetrievalError(
            f"{folder}: stale: built from corpus {manifest.fingerprint[:12]} ({manifest.passages} passages), "
            f"the corpus is now {expected_fingerprint[:12]}: {_FIX}"
        )
    try:
        store = PassageStore(folder / _PASSAGES)
        if len(store) != manifest.passages:
            raise RetrievalError(
                f"{folder}: {len(store)} passages, its manifest says {manifest.passages}: {_FIX}"
            )
        if config.kind == "lucene":
            check_parts(config, part[1])
            return lucene.LuceneRetriever(folder, store, k1=config.k1, b=config.b)
        return bm25.Bm25Retriever(folder, store, part)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RetrievalError(f"{folder}: broken index ({error}): {_FIX}") from error


def check_parts(config: RetrievalConfig, parts: int) -> None:
    """Raises RetrievalError where an index of this kind cannot be searched in parts."""
    if parts > 1 and config.kind == "lucene":
        # Parts of their own would score by their own statistics, and merge to another order.
        raise RetrievalError(
            "serve.retriever.shards: a Lucene index is searched whole: set it to 1 and give it more replicas, "
            "or set retrieval.kind=bm25s"
        )


def ensure_index(
    corpus_passages: Iterable[Passage],
    config: RetrievalConfig,
    folder: Path,
    expected_fingerprint: str | None = None,
) -> Retriever:
    """The retriever of the index in `folder`, which is built from the passages if nothing is there yet.

    An index that is there is opened, and refused, as by `open_index`; the passages are then not read. With
    the corpus's fingerprint given, an index built here from other passages is refused too.
    """
    if not folder.exists():
        _build_aside(corpus_passages, config, folder, replace=False)
    return open_index(folder, config, expected_fingerprint)


def read_manifest(folder: Path) -> IndexManifest:
    """Raises RetrievalError for an index that is missing, half-built or of another version."""
    if not folder.is_dir():
        raise RetrievalError(
            f"{folder}: no index here: build one (`steper index`) or mend retrieval.index_dir"
        )
    path = folder / _MANIFEST
    if not path.is_file():
        raise RetrievalError(
            f"{folder}: no {_MANIFEST}: not an index, or a half-built one: delete it and {_FIX}"
        )
    try:
        manifest = IndexManifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RetrievalError(f"{path}: not an index manifest ({error}): {_FIX}") from error
    if manifest.format != FORMAT:
        raise RetrievalError(f"{path}: index format {manifest.format}, this version reads {FORMAT}: {_FIX}")
    return manifest


def _build_aside(
    passages: Iterable[Passage], config: RetrievalConfig, folder: Path, *, replace: bool
) -> IndexManifest:
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        manifest = _build(passages, config, work)
        work.chmod(0o755)  # mkdtemp's folders are for their owner alone
        _move(work, folder, replace=replace)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _build(passages: Iterable[Passage], config: RetrievalConfig, work: Path) -> IndexManifest:
    library = lucene.library() if config.kind == "lucene" else bm25.LIBRARY
    count, digest = write_passages(passages, work / _PASSAGES)
    store = PassageStore(work / _PASSAGES)
    if config.kind == "lucene":
        lucene.build(store, work)
    else:
        bm25.build(store, work, k1=config.k1, b=config.b)
    manifest = IndexManifest(config.kind, config.k1, config.b, count, digest, library)
    text = json.dumps(dataclasses.asdict(manifest), indent=2)
    (work / _MANIFEST).write_text(text + "\n", encoding="utf-8")  # last: its presence says the index is whole
    return manifest


def _check_target(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _MANIFEST).is_file():
        raise RetrievalError(
            f"{folder}: holds files but no {_MANIFEST}, so it is not replaced: delete it, or set "
            "retrieval.index_dir to another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise RetrievalError(f"{folder}: is a file: set retrieval.index_dir to a folder")


def _move(work: Path, folder: Path, *, replace: bool) -> None:
    """Renames `work` to `folder`. An index that is there goes, or stays if it is not to be replaced."""
    if replace and folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
        folder.rename(aside / folder.name)  # a folder with files cannot be renamed over
        work.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
        return
    try:
        work.rename(folder)
    except OSError:
        if replace or not (folder / _MANIFEST).is_file():
            raise  # not another process that built the same index at the same time
