"""What every retriever must do, whatever engine it has: a test class per engine inherits these.

A subclass gives the fixture `retriever`: the index of `CORPUS`.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from steper_ray.corpora.miniature import make_corpus
from steper_ray.retrieval import Retriever
from steper_ray.schema import Passage

PASSAGES, QUESTIONS = make_corpus(seed=3, worlds=4, questions_per_world=5, split="test")
TWINS = [Passage(f"twin{n}", "Twin", "Two quails sat on a fence.") for n in (3, 1, 2, 0)]
CORPUS = [
    *TWINS,
    *PASSAGES,
    Passage("titled", "Quokka", "It lives on an island."),
    Passage("running", "Sport", "She was running, he had fallen."),
    Passage("accents", "Żółw", "Größe über alles, 東京 タワー."),
]
IDS = {passage.id: passage for passage in CORPUS}


class RetrieverContract:
    def test_a_word_only_the_title_has_finds_the_passage(self, retriever: Retriever) -> None:
        assert [hit.passage.id for hit in retriever.search(["Where does the quokka live?"], 1)[0]] == [
            "titled"
        ]

    def test_words_are_stemmed_and_case_and_stop_words_do_not_count(self, retriever: Retriever) -> None:
        (plain, other, stop) = retriever.search(["running", "The RUNS of the", "of the and was"], 5)
        assert [hit.passage.id for hit in plain] == ["running"]
        assert other == plain
        assert stop == []

    def test_hits_are_whole_passages_best_first_with_scores_above_zero(self, retriever: Retriever) -> None:
        for hits in retriever.search([question.text for question in QUESTIONS], 7):
            assert len(hits) == 7
            scores = [hit.score for hit in hits]
            assert scores == sorted(scores, reverse=True)
            assert scores[-1] > 0
            assert all(hit.passage == IDS[hit.passage.id] for hit in hits)
            assert len({hit.passage.id for hit in hits}) == 7

    def test_the_passage_about_an_entity_is_among_the_best_for_its_name(self, retriever: Retriever) -> None:
        named = [passage for passage in PASSAGES if not passage.title.startswith("Note")]
        found = retriever.search([passage.title for passage in named], 10)
        ids = [{hit.passage.id for hit in hits} for hits in found]
        assert sum(passage.id in seen for passage, seen in zip(named, ids, strict=True)) > 0.9 * len(named)

    @pytest.mark.parametrize("k", [1, 2, 3, 4, 10])
    def test_ties_go_by_the_order_of_the_corpus_whatever_k(self, retriever: Retriever, k: int) -> None:
        (hits,) = retriever.search(["quails on a fence"], k)
        assert [hit.passage for hit in hits] == TWINS[:k]

    def test_k_beyond_the_corpus_gives_all_that_match(self, retriever: Retriever) -> None:
        (hits,) = retriever.search(["fence quokka island"], 10**6)
        assert {hit.passage.id for hit in hits} == {"titled", *(twin.id for twin in TWINS)}

    @pytest.mark.parametrize("query", ["", "   ", '?!()[]{}~^*:\\"/', "qqqzzz", "the of"])
    def test_a_query_without_a_known_word_finds_nothing(self, retriever: Retriever, query: str) -> None:
        assert retriever.search([query], 5) == [[]]

    def test_words_of_other_scripts_are_found(self, retriever: Retriever) -> None:
        for hits in retriever.search(["żółw", "größe", "タワー"], 1):
            assert [hit.passage.id for hit in hits] == ["accents"]

    def test_a_query_of_50000_characters_is_searched(self, retriever: Retriever) -> None:
        words = " ".join(f"unknown{number}" for number in range(5000)) + " quokka"
        assert len(words) > 50_000
        assert [hit.passage.id for hit in retriever.search([words], 3)[0]] == ["titled"]

    def test_no_query_gives_no_result_and_k_of_zero_no_hit(self, retriever: Retriever) -> None:
        assert retriever.search([], 5) == []
        assert retriever.search(["quokka", "fence"], 0) == [[], []]

    def test_queries_together_alone_repeated_and_in_threads_give_the_same(self, retriever: Retriever) -> None:
        queries = [question.text for question in QUESTIONS] * 3
        together = retriever.search(queries, 4)
        assert together == [retriever.search([query], 4)[0] for query in queries]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda query: retriever.search([query], 4)[0], queries)) == together
