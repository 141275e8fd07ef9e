"""A real Lucene index in a real JVM keeps the same contract as bm25."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from retriever_contract import CORPUS, QUESTIONS, RetrieverContract

from steper_ray.config import RetrievalConfig
from steper_ray.core.errors import RetrievalError
from steper_ray.core.fingerprints import passages_fingerprint
from steper_ray.retrieval import Retriever, build_index, ensure_index, open_index, read_manifest

pytestmark = pytest.mark.java
CONFIG = RetrievalConfig(kind="lucene")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lucene") / "index"
    build_index(CORPUS, CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def lucene(folder: Path) -> Retriever:
    return open_index(folder, CONFIG, passages_fingerprint(CORPUS))


class TestLucene(RetrieverContract):
    @pytest.fixture
    def retriever(self, lucene: Retriever) -> Retriever:
        return lucene


def test_the_manifest_names_pyserini_and_no_working_file_is_left(folder: Path, lucene: Retriever) -> None:
    manifest = read_manifest(folder)
    assert (manifest.settings["kind"], manifest.passages) == ("lucene", len(CORPUS))
    assert manifest.library.startswith("pyserini ")
    assert sorted(path.name for path in folder.iterdir()) == ["lucene", "manifest.json", "passages.arrow"]


def test_lucene_and_bm25_agree_on_nearly_all_best_passages(tmp_path: Path, lucene: Retriever) -> None:
    """Their stemmers differ (Porter, Snowball), their formula does not."""
    queries = [question.text for question in QUESTIONS]
    other = ensure_index(CORPUS, RetrievalConfig(), tmp_path / "bm25")
    pairs = list(zip(lucene.search(queries, 4), other.search(queries, 4), strict=True))
    shared = [len({h.passage.id for h in a} & {h.passage.id for h in b}) for a, b in pairs]
    assert sum(shared) >= 0.9 * 4 * len(pairs)
    assert all(a[0].score == pytest.approx(b[0].score, rel=0.1) for a, b in pairs)


def test_importing_pyserini_leaves_no_key_behind(lucene: Retriever) -> None:
    assert os.environ.get("OPENAI_API_KEY") != "unused"


def test_a_flipped_bit_in_any_lucene_file_is_named_with_the_fix(tmp_path: Path, lucene: Retriever) -> None:
    folder = tmp_path / "index"
    build_index(CORPUS[:5], CONFIG, folder)
    paths = [path for path in (folder / "lucene").iterdir() if path.stat().st_size]
    assert any(path.name.startswith("segments_") for path in paths)
    for path in paths:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(
            RetrievalError, match=rf"lucene/{path.name} is not what was written.*build it again"
        ):
            open_index(folder, CONFIG)
        path.write_bytes(whole)
