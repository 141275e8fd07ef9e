"""bm25s keeps the contract of a retriever, scores as Lucene's BM25 says, and leaves its index on disk."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from retriever_contract import CORPUS, RetrieverContract

from steper_ray.config import RetrievalConfig
from steper_ray.core.errors import DataError
from steper_ray.retrieval import Retriever, build_index, ensure_index, merge, open_index
from steper_ray.retrieval.bm25 import Bm25Retriever
from steper_ray.retrieval.store import PassageStore
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
    retriever = Bm25Retriever(tmp_path / "index", PassageStore(tmp_path / "index" / "passages.arrow"))
    for name in ("data", "indices", "indptr"):
        assert isinstance(retriever._index.scores[name], np.memmap)


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
