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
from steper_ray.retrieval.analysis import Analyzer
from steper_ray.schema import Passage

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


def test_lucene_and_bm25_agree_to_the_tie_where_both_see_the_same_words(tmp_path: Path) -> None:
    """Words are given to Lucene as numbers, which its analyser leaves alone; lengths up to 40 it keeps as they are."""
    other = RetrievalConfig()
    analyze, codes = Analyzer(other.language, other.stop_words), dict[str, str]()

    def coded(text: str) -> str:
        return " ".join(codes.setdefault(word, f"q{len(codes)}q") for word in analyze(text))

    same = [Passage(one.id, "", coded(f"{one.title} {one.text}")) for one in CORPUS]
    assert max(len(one.text.split()) for one in same) <= 40
    queries = [question.text for question in QUESTIONS]
    ours = ensure_index(CORPUS, other, tmp_path / "bm25").search(queries, 4)
    theirs = ensure_index(same, CONFIG, tmp_path / "lucene").search([*map(coded, queries)], 4)
    for a, b in zip(ours, theirs, strict=True):
        assert [hit.score for hit in a] == pytest.approx([hit.score for hit in b], abs=1e-4)
        last = b[-1].score + 1e-4
        assert {h.passage.id for h in a if h.score > last} == {h.passage.id for h in b if h.score > last}


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
            RetrievalError, match=rf"lucene/{path.name} was changed since it was written.*build it again"
        ):
            open_index(folder, CONFIG)
        path.write_bytes(whole)
