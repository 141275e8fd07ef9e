"""Text becomes the same terms however it is written, and a script without spaces is searched by pairs."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import pytest

from steper_ray.config import RetrievalConfig
from steper_ray.retrieval import ensure_index
from steper_ray.retrieval.analysis import _RUN, _SPECIAL, _WORD, Analyzer
from steper_ray.schema import Passage


@pytest.mark.parametrize(
    ("language", "text", "terms"),
    [
        ("english", "The RUNNING foxes don't", ["run", "fox", "don", "t"]),
        ("none", "The RUNNING foxes", ["the", "running", "foxes"]),
        ("german", "Die Häuser und Gärten", ["die", "haus", "und", "gart"]),
        ("english", "cafe\u0301 \ufb01ne \uff21\uff22", ["caf\u00e9", "fine", "ab"]),
        ("english", "東京タワー、2024年 Tower", ["東京", "京タ", "タワ", "ワー", "2024", "年", "tower"]),
        ("english", "서울에서 강", ["서울", "울에", "에서", "강"]),
        ("hindi", "हिन्दी भाषाओं", ["हिन्द", "भाष"]),
    ],
)
def test_the_terms_of_a_text(language: str, text: str, terms: list[str]) -> None:
    assert Analyzer(language)(text) == terms


def test_stop_words_of_ones_own_replace_those_of_the_language() -> None:
    assert Analyzer("english", ["Fox"])("the fox ran") == ["the", "ran"]


def test_the_short_way_for_usual_text_cuts_as_the_long_one() -> None:
    for number in filter(lambda n: not 0xD800 <= n < 0xE000, range(sys.maxunicode + 1)):
        text = unicodedata.normalize("NFKC", f"a{chr(number)}b").lower()
        assert _SPECIAL.search(text) or _RUN.findall(text) == _WORD.findall(text), hex(number)


@pytest.mark.parametrize(
    ("query", "found"),
    [("東京はどこですか", "ja"), ("서울은 어디에", "ko"), ("cafe\u0301", "fr"), ("กรุงเทพ", "th")],
)
def test_a_question_in_another_script_finds_its_passage(tmp_path: Path, query: str, found: str) -> None:
    passages = [
        Passage("ja", "", "日本の首都は東京です。"),
        Passage("ko", "", "대한민국의 수도는 서울이다."),
        Passage("fr", "", "Un café."),
        Passage("th", "", "เมืองหลวงคือกรุงเทพมหานคร"),
    ]
    (hits,) = ensure_index(passages, RetrievalConfig(), tmp_path / "index").search([query], 1)
    assert [hit.passage.id for hit in hits] == [found]
