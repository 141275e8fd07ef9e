"""The kinds of index: files, settings and retriever of each. Knows no manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steper_ray.config import RetrievalConfig
from steper_ray.core.errors import RetrievalError
from steper_ray.core.fingerprints import folder_fingerprint
from steper_ray.models import resolve_model
from steper_ray.retrieval import bm25, dense, links, lucene
from steper_ray.retrieval.base import Retriever
from steper_ray.retrieval.rank import Fused, Ranker, Searcher
from steper_ray.retrieval.reranker import Reranked
from steper_ray.retrieval.store import PassageStore


def build(config: RetrievalConfig, passages: Path, aside: Path, folder: Path) -> None:
    """Writes the files of an index of the passages in an Arrow file into `folder`.

    `aside` keeps what a build that was stopped can use again. Raises SteperError.
    """
    if config.kind == "lucene":
        lucene.build(PassageStore(passages), folder, config.title_weight)
    if config.kind in ("bm25", "hybrid"):
        bm25.build(passages, aside, folder, config)
    if config.kind in ("dense", "hybrid"):
        dense.build(passages, aside, folder, config.encoder, config.clusters)
    if config.links.weight:
        links.build(passages, aside, folder)


def open_files(
    config: RetrievalConfig, folder: Path, store: PassageStore, part: tuple[int, int] = (0, 1)
) -> Retriever:
    """The retriever over the files of `build`, or over the i-th of n parts of the corpus (`part`, from 0).

    Raises RetrievalError, ModelError, and OSError, ValueError or KeyError for files that are broken.
    """
    check_parts(config, part[1])
    if config.kind == "lucene":
        found: Retriever = lucene.LuceneRetriever(folder, store, k1=config.k1, b=config.b)
    else:
        found = Searcher(_ranker(folder, len(store), config, part), store)
    return Reranked(found, config.reranker) if config.reranker.model else found


def check_parts(config: RetrievalConfig, parts: int) -> None:
    """Raises RetrievalError where an index of this kind cannot be searched in parts."""
    if parts > 1 and (config.kind != "bm25" or config.links.weight or config.reranker.model):
        # Separate indexes would score by their own statistics, and merge to another order.
        raise RetrievalError(
            f"serve.retriever.shards: only words are searched in parts, not {config.kind} with links, vectors or a "
            "reranker: set it to 1 and give it more replicas, or set retrieval.kind=bm25, without the others"
        )


def _ranker(folder: Path, passages: int, config: RetrievalConfig, part: tuple[int, int]) -> Ranker:
    rankers: list[tuple[Ranker, float]] = []
    if config.kind in ("bm25", "hybrid"):
        rankers.append((bm25.Bm25Ranker(folder, passages, config, part), 1 - config.fusion.dense))
    if config.kind in ("dense", "hybrid"):
        rankers.append(
            (dense.DenseRanker(folder, passages, config.encoder, config.clusters), config.fusion.dense)
        )
    found = rankers[0][0] if len(rankers) == 1 else Fused(rankers, config.fusion.method, config.fusion.depth)
    return links.Linked(found, folder, config.links) if config.links.weight else found


def library(config: RetrievalConfig) -> str:
    return lucene.library() if config.kind == "lucene" else bm25.LIBRARY


def search_settings(config: RetrievalConfig) -> dict[str, Any]:
    """All that decides what a search finds in a corpus. Raises ModelError."""
    found = index_settings(config)
    if config.kind == "hybrid":
        found["fusion"] = config.fusion.model_dump()
    if config.clusters is not None:
        found["probes"] = config.clusters.probes
    if config.links.weight:
        found["links"] = config.links.model_dump()
    if config.reranker.model:
        found["reranker"] = config.reranker.model_dump() | {"model": _content(config.reranker.model)}
    return found


def index_settings(config: RetrievalConfig) -> dict[str, Any]:
    """The settings that decide an index's files, the encoder by its content. Raises ModelError."""
    words = {"k1", "b", "title_weight", "language", "stop_words"}
    names = {"kind"} | (words if config.kind != "dense" else set())
    found = config.model_dump(mode="json", include=names)
    if config.kind in ("dense", "hybrid"):
        own = config.encoder.model_dump(mode="json", exclude={"batch_size", "num_gpus", "trust_remote_code"})
        found["encoder"] = own | {"model": _content(config.encoder.model)}
        found["clusters"] = None if config.clusters is None else config.clusters.number or "auto"
    if config.links.weight:
        found["links"] = True
    return found


def _content(model: str) -> str:
    """A folder's fingerprint; a hub name as it is."""
    found = resolve_model(model)
    return folder_fingerprint(Path(found)) if Path(found).is_dir() else found
