"""Lucene's BM25 by Pyserini: a real JVM in this process, a real Lucene index over title and text.

The analyser is Anserini's English one (Porter). Pyserini and Java are needed only when this module's
functions are called, never at import. Knows nothing of manifests and of how an index is checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from steper_ray.core.errors import RetrievalError
from steper_ray.retrieval.java import find_java
from steper_ray.retrieval.store import PassageStore
from steper_ray.schema import Hit, Passage

INDEX = "lucene"
_COLLECTION = "collection"
_KEY = "OPENAI_API_KEY"
_MAX_CLAUSES = 1 << 20  # Lucene refuses a query of more than 1024 different words by default
_TAIL = 2000  # characters of the indexer's output shown in an error


def library() -> str:
    """Name and version of what builds and searches. Raises RetrievalError without Pyserini."""
    try:
        return f"pyserini {version('pyserini')}"
    except PackageNotFoundError as error:
        raise RetrievalError(
            "retrieval.kind 'lucene' needs Pyserini: pip install pyserini, or set retrieval.kind to 'bm25'"
        ) from error


def build(passages: Iterable[Passage], folder: Path, title_weight: int = 1) -> None:
    """Writes the Lucene index of `passages` (in their order) into `folder`; k1 and b are given at search.

    Runs Pyserini's indexer in another process. Raises RetrievalError.
    """
    java = find_java()
    collection = folder / _COLLECTION
    collection.mkdir(parents=True)
    documents = collection / "passages.jsonl"
    with documents.open("w", encoding="utf-8") as file:
        for position, passage in enumerate(passages):
            title = f"{passage.title}\n" * title_weight
            row = {"id": _document_id(position), "contents": f"{title}{passage.text}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    command = [sys.executable, "-m", "pyserini.index.lucene"]
    command += [
        "--collection",
        "JsonCollection",
        "--generator",
        "DefaultLuceneDocumentGenerator",
        "--threads",
        "1",
    ]
    command += ["--input", str(collection), "--index", str(folder / INDEX)]
    environment = {_KEY: "unused", **os.environ, "JAVA_HOME": str(java.home), "JVM_PATH": str(java.library)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0 or not any((folder / INDEX).glob("segments_*")):
        said = (done.stdout + done.stderr)[-_TAIL:]
        raise RetrievalError(f"Pyserini's indexer ended with code {done.returncode}; its last words: {said}")
    documents.unlink()
    collection.rmdir()


def _document_id(position: int) -> str:
    """Lucene breaks ties by this id as a string: padded, so that they go by the passages' order."""
    return f"{position:010d}"


class LuceneRetriever:
    """Searches the index of `build`. Safe to call from several threads.

    One thread makes all calls into Java, because every thread that does stays attached to the JVM;
    the queries of one call are spread over Java threads.
    """

    def __init__(self, folder: Path, store: PassageStore, *, k1: float, b: float) -> None:
        """Raises RetrievalError."""
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lucene")
        self._searcher = self._thread.submit(_open, folder / INDEX, k1, b).result()
        if self._searcher.num_docs != len(store):
            raise RetrievalError(f"{folder}: {self._searcher.num_docs} passages indexed, {len(store)} stored")

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.search`; scores are BM25's, above 0."""
        if not queries or k < 1:
            return [[] for _ in queries]
        return self._thread.submit(self._search, queries, min(k, len(self._store))).result()

    def _search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        from jnius import JavaException

        keys = [str(number) for number in range(len(queries))]
        threads = min(len(queries), os.cpu_count() or 1)
        try:
            found = self._searcher.batch_search(list(queries), keys, k, threads)
        except JavaException as error:
            raise RetrievalError(f"Lucene could not search: {error}") from error
        return [[self._hit(row) for row in found.get(key, ())] for key in keys]

    def _hit(self, row: Any) -> Hit:
        return Hit(self._store[int(row.docid)], float(row.score))


def _open(index: Path, k1: float, b: float) -> Any:
    searcher_class = _load_pyserini()
    from jnius import JavaException, autoclass

    try:
        searcher = searcher_class(str(index))
    except JavaException as error:
        raise RetrievalError(f"{index}: Lucene cannot open this index: {error}; build it again") from error
    autoclass("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(_MAX_CLAUSES)
    searcher.set_bm25(k1, b)
    return searcher


def _load_pyserini() -> Any:
    """Pyserini's searcher class, with the JVM started. The first call takes seconds."""
    library()
    java = find_java()
    os.environ["JAVA_HOME"], os.environ["JVM_PATH"] = str(java.home), str(java.library)
    with _api_key_placeholder():
        try:
            from pyserini.search.lucene import LuceneSearcher
        except ImportError as error:
            raise RetrievalError(
                f"Pyserini cannot be imported ({error}): install it with its requirements, or set "
                "retrieval.kind to 'bm25'"
            ) from error
    return LuceneSearcher


@contextmanager
def _api_key_placeholder() -> Iterator[None]:
    """Importing Pyserini builds an OpenAI client that is never used, and that wants a key."""
    if _KEY in os.environ:
        yield
        return
    os.environ[_KEY] = "unused"
    try:
        yield
    finally:
        del os.environ[_KEY]
