"""Retrieval: BM25 search over passages, by bm25s or by Lucene, behind one protocol."""

from steper_ray.retrieval.base import Retriever
from steper_ray.retrieval.index import (
    IndexManifest,
    build_index,
    ensure_index,
    index_folder,
    open_index,
    read_manifest,
)
from steper_ray.retrieval.store import fingerprint

__all__ = [
    "IndexManifest",
    "Retriever",
    "build_index",
    "ensure_index",
    "fingerprint",
    "index_folder",
    "open_index",
    "read_manifest",
]
