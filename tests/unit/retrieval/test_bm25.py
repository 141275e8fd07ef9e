"""BM25 keeps the contract of a retriever, scores as Lucene's BM25 says, and leaves its index on disk."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import numba
import numpy as np
import pytest
from numba.core import caching
from retriever_contract import CORPUS, RetrieverContract

from steper_ray.config import RetrievalConfig
from steper_ray.core.errors import DataError
from steper_ray.core.files import file_sha256
from steper_ray.core.fingerprints import passages_fingerprint
from steper_ray.retrieval import (
    Retriever,
    bm25,
    build_index,
    ensure_index,
    index,
    merge,
    open_index,
    postings,
)
from steper_ray.retrieval.bm25 import Bm25Ranker
from steper_ray.retrieval.store import BATCH_ROWS, PassageStore
from steper_ray.schema import Passage


class TestBm25(RetrieverContract):
    @pytest.fixture(scope="class")
    def retriever(self, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
        return ensure_index(CORPUS, RetrievalConfig(), tmp_path_factory.mktemp("bm25") / "index")


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4), (0.0, 0.75), (2.0, 0.0)])
def test_the_score_is_bm25_with_the_k1_and_b_of_the_config(tmp_path: Path, k1: float, b: float) -> None:
    """Three words and one: lengths 3 and 1, mean 2; `moss` stands twice in the first of two passages."""
    passages = [Passage("a", "", "moss moss stone"), Passage("b", "", "stone")]
    config = RetrievalConfig(k1=k1, b=b)
    (hits,) = ensure_index(passages, config, tmp_path / "index").search(["moss"], 2)
    idf = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    assert [hit.passage.id for hit in hits] == ["a"]
    assert hits[0].score == pytest.approx(idf * 2 / (2 + k1 * (1 - b + b * 3 / 2)), rel=1e-5)


def test_a_word_that_the_query_repeats_counts_twice(tmp_path: Path) -> None:
    retriever = ensure_index(
        [Passage("a", "", "moss"), Passage("b", "", "fern")], RetrievalConfig(), tmp_path / "i"
    )
    ((once,), (twice,)) = retriever.search(["moss", "moss moss"], 1)
    assert twice.score == pytest.approx(2 * once.score)


def test_passages_come_back_from_any_batch_of_the_store(tmp_path: Path) -> None:
    passages = [Passage(f"p{n}", f"Title {n}", f"word{n} common") for n in range(10_000)]
    retriever = ensure_index(iter(passages), RetrievalConfig(), tmp_path / "index")
    for n in (0, 4095, 4096, 8191, 8192, 9999):
        assert [hit.passage for hit in retriever.search([f"word{n}"], 3)[0]] == [passages[n]]
    for k, size in ((3, 3), (20_000, 10_000)):
        assert [hit.passage for hit in retriever.search(["common"], k)[0]] == passages[:size]


def test_the_postings_are_memory_mapped(tmp_path: Path) -> None:
    build_index(CORPUS, RetrievalConfig(), tmp_path / "index")
    ranker = Bm25Ranker(tmp_path / "index", len(CORPUS), RetrievalConfig())
    for array in (ranker._terms, *ranker._postings):
        assert isinstance(array.base, np.memmap)


def test_thousands_of_ties_keep_the_order_of_the_corpus_at_every_cut(tmp_path: Path) -> None:
    """Three scores, each shared by a third of the passages, mixed."""
    passages = [Passage(f"p{n}", "", "moss " * (1 + n * 7919 % 3) + "fern") for n in range(6000)]
    retriever = ensure_index(passages, RetrievalConfig(), tmp_path / "index")
    (everything,) = retriever.search(["moss"], 6000)
    order = sorted(everything, key=lambda hit: (-hit.score, int(hit.passage.id[1:])))
    assert len({hit.score for hit in everything}) == 3
    assert everything == order
    for k in (1, 4, 100, 2001, 5999):
        assert retriever.search(["moss"], k) == [order[:k]]


def exhaustive(
    arrays: list[np.ndarray], terms: np.ndarray, weights: np.ndarray, k: int
) -> list[tuple[int, float]]:
    """Adds every score of every term, then sorts all documents."""
    offsets, documents, scores, _ = arrays
    sums = np.zeros(documents.max() + 1)
    for term, weight in zip(terms, weights, strict=True):
        these = slice(offsets[term], offsets[term + 1])
        sums[documents[these]] += scores[these].astype(np.float64) * weight
    order = np.argsort(-sums.astype(np.float32), kind="stable")[:k]
    return [(int(n), float(np.float32(sums[n]))) for n in order if sums[n]]


@pytest.mark.parametrize("seed", range(4))
def test_what_is_passed_over_is_never_among_the_best(seed: int) -> None:
    """Terms from everywhere to nearly nowhere over many windows, scores that often tie."""
    rng = np.random.default_rng(seed)
    shares = rng.permutation([0.9, 0.5, 0.3, 0.1, 0.03, 0.01, 0.001, 0.0003])
    n = 40_000
    lists = [np.flatnonzero(rng.random(n) < share).astype(np.int32) for share in shares]
    offsets = np.cumsum([0, *map(len, lists)])
    scores = np.concatenate(
        [
            (rng.integers(1, 9, len(found)) / 8 / share**0.3)
            for found, share in zip(lists, shares, strict=True)
        ]
    ).astype(np.float32)
    documents = np.concatenate(lists)
    arrays = [offsets, documents, scores, postings.largest(offsets, scores)]
    for _ in range(60):
        terms = rng.permutation(len(lists))[: rng.integers(1, 9)]
        weights, k = rng.integers(1, 4, len(terms)), int(rng.choice([1, 4, 10, 300]))
        best, best_scores = np.empty(k, np.int32), np.empty(k, np.float32)
        postings.search(*arrays, terms, weights, 0, n, best, best_scores)
        found = [pair for pair in zip(best.tolist(), best_scores.tolist(), strict=True) if pair[1] > 0]
        assert found == exhaustive(arrays, terms, weights, k)


def test_where_nothing_can_be_cached_the_loops_are_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container whose file system and home are read-only."""
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(exhaustive)
    largest = postings._compiled(postings.largest.py_func)
    scores = np.array([1, 3, 2], np.float32)
    assert largest(np.array([0, 2, 3]), scores).tolist() == [3, 2]


def test_the_number_of_parts_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passages = [Passage(f"p{n}", f"Title {n}", f"word{n % 777} common " * (n % 3)) for n in range(9000)]
    files = []
    for name, rows in (("one", 100 * BATCH_ROWS), ("three", BATCH_ROWS)):
        monkeypatch.setattr(bm25, "_ROWS", rows)
        build_index(passages, RetrievalConfig(), tmp_path / name)
        files.append({path.name: file_sha256(path) for path in (tmp_path / name).iterdir()})
    assert files[0] == files[1]


def test_a_stopped_build_is_continued_and_a_damaged_part_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = [Passage(f"p{n}", "", f"word{n}") for n in range(9000)]
    corpus, folder, parts = passages_fingerprint(passages), tmp_path / "index", tmp_path / ".parts-index"
    monkeypatch.setattr(bm25, "_ROWS", BATCH_ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(bm25, "_join", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_index(passages, RetrievalConfig(), folder, corpus)
    _, second, _ = sorted(parts.glob("*.npz"))
    second.write_bytes(second.read_bytes()[:-9])
    analyzed = Mock(side_effect=PassageStore.texts)
    monkeypatch.setattr(PassageStore, "texts", lambda *arguments: analyzed(*arguments))
    found = build_index(iter([]), RetrievalConfig(), folder, corpus)
    assert (found.passages, [call.args[1] for call in analyzed.call_args_list]) == (9000, [BATCH_ROWS])
    assert [path.name for path in tmp_path.iterdir() if path.name != ".locks"] == ["index"]
    assert found.files == build_index(passages, RetrievalConfig(), tmp_path / "whole").files


def test_a_build_that_was_stopped_as_it_put_its_files_together_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, folder = passages_fingerprint(CORPUS), tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr(index, "take", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_index(CORPUS, RetrievalConfig(), folder, corpus)
    assert build_index(CORPUS, RetrievalConfig(), folder, corpus).passages == len(CORPUS)


def test_a_title_counts_as_often_as_the_config_says(tmp_path: Path) -> None:
    passages = [Passage("text", "Fern", "moss moss fern"), Passage("title", "Moss", "stone fern fern")]
    best = []
    for weight in (1, 5):
        config = RetrievalConfig(title_weight=weight)
        (hits,) = ensure_index(passages, config, tmp_path / str(weight)).search(["moss"], 1)
        best.append(hits[0].passage.id)
    assert best == ["text", "title"]


def test_passages_without_a_single_word_are_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no passage has a word to search for"):
        build_index([Passage("a", "The", "of ?!")], RetrievalConfig(), tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]


def test_a_passage_without_a_word_is_kept_and_never_found(tmp_path: Path) -> None:
    passages = [Passage("a", "", "?!"), Passage("b", "", "moss")]
    (hits,) = ensure_index(passages, RetrievalConfig(), tmp_path / "index").search(["moss ?!"], 5)
    assert [hit.passage.id for hit in hits] == ["b"]


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_the_parts_of_a_corpus_find_together_what_the_whole_finds_scores_and_ties_too(
    tmp_path: Path, parts: int
) -> None:
    rng = np.random.default_rng(parts)
    words = [f"w{n}" for n in range(30)]
    passages = [
        Passage(f"p{n}", "", " ".join(rng.choice(words, size=rng.integers(1, 6)))) for n in range(200)
    ]
    config, folder = RetrievalConfig(), tmp_path / "index"
    whole = ensure_index(passages, config, folder)
    shards = [open_index(folder, config, part=(n, parts)) for n in range(parts)]
    queries = [" ".join(rng.choice(words, size=3)) for _ in range(50)]
    for k in (1, 4, 300):
        found = whole.search(queries, k)
        assert (
            any(a.score == b.score for hits in found for a, b in pairwise(hits)) or k == 1
        )  # there are ties
        assert merge([shard.search(queries, k) for shard in shards], k) == found
    for n, shard in enumerate(shards):
        held = {int(hit.passage.id[1:]) for hits in shard.search(words, 300) for hit in hits}
        assert held <= set(range(n * 200 // parts, (n + 1) * 200 // parts))
