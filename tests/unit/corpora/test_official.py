"""The official formats of HotpotQA, 2WikiMultiHopQA and MuSiQue, on small files made up for these tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steper_ray.config import CorpusConfig
from steper_ray.core.errors import DataError
from steper_ray.corpora import UNANSWERABLE, Corpus, open_corpus
from steper_ray.schema import Passage, Question, SubQuestion

ARVEL = ["Arvel", ["Arvel is a port.", " It lies in Doria."]]
BELA = ["Bela Quist", ["Bela Quist is a singer.", " She was born in Arvel."]]
ELTON = ["Elton (film)", ["Elton is a film.", " Its star is Bela Quist."]]
EMPTY = ["Empty page", ["", " "]]
HOTPOT: list[dict[str, Any]] = [
    {
        "_id": "h1",
        "question": "In which country was Bela Quist born?",
        "answer": "Doria",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": [["Bela Quist", 1], ["Arvel", 1], ["Bela Quist", 0]],
        "context": [ARVEL, EMPTY, BELA, ELTON],
    },
    {
        "_id": "h2",
        "question": "Is Elton a film?",
        "answer": "yes",
        "supporting_facts": [["Elton (film)", 0]],
        "context": [ELTON, ARVEL],
    },
]
TWOWIKI: dict[str, Any] = {
    "_id": "w1",
    "type": "compositional",
    "question": "In which country was the star of Elton (film) born?",
    "context": [ELTON, BELA, ARVEL],
    "supporting_facts": [["Elton (film)", 1], ["Bela Quist", 1], ["Arvel", 1]],
    "evidences": [
        ["Elton (film)", "star", "Bela Quist"],
        ["Bela Quist", "place of birth", "Arvel"],
        ["Arvel", "country", "Doria"],
        ["Doria", "capital", "Ferro"],
    ],
    "evidences_id": [],
    "answer": "Doria",
    "answer_id": "Q7",
}
MUSIQUE: dict[str, Any] = {
    "id": "2hop__1_2",
    "paragraphs": [
        {"idx": 0, "title": "Arvel", "paragraph_text": "Arvel lies in Doria.", "is_supporting": True},
        {"idx": 1, "title": "Arvel", "paragraph_text": "Arvel is also a poem.", "is_supporting": False},
        {"idx": 2, "title": "Bela", "paragraph_text": "Bela was born in Arvel.", "is_supporting": True},
    ],
    "question": "In which country was Bela born?",
    "question_decomposition": [
        {"id": 1, "question": "Bela >> place of birth", "answer": "Arvel", "paragraph_support_idx": 2},
        {"id": 2, "question": "What country is #1 in?", "answer": "Doria", "paragraph_support_idx": 0},
    ],
    "answer": "Doria",
    "answer_aliases": ["Republic of Doria", "Doria", ""],
    "answerable": True,
}


def as_array(folder: Path, rows: list[Any]) -> Path:
    path = folder / "questions.json"
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return path


def as_lines(folder: Path, rows: list[Any]) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def official(kind: str, questions: Path, **more: Any) -> Corpus:
    return open_corpus(CorpusConfig(**{"kind": kind, "questions": questions, **more}))


def titles(corpus: Corpus, ids: tuple[str | None, ...]) -> list[str | None]:
    by_id = {passage.id: passage.title for passage in corpus.passages()}
    return [by_id.get(name or "") for name in ids]


@pytest.mark.parametrize("write", [as_array, as_lines])
def test_hotpotqa_pools_each_paragraph_once_and_supporting_facts_are_gold(tmp_path: Path, write: Any) -> None:
    corpus = official("hotpotqa", write(tmp_path, HOTPOT))
    passages, (first, second) = list(corpus.passages()), corpus.questions()
    assert [passage.title for passage in passages] == ["Arvel", "Bela Quist", "Elton (film)"]
    assert passages[0].text == "Arvel is a port. It lies in Doria."
    assert (first.id, first.text, first.answers) == ("h1", HOTPOT[0]["question"], ("Doria",))
    assert (first.hops, first.dataset, first.decomposition) == (2, "hotpotqa", ())
    assert titles(corpus, first.gold_ids) == ["Bela Quist", "Arvel"]
    assert titles(corpus, second.gold_ids) == ["Elton (film)"]


def test_the_pool_and_its_fingerprint_do_not_depend_on_the_limit(tmp_path: Path) -> None:
    path = as_array(tmp_path, HOTPOT)
    assert official("hotpotqa", path, limit=1).fingerprint() == official("hotpotqa", path).fingerprint()


def test_a_gold_title_outside_the_context_stays_gold_and_is_in_no_passage(tmp_path: Path) -> None:
    """HotpotQA's fullwiki files: such a passage must count as not found, not be forgotten."""
    corpus = official("hotpotqa", as_array(tmp_path, [{**HOTPOT[0], "context": [BELA, ELTON]}]))
    (question,) = corpus.questions()
    assert titles(corpus, question.gold_ids) == ["Bela Quist", None]


def test_with_a_corpus_from_elsewhere_gold_ids_are_ids_of_that_corpus(tmp_path: Path) -> None:
    """By content where a title is ambiguous, else by title; what is not there stays unfound."""
    rows = [
        Passage("x1", "Arvel", "Arvel is also a poem."),
        Passage("x2", "Arvel", "Arvel lies in Doria."),
        Passage("x3", "Bela", "Bela was born in the port of Arvel."),
    ]
    passages = tmp_path / "passages.jsonl"
    passages.write_text(
        "".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n" for p in rows)
    )
    corpus = official("musique", as_lines(tmp_path, [MUSIQUE]), passages=passages)
    (question,) = corpus.questions()
    assert list(corpus.passages()) == rows
    assert question.gold_ids == ("x3", "x2")
    assert [hop.support_id for hop in question.decomposition] == ["x3", "x2"]
    passages.write_text(json.dumps({"id": "x9", "title": "Bela", "text": "Bela."}) + "\n")
    (question,) = official("musique", as_lines(tmp_path, [MUSIQUE]), passages=passages).questions()
    assert question.gold_ids[0] == "x9"
    assert question.gold_ids[1] not in ("x2", "x9")


@pytest.mark.parametrize("write", [as_array, as_lines])
def test_2wiki_evidences_become_a_decomposition_with_back_references(tmp_path: Path, write: Any) -> None:
    corpus = official("2wiki", write(tmp_path, [TWOWIKI]))
    (question,) = corpus.questions()
    assert [(hop.question, hop.answer) for hop in question.decomposition] == [
        ("Elton (film) >> star", "Bela Quist"),
        ("#1 >> place of birth", "Arvel"),
        ("#2 >> country", "Doria"),
        ("#3 >> capital", "Ferro"),
    ]
    supports = tuple(hop.support_id for hop in question.decomposition)
    assert titles(corpus, supports) == ["Elton (film)", "Bela Quist", "Arvel", None]
    assert supports[3] is None
    assert (question.gold_ids, question.hops, question.dataset) == (supports[:3], 3, "2wiki")
    assert question.answers == ("Doria",)


def test_2wiki_names_of_one_thing_are_linked_however_they_are_written(tmp_path: Path) -> None:
    """Brackets, signs and case differ; a gold passage that no subject names is that of the subject most like it."""
    context = [
        ["Elton (song)", ["Elton is a song."]],
        *(
            [title, [f"{title} is."]]
            for title in ("Elton (1941 film)", "Bela Quist, Duke", "Doria of Arvel", "Arvel")
        ),
    ]
    evidences = [
        ["Elton", "star", "Bela (Quist)"],
        ["bela", "father", "Duke Béla Q."],
        ["ARVEL", "country", "Doria"],
        ["The Doria", "capital", "Ferro"],
    ]
    facts = [[title, 0] for title in ("Elton (1941 film)", "Bela Quist, Duke", "Arvel", "Doria of Arvel")]
    record = {**TWOWIKI, "context": context, "evidences": evidences, "supporting_facts": facts}
    corpus = official("2wiki", as_lines(tmp_path, [record]))
    (question,) = corpus.questions()
    assert [hop.question for hop in question.decomposition] == [
        "Elton >> star",
        "#1 >> father",
        "ARVEL >> country",
        "#3 >> capital",
    ]
    supports = titles(corpus, tuple(hop.support_id for hop in question.decomposition))
    assert supports == ["Elton (1941 film)", "Bela Quist, Duke", "Arvel", "Doria of Arvel"]


def test_2wiki_fields_that_are_strings_of_json_are_read_alike(tmp_path: Path) -> None:
    (plain,) = official("2wiki", as_lines(tmp_path, [TWOWIKI])).questions()
    strings = {name: json.dumps(TWOWIKI[name]) for name in ("context", "supporting_facts", "evidences")}
    (quoted,) = official("2wiki", as_array(tmp_path, [{**TWOWIKI, **strings}])).questions()
    assert plain == quoted


@pytest.mark.parametrize("name", ["id_aliases.json", "id_aliases.jsonl"])
@pytest.mark.parametrize("by_folder", [False, True])
def test_2wiki_aliases_and_demonyms_beside_the_questions_are_accepted_answers(
    tmp_path: Path, name: str, by_folder: bool
) -> None:
    aliases = [
        {"Q_id": "Q6", "aliases": ["x"], "demonyms": []},
        {"Q_id": "Q7", "aliases": ["D."], "demonyms": ["Dorian"]},
    ]
    (tmp_path / name).write_text("\n".join(map(json.dumps, aliases)), encoding="utf-8")
    path = as_array(tmp_path, [TWOWIKI])
    (question,) = official("2wiki", tmp_path if by_folder else path).questions()
    assert question.answers == ("Doria", "D.", "Dorian")


def test_musique_keeps_hops_in_order_with_support_and_aliases(tmp_path: Path) -> None:
    corpus = official("musique", as_lines(tmp_path, [MUSIQUE]))
    arvel, poem, bela = corpus.passages()
    assert [p.text for p in (arvel, poem, bela)] == [p["paragraph_text"] for p in MUSIQUE["paragraphs"]]
    assert list(corpus.questions()) == [
        Question(
            id="2hop__1_2",
            text="In which country was Bela born?",
            answers=("Doria", "Republic of Doria"),
            gold_ids=(bela.id, arvel.id),
            hops=2,
            decomposition=(
                SubQuestion("Bela >> place of birth", "Arvel", bela.id),
                SubQuestion("What country is #1 in?", "Doria", arvel.id),
            ),
            dataset="musique",
        )
    ]


def test_an_unanswerable_musique_question_is_left_out_and_counted_even_if_errors_stop(tmp_path: Path) -> None:
    """MuSiQue-Full has each question twice under one id, once with paragraphs that do not answer it."""
    lost = {**MUSIQUE, "answerable": False, "paragraphs": MUSIQUE["paragraphs"][1:2]}
    corpus = official("musique", as_lines(tmp_path, [lost, MUSIQUE, lost]))
    assert [question.id for question in corpus.questions()] == ["2hop__1_2"]
    assert [(note.record, note.reason) for note in corpus.skipped] == [
        ("line 1", UNANSWERABLE),
        ("line 3", UNANSWERABLE),
    ]


MALFORMED: list[tuple[str, dict[str, Any], str]] = [
    ("hotpotqa", {**HOTPOT[0], "_id": None}, "'_id' is null"),
    ("hotpotqa", {**HOTPOT[0], "answer": [7]}, "'answer' must be a string, not list"),
    ("hotpotqa", {**HOTPOT[0], "context": [["Arvel"]]}, "'context.0.1' is missing"),
    ("hotpotqa", {**HOTPOT[0], "context": []}, "name a corpus of passages, corpus.passages"),
    ("hotpotqa", {**HOTPOT[0], "context": "[[1"}, "'context' is a string that is not JSON"),
    ("hotpotqa", {**HOTPOT[0], "context": [["Arvel", [1]]]}, "'context.0.1.0' must be a string"),
    ("hotpotqa", {**HOTPOT[0], "supporting_facts": [7]}, "'supporting_facts.0' must be a list"),
    ("hotpotqa", {"_id": "h9"}, "'question' is missing (the record has: _id)"),
    ("hotpotqa", HOTPOT[1], "question id 'h2' came before"),
    ("2wiki", {**TWOWIKI, "_id": "w9", "evidences": [["Arvel", "country"]]}, "'evidences.0.2' is missing"),
    (
        "2wiki",
        {**TWOWIKI, "_id": "w9", "evidences": [list("abcd")]},
        "'evidences.0' must have 3 parts, not 4",
    ),
    ("musique", {**MUSIQUE, "paragraphs": [{"idx": "0"}]}, "'paragraphs.0.idx' must be a whole number"),
    ("musique", {**MUSIQUE, "paragraphs": MUSIQUE["paragraphs"][:2]}, "is no paragraph of this question"),
    ("musique", {**MUSIQUE, "question": None}, "'question' is null"),
]
GOOD = {"hotpotqa": HOTPOT[1], "2wiki": TWOWIKI, "musique": MUSIQUE}


@pytest.mark.parametrize(("write", "place"), [(as_array, "record 2"), (as_lines, "line 2")])
@pytest.mark.parametrize(("kind", "bad", "reason"), MALFORMED, ids=[f"{k}: {r}" for k, _, r in MALFORMED])
def test_a_malformed_official_record_is_named_or_skipped(
    tmp_path: Path, kind: str, bad: Any, reason: str, write: Any, place: str
) -> None:
    path = write(tmp_path, [GOOD[kind], bad])
    with pytest.raises(DataError) as caught:
        list(official(kind, path).questions())
    assert f"{path}, {place}: " in str(caught.value)
    assert reason in str(caught.value)
    skipping = official(kind, path, on_error="skip")
    assert len(list(skipping.questions())) == 1
    assert len(list(skipping.passages())) == len(
        list(official(kind, write(tmp_path, [GOOD[kind]])).passages())
    )
    assert [note.record for note in skipping.skipped] == [place]


SPLITS: dict[str, dict[str, Any]] = {
    "hotpotqa": {name: HOTPOT[0][name] for name in ("_id", "question", "context")},
    "2wiki": {**TWOWIKI, "answer": "", "answer_id": "", "supporting_facts": [], "evidences": []},
    "musique": {name: MUSIQUE[name] for name in ("id", "question", "paragraphs")},
}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", SPLITS)
def test_a_test_split_is_read_to_be_asked_and_refused_to_be_scored(
    tmp_path: Path, kind: str, own: bool
) -> None:
    passages = tmp_path / "passages.jsonl"
    passages.write_text(json.dumps({"id": "x1", "title": "Arvel", "text": "Arvel lies in Doria."}) + "\n")
    corpus = official("auto", as_lines(tmp_path, [SPLITS[kind]]), **({"passages": passages} if own else {}))
    (question,) = corpus.questions(answered=False)
    assert (corpus.kind, question.answers, len(list(corpus.passages()))) == (kind, (), 1 if own else 3)
    with pytest.raises(DataError, match=r"line 1: the question has no answer: `steper predict` answers"):
        next(corpus.questions())


def test_hotpotqa_without_contexts_is_asked_over_a_corpus_of_its_own(tmp_path: Path) -> None:
    bare = {name: value for name, value in HOTPOT[0].items() if name != "context"}
    passages = tmp_path / "wiki_00.jsonl"
    rows = ({"id": str(n), "title": title, "text": texts} for n, (title, texts) in enumerate([ARVEL, BELA]))
    passages.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (question,) = official("auto", as_array(tmp_path, [bare]), passages=passages).questions()
    assert question.gold_ids == ("1", "0")
    with pytest.raises(DataError, match=r"brings no passages .*corpus\.passages"):
        list(official("auto", as_array(tmp_path, [bare])).passages())


MISNAMED = [
    ("hotpotqa", TWOWIKI, "2wiki"),
    ("2wiki", HOTPOT[0], "hotpotqa"),
    ("musique", HOTPOT[0], "hotpotqa"),
    ("hotpotqa", MUSIQUE, "musique"),
    ("plain", MUSIQUE, "musique"),
]


@pytest.mark.parametrize(("kind", "record", "found"), MISNAMED, ids=[f"{f} as {k}" for k, _, f in MISNAMED])
def test_a_file_of_another_data_set_is_named_and_the_fix_works(
    tmp_path: Path, kind: str, record: dict[str, Any], found: str
) -> None:
    """HotpotQA's reader takes a 2Wiki file, and would lose its evidences without a word."""
    path = as_lines(tmp_path, [record])
    passages = {"passages": path} if kind == "plain" else {}
    with pytest.raises(
        DataError, match=f"that is corpus.kind={found}, not {kind}: set it, or corpus.kind=auto"
    ):
        official(kind, path, **passages)
    assert official("auto", path).kind == official(found, path).kind == found


def test_an_array_that_is_cut_off_keeps_what_came_before_and_names_the_record(tmp_path: Path) -> None:
    rows = [{**HOTPOT[1], "_id": f"h{n}", "note": "x" * 1000} for n in range(300)]
    path = as_array(tmp_path, rows)
    path.write_text(path.read_text()[:-700])
    corpus = official("hotpotqa", path, on_error="skip")
    read = list(corpus.questions())
    assert len(read) == 299
    assert [note.record for note in corpus.skipped] == ["record 300"]
    with pytest.raises(DataError, match=r"record 300: not valid JSON.*cut off"):
        list(official("hotpotqa", path).questions())
