"""Retrieval: search over passages by BM25 (ours or Lucene's), vectors or both, behind one protocol."""

from steper_ray.retrieval.base import AsyncRetriever, Retriever, as_async, merge
from steper_ray.retrieval.caching import CachedSearches, open_cached
from steper_ray.retrieval.index import (
    IndexManifest,
    build_index,
    ensure_index,
    index_folder,
    open_index,
    read_manifest,
)
from steper_ray.retrieval.kinds import check_parts, search_settings
from steper_ray.retrieval.store import LongPassages, long_passages

__all__ = [
    "AsyncRetriever",
    "CachedSearches",
    "IndexManifest",
    "LongPassages",
    "Retriever",
    "as_async",
    "build_index",
    "check_parts",
    "ensure_index",
    "index_folder",
    "long_passages",
    "merge",
    "open_cached",
    "open_index",
    "read_manifest",
    "search_settings",
]
