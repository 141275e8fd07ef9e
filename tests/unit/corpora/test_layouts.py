"""Layouts other than the official ones: the hub's copies, FlashRAG, BEIR, HippoRAG, HotpotQA's abstracts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steper_ray.config import CorpusConfig
from steper_ray.core.answers import score
from steper_ray.core.errors import DataError
from steper_ray.corpora import open_corpus
from steper_ray.corpora.pooled import content_id
from steper_ray.schema import Passage, Question

CONTEXT = [["Lumen", ["Lumen is a town.", " It lies in Vara."]], ["Ode", ["Ode was born in Lumen."]]]
FACTS = [["Ode", 0], ["Lumen", 1]]
OFFICIAL: dict[str, Any] = {
    "_id": "a1",
    "question": "Where does the town of Ode's birth lie?",
    "answer": "Vara",
    "supporting_facts": FACTS,
    "context": CONTEXT,
}
EVIDENCES = [["Ode", "place of birth", "Lumen"], ["Lumen", "region", "Vara"]]


def hub(sentences: str) -> dict[str, Any]:
    """The record as the hub's copies have it."""
    titles, texts = zip(*CONTEXT, strict=True)
    named, numbers = zip(*FACTS, strict=True)
    rest = {name: OFFICIAL[name] for name in ("question", "answer")}
    return {
        "id": "a1",
        **rest,
        "supporting_facts": {"title": list(named), "sent_id": list(numbers)},
        "context": {"title": list(titles), sentences: list(texts)},
    }


def write(path: Path, row: dict[str, Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


def read(kind: str, path: Path) -> tuple[list[Question], list[Passage]]:
    corpus = open_corpus(CorpusConfig.model_validate({"kind": kind, "questions": path}))
    return list(corpus.questions()), list(corpus.passages())


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("sentences", ["sentences", "content"])
@pytest.mark.parametrize("kind", ["hotpotqa", "2wiki"])
def test_a_hub_copy_gives_what_the_official_file_gives(
    tmp_path: Path, kind: str, sentences: str, suffix: str
) -> None:
    official = read(kind, write(tmp_path / "official.jsonl", OFFICIAL))
    assert len(official[0][0].gold_ids) == 2
    assert read(kind, write(tmp_path / f"hub.{suffix}", hub(sentences))) == official


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_evidences_may_be_objects(tmp_path: Path, suffix: str) -> None:
    named = [dict(zip(("fact", "relation", "entity"), triple, strict=True)) for triple in EVIDENCES]
    official = read("2wiki", write(tmp_path / "official.jsonl", {**OFFICIAL, "evidences": EVIDENCES}))
    assert len(official[0][0].decomposition) == 2
    copy = {**hub("sentences"), "evidences": named}
    assert read("2wiki", write(tmp_path / f"hub.{suffix}", copy)) == official


def test_columns_of_unequal_length_are_malformed(tmp_path: Path) -> None:
    row = hub("sentences")
    row["context"]["sentences"] = row["context"]["sentences"][:1]
    with pytest.raises(DataError, match=r"line 1: field 'context' has 2 of 'title' and 1 of 'sentences'"):
        read("hotpotqa", write(tmp_path / "hub.jsonl", row))


PASSAGES: list[tuple[dict[str, Any], Passage]] = [
    ({"id": 3, "contents": '"Ode"\nOde sings.\nStill.'}, Passage("3", "Ode", "Ode sings.\nStill.")),
    ({"id": "3", "contents": "Ode sings."}, Passage("3", "", "Ode sings.")),
    ({"doc_id": 3, "title": "Ode", "passage": "Ode sings."}, Passage("3", "Ode", "Ode sings.")),
    ({"id": "3", "title": "Ode", "paragraph_text": "Ode sings."}, Passage("3", "Ode", "Ode sings.")),
    ({"_id": "d7", "title": "Ode", "text": "Ode sings.", "metadata": {}}, Passage("d7", "Ode", "Ode sings.")),
    ({"title": "Ode", "text": "Ode sings."}, Passage(content_id("Ode", "Ode sings."), "Ode", "Ode sings.")),
    (
        {"id": "9", "title": "Ode", "text": ["Ode sings.", " Still."]},
        Passage("9", "Ode", "Ode sings. Still."),
    ),
    ({"id": "9", "text": "Ode sings."}, Passage("9", "", "Ode sings.")),
    ({"id": "9", "text": [["Ode sings."], ["Still.", " So."]]}, Passage("9", "", "Ode sings. Still. So.")),
]


ANSWERS = {
    "a number": ({"answers": [1999, "MCMXCIX"]}, ("1999", "MCMXCIX")),
    "SQuAD's": ({"answers": {"text": ["Ode", "O."], "answer_start": [0, 1]}}, ("Ode", "O.")),
    "BEIR's metadata": ({"metadata": {"answer": "Ode"}}, ("Ode",)),
    "a number alone": ({"answer": 3.5}, ("3.5",)),
}


@pytest.mark.parametrize("form", ANSWERS)
def test_answers_are_read_in_the_forms_that_people_store_them(tmp_path: Path, form: str) -> None:
    fields, answers = ANSWERS[form]
    path = write(tmp_path / "q.jsonl", {"question": "Who?", **fields})
    passages = write(tmp_path / "p.jsonl", PASSAGES[0][0])
    (question,) = open_corpus(CorpusConfig(questions=path, passages=passages)).questions()
    assert question.answers == answers


@pytest.mark.parametrize(("row", "passage"), PASSAGES, ids=[str(list(row)) for row, _ in PASSAGES])
def test_a_passage_of_another_layout_is_read(tmp_path: Path, row: dict[str, Any], passage: Passage) -> None:
    questions = write(tmp_path / "q.jsonl", {"_id": "q1", "text": "Who?", "golden_answers": ["Ode", "O."]})
    passages = write(tmp_path / "p.jsonl", row)
    corpus = open_corpus(CorpusConfig(kind="plain", questions=questions, passages=passages))
    assert list(corpus.passages()) == [passage]
    assert list(corpus.questions()) == [Question("q1", "Who?", ("Ode", "O."))]


def test_a_record_that_fits_no_layout_shows_its_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"pid": 1, "prose": "Ode sings."})
    with pytest.raises(DataError, match=r"this record has the fields pid, prose"):
        list(open_corpus(CorpusConfig(kind="plain", questions=path, passages=path)).passages())


@pytest.mark.parametrize("name", ["hotpotqa", "hotpot_qa", "HotpotQA", "2WikiMultihopQA", "2wikimultihopqa"])
def test_a_data_set_as_people_write_its_name_has_its_scoring_rule(name: str) -> None:
    assert score("no", ["no way"], name).f1 == 0
    assert score("no", ["no way"], "musique").f1 > 0
