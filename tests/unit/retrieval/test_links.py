"""Passages link to those whose titles they mention, and a search follows the links of its best."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from steper_ray.config import LinksConfig, RetrievalConfig
from steper_ray.core.errors import RetrievalError
from steper_ray.retrieval import build_index, check_parts, ensure_index, links, open_index, search_settings
from steper_ray.schema import Passage

CORPUS = [
    Passage("film", "Vara Nights", "Vara Nights is a film by Ode Lind of Black Rock."),
    Passage("ode", "Ode Lind", "She was born in Tarn and lives there; Tarn is small."),
    Passage("tarn", "Tarn (town)", "A port in the north."),
    Passage("rock", "Black Rock (1941 film)", "It was lost."),
    Passage("rock2", "Black Rock", "A hill."),
    Passage("it", "It", "A pronoun."),
    Passage("other", "Nights", "They are long. black rock, tarn and ode lind in small letters."),
]
CONFIG = RetrievalConfig(links=LinksConfig(weight=0.5))


def titles(folder: Path) -> links.Titles:
    return links._load_titles(folder / "titles.npz")


def linked(folder: Path) -> dict[str, list[str]]:
    offsets, targets = links.parts.load(folder / "links.npz")
    return {
        passage.id: [CORPUS[n].id for n in targets[offsets[at] : offsets[at + 1]]]
        for at, passage in enumerate(CORPUS)
    }


def test_a_passage_links_to_the_longest_titles_that_its_text_mentions_as_they_are_written(
    tmp_path: Path,
) -> None:
    build_index(CORPUS, CONFIG, tmp_path / "index")
    assert linked(tmp_path / "index") == {
        "film": ["ode", "rock", "rock2"],
        "ode": ["tarn"],
        **{name: [] for name in ("tarn", "rock", "rock2", "it", "other")},
    }
    found = [
        [CORPUS[n].id for n in of]
        for of in titles(tmp_path / "index").mentioned("Is It Vara Nights, Tarn or Tarn?")
    ]
    assert found == [["film"], ["tarn"]]


def test_the_second_hop_is_found_by_the_first_ones_passage(tmp_path: Path) -> None:
    query = "Where was the director of the film Vara Nights born?"
    plain = ensure_index(CORPUS, RetrievalConfig(), tmp_path / "plain").search([query], 7)[0]
    assert "tarn" not in [hit.passage.id for hit in plain]
    retriever = ensure_index(CORPUS, CONFIG, tmp_path / "linked")
    (hits,) = retriever.search([query], 3)
    assert [hit.passage.id for hit in hits][:2] == ["film", "ode"]
    (again,) = retriever.search(["She, Ode Lind, made it."], 2)
    assert [hit.passage.id for hit in again] == ["ode", "tarn"]
    assert retriever.search(["", "qqq"], 3) == [[], []]


def test_a_score_is_the_share_of_the_best_one_and_what_titles_and_links_add(tmp_path: Path) -> None:
    config = RetrievalConfig(links=LinksConfig(weight=0.6, title=0.2))
    (hits,) = ensure_index(CORPUS, config, tmp_path / "index").search(["Vara Nights"], 7)
    # The film has the best score, 1, and a bonus, which its three links share; "Nights" has the worst, 0.
    assert {hit.passage.id: pytest.approx(hit.score) for hit in hits} == {
        "film": 1 + 0.2, "ode": 0.6 * 1.2 / 3, "rock": 0.6 * 1.2 / 3, "rock2": 0.6 * 1.2 / 3, "other": 0.0,
    }  # fmt: skip


def test_many_passages_of_one_title_are_linked_by_the_first_ones(tmp_path: Path) -> None:
    corpus = [Passage(f"p{n}", "Long Article", f"part {n}") for n in range(8)] + [
        Passage("q", "Other", "See Long Article.")
    ]
    build_index(corpus, CONFIG, tmp_path / "index")
    offsets, targets = links.parts.load(tmp_path / "index" / "links.npz")
    assert targets[offsets[8] :].tolist() == [0, 1, 2, 3, 4]


def test_links_are_part_of_the_index_and_of_what_a_search_finds(tmp_path: Path) -> None:
    build_index(CORPUS, RetrievalConfig(), tmp_path / "index")
    with pytest.raises(RetrievalError, match=r"built with retrieval\.links None, asked for True"):
        open_index(tmp_path / "index", CONFIG)
    other = RetrievalConfig(links=LinksConfig(weight=0.4))
    assert len({str(search_settings(one)) for one in (RetrievalConfig(), CONFIG, other)}) == 3
    with pytest.raises(RetrievalError, match=r"only words are searched in parts.*set retrieval\.kind=bm25"):
        check_parts(CONFIG, 2)
    with pytest.raises(ValidationError, match=r"set retrieval\.kind=bm25"):
        RetrievalConfig.model_validate({"kind": "lucene", "links": {"weight": 0.5}})
