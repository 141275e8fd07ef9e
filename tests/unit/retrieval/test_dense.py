"""Vectors of a tiny encoder with random weights: pooled, searched exactly, and joined with BM25."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from steper_ray.config import (
    ClustersConfig,
    EncoderConfig,
    FusionConfig,
    LinksConfig,
    RerankerConfig,
    RetrievalConfig,
)
from steper_ray.core.errors import ModelError, RetrievalError
from steper_ray.core.fingerprints import passages_fingerprint
from steper_ray.retrieval import (
    build_index,
    check_parts,
    clusters,
    dense,
    ensure_index,
    open_index,
    parts,
    search_settings,
)
from steper_ray.retrieval.clusters import Clusters
from steper_ray.retrieval.encoder import Encoder, encoder
from steper_ray.retrieval.rank import Fused, Ranking
from steper_ray.schema import Passage

PASSAGES = [
    Passage(f"p{n}", f"t{n % 7}", " ".join(f"w{(n * k) % 23}" for k in range(1, 6))) for n in range(50)
]
TWINS = [Passage(f"twin{n}", "t1", "w1 w2 w3") for n in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder")
    words = [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[UNK]",
        *(f"w{n}" for n in range(23)),
        *(f"t{n}" for n in range(7)),
        "ask",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(path)
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    BertModel(shape, add_pooling_layer=False).save_pretrained(path)
    return path


def states(folder: Path, text: str) -> torch.Tensor:
    read = PreTrainedTokenizerFast.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        found: torch.Tensor = AutoModel.from_pretrained(folder)(**read).last_hidden_state[0]
    return found


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_text_is_its_pooled_states_of_length_one_whatever_stands_beside_it(
    folder: Path, pooling: Any
) -> None:
    text = "w1 w2 w3"
    found = states(folder, text)
    pooled = {"mean": found.mean(0), "cls": found[0], "last": found[-1]}[pooling]
    made = Encoder(EncoderConfig(model=str(folder), pooling=pooling))
    np.testing.assert_allclose(made.queries([text])[0], pooled / pooled.norm(), atol=1e-5)
    beside = made.passages([text, "w4 " * 20, "w5"])
    np.testing.assert_allclose(beside[0], made.queries([text])[0], atol=1e-5)


def test_what_the_models_files_say_holds_unless_the_config_says_otherwise(
    folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 4}))
    about = {"prompts": {"query": "ask ", "document": "t1 "}, "similarity_fn_name": "dot"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(about))
    made = Encoder(EncoderConfig(model=str(tmp_path)))
    np.testing.assert_allclose(made.queries(["w1 w2 w3"])[0], states(folder, "ask w1")[0], atol=1e-5)
    np.testing.assert_allclose(made.passages(["w1"])[0], states(folder, "t1 w1")[0], atol=1e-5)
    other = Encoder(EncoderConfig(model=str(tmp_path), query_prefix="", similarity="cosine", pooling="last"))
    last = states(folder, "w1 w2")[-1]
    np.testing.assert_allclose(other.queries(["w1 w2"])[0], last / last.norm(), atol=1e-5)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ModelError, match=r"1_Pooling/config\.json has another pooling"):
        Encoder(EncoderConfig(model=str(tmp_path)))


def test_dense_search_is_exact_in_blocks_and_ties_go_by_the_order_of_the_corpus(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = [*TWINS, *PASSAGES]
    config = RetrievalConfig(kind="dense", encoder=EncoderConfig(model=str(folder)))
    monkeypatch.setattr(dense, "_BLOCK", 7)
    retriever = ensure_index(corpus, config, tmp_path / "index", passages_fingerprint(corpus))
    vectors = np.load(tmp_path / "index" / dense.VECTORS).astype(np.float32)
    queries = ["w1 w2 w3", "w7 w9", "t4"]
    for query, hits in zip(queries, retriever.search(queries, 5), strict=True):
        scores = vectors @ encoder(config.encoder).queries([query])[0]
        order = np.argsort(-scores, kind="stable")[:5]
        assert [hit.passage for hit in hits] == [corpus[n] for n in order]
    assert [hit.passage for hit in retriever.search(["t1 w1 w2 w3"], 3)[0]] == TWINS
    assert retriever.search([" ", "w1"], 2)[0] == []
    assert len(retriever.search(["w1"], 1000)[0]) == len(corpus)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda q: retriever.search([q], 5)[0], queries * 5)) == retriever.search(
            queries * 5, 5
        )


def test_over_all_clusters_the_search_finds_what_the_exact_one_does(folder: Path, tmp_path: Path) -> None:
    corpus = [*TWINS, *PASSAGES]
    exact = RetrievalConfig(kind="dense", encoder=EncoderConfig(model=str(folder)))
    clustered = exact.model_copy(update={"clusters": ClustersConfig(number=6, probes=6)})
    queries = ["w1 w2 w3", "w7 w9", "t4", "t1 w1 w2 w3", " "]
    found = [
        ensure_index(corpus, config, tmp_path / str(n)).search(queries, 7)
        for n, config in enumerate((exact, clustered))
    ]
    for all_of_them, near in zip(*found, strict=True):
        assert [hit.passage for hit in near] == [hit.passage for hit in all_of_them]
        np.testing.assert_allclose([h.score for h in near], [h.score for h in all_of_them], rtol=1e-5)


def test_the_nearest_clusters_hold_most_of_the_best_and_the_others_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((20, 32))
    vectors = centres[random.integers(0, 20, 4000)] + 0.3 * random.standard_normal((4000, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    made = [tmp_path / f"{n}.npz" for n in range(4)]
    for n, path in enumerate(made):
        parts.save(path, vectors[1000 * n : 1000 * n + 1000])
    clusters.build(made, tmp_path, tmp_path, ClustersConfig(number=40), 4000)
    few, recalled = Clusters(tmp_path, probes=4), []
    for vector in (centres[:10] + 0.3 * random.standard_normal((10, 32))).astype(np.float32):
        near = few.near(vector)
        assert sum(end - first for first, end in near) < 1500
        found = [position for position, _ in dense._search(few, vector, 10)]
        exact = np.argsort(-(vectors.astype(np.float32) @ vector), kind="stable")[:10]
        recalled.append(len(set(found) & set(exact.tolist())))
    assert np.mean(recalled) > 9


@pytest.mark.parametrize(
    ("built", "opened"),
    [
        (None, ClustersConfig()),
        (ClustersConfig(), None),
        (ClustersConfig(), ClustersConfig(number=3)),
    ],
)
def test_an_index_with_other_clusters_is_refused_and_with_other_probes_opened(
    folder: Path, tmp_path: Path, built: ClustersConfig | None, opened: ClustersConfig | None
) -> None:
    config = RetrievalConfig(kind="dense", encoder=EncoderConfig(model=str(folder)), clusters=built)
    build_index(PASSAGES, config, tmp_path / "index")
    with pytest.raises(RetrievalError, match=r"built with retrieval\.clusters"):
        open_index(tmp_path / "index", config.model_copy(update={"clusters": opened}))
    if built is not None:
        one = config.model_copy(update={"clusters": built.model_copy(update={"probes": 1})})
        assert 0 < len(open_index(tmp_path / "index", one).search(["w1"], 50)[0]) < 50
        assert search_settings(one) != search_settings(config)


@pytest.mark.parametrize("kind", ["bm25", "dense", "hybrid"])
def test_a_query_of_any_text_finds_passages_or_nothing(folder: Path, tmp_path: Path, kind: Any) -> None:
    config = RetrievalConfig(
        kind=kind, encoder=EncoderConfig(model=str(folder)), links=LinksConfig(weight=0.5)
    )
    corpus = [*PASSAGES, Passage("rtl", "مرحبا", "مرحبا بالعالم")]
    retriever = ensure_index(corpus, config, tmp_path / "index", passages_fingerprint(corpus))
    assert retriever.search(["", " \n\t", "\u200b"], 3)[:2] == [[], []]
    for query in (
        "w1 " * 350_000,  # 1 MB
        "x" * 1_000_000,
        "\x00w1\x1b[31m w2\x07",
        "\u202ew1\u202c w2",
        "\ud800 w1",  # half of a surrogate pair: no UTF-8
        "?!",
        "\N{DESERT ISLAND}\ufe0f w1",
    ):
        (hits,) = retriever.search([query], 3)
        assert len(hits) <= 3
        assert retriever.search([query], 3) == [hits]
    (found,) = retriever.search(["مرحبا"], 3)
    assert kind != "bm25" or found[0].passage.id == "rtl"


def test_queries_are_encoded_on_the_cpu_where_passages_had_a_gpu(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU of an actor that searches is its engine's."""
    config = RetrievalConfig(kind="dense", encoder=EncoderConfig(model=str(folder)))
    build_index(PASSAGES, config, tmp_path / "index")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with_gpu = config.encoder.model_copy(update={"num_gpus": 1.0})
    retriever = open_index(tmp_path / "index", config.model_copy(update={"encoder": with_gpu}))
    assert len(retriever.search(["w1"], 3)[0]) == 3


def test_vectors_that_a_stopped_build_made_are_not_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RetrievalConfig(kind="hybrid", encoder=EncoderConfig(model=str(folder)))
    corpus = passages_fingerprint(PASSAGES)
    monkeypatch.setattr(dense, "_ROWS", 20)
    encoded: list[int] = []
    real = Encoder.passages

    def counted(self: Encoder, texts: Sequence[str]) -> Any:
        if len(encoded) == 2:
            encoded.append(0)
            raise KeyboardInterrupt
        encoded.append(len(texts))
        return real(self, texts)

    monkeypatch.setattr(Encoder, "passages", counted)
    with pytest.raises(KeyboardInterrupt):
        build_index(PASSAGES, config, tmp_path / "index", corpus)
    build_index(iter([]), config, tmp_path / "index", corpus)
    assert encoded == [20, 20, 0, 10]


def test_another_encoder_or_language_is_another_index_and_another_fusion_is_not(
    folder: Path, tmp_path: Path
) -> None:
    config = RetrievalConfig(kind="hybrid", encoder=EncoderConfig(model=str(folder)))
    build_index(PASSAGES, config, tmp_path / "index")
    other = config.model_copy(update={"fusion": FusionConfig(dense=0.2)})
    assert open_index(tmp_path / "index", other).search(["w1"], 3) != []
    assert search_settings(other) != search_settings(config)
    cls = config.model_copy(update={"encoder": EncoderConfig(model=str(folder), pooling="cls")})
    with pytest.raises(RetrievalError, match=r"built with retrieval\.encoder"):
        open_index(tmp_path / "index", cls)
    with pytest.raises(RetrievalError, match="only words are searched in parts, not hybrid"):
        check_parts(config, 2)


@dataclass
class Fixed:
    ranking: Ranking
    together: int = 1

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        return [self.ranking[:k] for _ in queries]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # words: 1, 0.25, 0; vectors: 1, 0.5, 0
        ("minmax", [(2, 0.25 * 0.25 + 0.75), (7, 0.75 * 0.5), (5, 0.25), (9, 0.0)]),
        ("rrf", [(2, 0.25 / 62 + 0.75 / 61), (7, 0.75 / 62), (9, 0.25 / 63 + 0.75 / 63), (5, 0.25 / 61)]),
    ],
)
def test_rankings_are_joined_by_weight(method: str, expected: Ranking) -> None:
    words, vectors = Fixed([(5, 9.0), (2, 6.0), (9, 5.0)]), Fixed([(2, 0.8), (7, 0.6), (9, 0.4)])
    expected = sorted(expected, key=lambda pair: -pair[1])
    (found,) = Fused([(words, 0.25), (vectors, 0.75)], method, 100).rank(["q"], 4)
    assert [position for position, _ in found] == [position for position, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected])
    assert Fused([(words, 1.0), (Fixed([]), 1.0)], method, 2).rank(["q"], 1)[0][0][0] == 5


@pytest.fixture(scope="module")
def reranker(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reranker")
    PreTrainedTokenizerFast.from_pretrained(folder).save_pretrained(path)
    torch.manual_seed(1)
    shape = BertConfig.from_pretrained(folder, num_labels=1)
    BertForSequenceClassification(shape).save_pretrained(path)
    return path


def test_the_best_passages_are_ranked_again_by_a_cross_encoder(
    folder: Path, reranker: Path, tmp_path: Path
) -> None:
    plain = ensure_index(PASSAGES, RetrievalConfig(), tmp_path / "index")
    config = RetrievalConfig(reranker=RerankerConfig(model=str(reranker), depth=6))
    retriever = open_index(tmp_path / "index", config)
    (first,), (hits,) = plain.search(["w1 w2 w3"], 6), retriever.search(["w1 w2 w3"], 4)
    model = BertForSequenceClassification.from_pretrained(reranker).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(reranker)
    scores = {}
    for hit in first:
        read = tokenizer("w1 w2 w3", f"{hit.passage.title} {hit.passage.text}", return_tensors="pt")
        with torch.inference_mode():
            scores[hit.passage.id] = float(model(**read).logits[0, 0])
    assert [hit.passage.id for hit in hits] == sorted(scores, key=lambda one: -scores[one])[:4]
    assert [hit.score for hit in hits] == pytest.approx([scores[hit.passage.id] for hit in hits])
    assert retriever.search(["", "w1"], 0) == [[], []]
    assert retriever.search(["w1 " * 2000], 2) != []
    assert search_settings(config) != search_settings(RetrievalConfig())
    with pytest.raises(ModelError, match=r"a reranker has one output, this one has 2"):
        open_index(tmp_path / "index", RetrievalConfig(reranker=RerankerConfig(model=str(folder))))
