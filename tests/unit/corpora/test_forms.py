"""Forms of files: containers of JSON, archives, tables without names, hub copies and documents; layouts by fields."""

from __future__ import annotations

import bz2
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steper_ray.config import CorpusConfig
from steper_ray.core.errors import DataError
from steper_ray.corpora import Corpus, open_corpus
from steper_ray.corpora.hub import parse
from steper_ray.schema import Question

ROWS = [
    {
        "_id": f"h{number}",
        "question": f"Where does town {number} lie?",
        "answer": "Vara",
        "supporting_facts": [[f"Town {number}", 0]],
        "context": [[f"Town {number}", [f"Town {number} lies in Vara.", " It is old."]]],
    }
    for number in range(6)
]
PASSAGE = {"id": "p1", "title": "Ode", "text": "Ode sings."}


def by_id() -> dict[str, Any]:
    return {str(row["_id"]): {name: value for name, value in row.items() if name != "_id"} for row in ROWS}


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("set/dev.json", json.dumps(ROWS))
        archive.writestr("set/id_aliases.json", "{}")
        archive.writestr("set/README.md", "# A set")
        archive.writestr("__MACOSX/set/._dev.json", "x")


def text(value: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(value, encoding="utf-8") and None


FORMS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "array": ("dev.json", text(json.dumps(ROWS))),
    "lines": ("dev.jsonl", text("\n".join(map(json.dumps, ROWS)))),
    "wrapped": ("dev.json", text(json.dumps({"version": "1.1", "data": ROWS}))),
    "wrapped, printed": ("dev.json", text(json.dumps({"examples": ROWS, "split": "dev"}, indent=1))),
    "by id": ("dev.json", text(json.dumps(by_id()))),
    "by id, printed": ("dev.json", text(json.dumps(by_id(), indent=2))),
    "printed values": ("dev.json", text("\n".join(json.dumps(row, indent=2) for row in ROWS))),
    "a value over lines": (
        "dev.jsonl",
        text("\n".join(json.dumps(row).replace(', "', ',\n"') for row in ROWS)),
    ),
    "a byte order mark": ("dev.json", text("\ufeff" + json.dumps({"data": ROWS}))),
    "zip": ("set.zip", zipped),
}


def opened(path: Path, **more: Any) -> Corpus:
    return open_corpus(CorpusConfig(questions=path, **more))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_records_in_any_form_are_the_same_questions(tmp_path: Path, form: str) -> None:
    name, write = FORMS[form]
    write(tmp_path / name)
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    wanted, found = opened(tmp_path / "plain.jsonl"), opened(tmp_path / name)
    assert (found.kind, len(list(found.questions()))) == ("hotpotqa", 6)
    assert list(found.questions()) == list(wanted.questions())
    assert found.fingerprint() == wanted.fingerprint()


def test_a_single_record_is_a_record_and_not_what_it_holds(tmp_path: Path) -> None:
    """A hub copy's fields hold objects; an export of retrieval holds `documents`."""
    facts = {"title": ["Town 0"], "sent_id": [0]}
    hub = {
        **ROWS[0],
        "supporting_facts": facts,
        "context": {"title": ["Town 0"], "sentences": [["It lies."]]},
    }
    first = dict(sorted(hub.items(), key=lambda field: isinstance(field[1], str)))
    (tmp_path / "one.json").write_text(json.dumps(first, indent=1))
    assert [question.id for question in opened(tmp_path / "one.json").questions()] == ["h0"]
    (tmp_path / "p.jsonl").write_text(json.dumps(PASSAGE))
    (tmp_path / "two.jsonl").write_text(
        json.dumps({"id": 7, "question": "Who?", "answer": "Ode", "documents": [{}]})
    )
    assert [q.id for q in opened(tmp_path / "two.jsonl", passages=tmp_path / "p.jsonl").questions()] == ["7"]


@pytest.mark.parametrize("form", ["wrapped", "by id, printed", "printed values"])
def test_a_container_that_is_cut_off_keeps_what_came_before(tmp_path: Path, form: str) -> None:
    name, write = FORMS[form]
    write(tmp_path / name)
    whole = (tmp_path / name).read_text()
    (tmp_path / name).write_text(whole[: whole.index("Where does town 5")])
    found = opened(tmp_path / name, on_error="skip")
    assert [question.id for question in found.questions()] == [f"h{number}" for number in range(5)]
    assert [(note.record, "cut off" in note.reason) for note in found.skipped] == [("record 6", True)]


def test_a_zip_with_several_files_asks_for_one_and_its_answer_works(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for split in ("dev", "train"):
            archive.writestr(f"data/{split}.json", json.dumps(ROWS[:2] if split == "dev" else ROWS))
        archive.writestr(
            "data/id_aliases.json", json.dumps({"Q_id": "Q7", "aliases": ["V."], "demonyms": []})
        )
    with pytest.raises(
        DataError, match=r"data/dev\.json, data/train\.json.*such as corpus\.questions="
    ) as caught:
        opened(tmp_path / "set.zip")
    fix = str(caught.value).rpartition("corpus.questions=")[2]
    assert len(list(opened(Path(fix)).questions())) == 2
    second = opened(tmp_path / "set.zip/data/train.json")
    assert (len(list(second.questions())), second.source() != opened(Path(fix)).source()) == (6, True)
    with zipfile.ZipFile(tmp_path / "2wiki.zip", "w") as archive:
        archive.writestr("dev.json", json.dumps([{**ROWS[0], "evidences": [], "answer_id": "Q7"}]))
        archive.writestr("id_aliases.json", json.dumps({"Q_id": "Q7", "aliases": ["V."], "demonyms": []}))
    assert [question.answers for question in opened(tmp_path / "2wiki.zip").questions()] == [("Vara", "V.")]
    (tmp_path / "set.zip").write_bytes(b"PK no more")
    with pytest.raises(DataError, match=r"set\.zip: not readable as \.zip"):
        opened(tmp_path / "set.zip")


def test_tables_have_names_in_the_first_line_or_are_dprs_questions(tmp_path: Path) -> None:
    (tmp_path / "psgs.tsv").write_text(
        'id\ttext\ttitle\n1\t"Ode ""the"" singer,\nand more."\tOde\n2\tshort\n'
    )
    (tmp_path / "nq.qa.csv").write_text('who sings, and where?\t[\'Ode\', "O\'Brien"]\nwho is old\t["Ode"]\n')
    found = opened(tmp_path / "nq.qa.csv", passages=tmp_path / "psgs.tsv", on_error="skip")
    first, second = found.questions()
    assert (first.text, first.answers, second.answers) == (
        "who sings, and where?",
        ("Ode", "O'Brien"),
        ("Ode",),
    )
    assert first.id != second.id
    assert [(p.id, p.title, p.text) for p in found.passages()] == [
        ("1", "Ode", 'Ode "the" singer,\nand more.')
    ]
    assert [(note.record, note.reason) for note in found.skipped] == [
        ("line 4", "the row has 2 columns, the first line has 3")
    ]
    (tmp_path / "semi.CSV").write_text("id;question;answer\nq1;Who?;Ode\n")
    (question,) = opened(tmp_path / "semi.CSV", passages=tmp_path / "psgs.tsv").questions()
    assert question.answers == ("Ode",)
    (tmp_path / "flash.csv").write_text(
        "id,question,golden_answers\nq1,Who?,\"['Ode']\"\nq2,What?,[no list\n"
    )
    read = opened(tmp_path / "flash.csv", passages=tmp_path / "psgs.tsv").questions()
    assert [(question.id, question.answers) for question in read] == [("q1", ("Ode",)), ("q2", ("[no list",))]


def test_beirs_judgements_give_gold_passages_and_choose_the_split(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "d1", "title": "Ode", "text": "Ode sings."}))
    queries = [{"_id": f"q{n}", "text": "Who sings?", "metadata": {"answer": "Ode"}} for n in range(3)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t2\nq2\td1\t0\n")
    paths = {"passages": tmp_path / "corpus.jsonl", "qrels": tmp_path / "test.tsv"}
    found = opened(tmp_path / "queries.jsonl", **paths)
    assert list(found.questions()) == [Question("q1", "Who sings?", ("Ode",), ("d1", "d2"))]
    before = found.source()
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td1\t1\n")
    assert found.source() != before


def test_compressed_files_without_another_suffix_in_folders_of_folders_are_read(tmp_path: Path) -> None:
    """HotpotQA's abstracts: AA/wiki_00.bz2 and so on, texts as lists of sentences."""
    for folder, number in (("AA", 1), ("AB", 2)):
        (tmp_path / "wiki" / folder).mkdir(parents=True)
        row = {"id": number, "title": "Ode", "text": ["Ode sings.", f" It is {number}."]}
        (tmp_path / "wiki" / folder / "wiki_00.bz2").write_bytes(bz2.compress(json.dumps(row).encode()))
    (tmp_path / "q.json").write_text(json.dumps([{"query": "Who?", "answers": ["Ode"]}]))
    found = opened(tmp_path / "q.json", passages=tmp_path / "wiki")
    assert [(p.id, p.text) for p in found.passages()] == [
        ("1", "Ode sings. It is 1."),
        ("2", "Ode sings. It is 2."),
    ]
    (tmp_path / "wiki.tar.bz2").write_bytes(b"")
    with pytest.raises(DataError, match=r"unpack it, and give its folder as corpus\.passages"):
        opened(tmp_path / "q.json", passages=tmp_path / "wiki.tar.bz2")


GUIDE = "# Ode's guide\n\nOde is a singer.\n\n## Tours\n\n" + "Ode toured Vara in that year. " * 9 + "\n"
PAGE = """<html><head><title>Vara
 town</title><script>var x = "Vara";</script></head><body><nav>Menu</nav>
<h1>Vara</h1><p>Vara is a <b>town</b> &amp; a port, see <a href="/x">there</a>.</p><footer>2020</footer></body>
</html>"""


def test_documents_become_passages_with_their_source(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / "guide.md").write_text(GUIDE)
    (docs / "sub" / "page.html").write_text(PAGE)
    (docs / "sub" / "notes.txt").write_text("One note.\n\n" + "Another note of many words. " * 12)
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "Who?", "answer": "Ode"}))
    found = opened(tmp_path / "q.jsonl", passages=docs, passage_characters=200)
    passages = list(found.passages())
    assert max(len(passage.text) for passage in passages) <= 200
    assert [(p.id, p.title) for p in passages] == [
        ("guide.md#1", "Ode's guide"),
        ("guide.md#2", "Ode's guide: Tours"),
        ("guide.md#3", "Ode's guide: Tours"),
        ("sub/notes.txt#1", "notes"),
        ("sub/notes.txt#2", "notes"),
        ("sub/notes.txt#3", "notes"),
        ("sub/page.html#1", "Vara town: Vara"),
    ]
    assert passages[-1].text == "# Vara\n\nVara is a **town** & a port, see there."
    before = found.fingerprint()
    moved = docs.rename(tmp_path / "elsewhere")
    again = opened(tmp_path / "q.jsonl", passages=moved, passage_characters=200)
    assert again.fingerprint() == before
    with zipfile.ZipFile(tmp_path / "docs.zip", "w") as archive:
        for file in moved.rglob("*.*"):
            archive.write(file, file.relative_to(moved))
    packed = opened(tmp_path / "q.jsonl", passages=tmp_path / "docs.zip", passage_characters=200)
    assert packed.fingerprint() == before
    longer = opened(tmp_path / "q.jsonl", passages=moved, passage_characters=400)
    assert longer.fingerprint() != again.fingerprint()


def test_a_document_that_is_not_utf8_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_bytes("Vará".encode("latin-1"))
    (tmp_path / "docs" / "b.txt").write_text("Vará")
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "Who?", "answer": "Ode"}))
    with pytest.raises(DataError, match=r"a\.txt, byte 3: not UTF-8 .*corpus\.on_error=skip"):
        list(opened(tmp_path / "q.jsonl", passages=tmp_path / "docs").passages())
    found = opened(tmp_path / "q.jsonl", passages=tmp_path / "docs", on_error="skip")
    assert [passage.id for passage in found.passages()] == ["b.txt#1"]


def test_a_set_by_its_hub_name_is_read_through_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local folder in the hub's form takes the same way as a name of the hub."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    titles, facts = {"title": ["Ode"], "sentences": [["Ode sings."]]}, {"title": ["Ode"], "sent_id": [0]}
    row = {
        "id": "a1",
        "question": "Who sings?",
        "answer": "Ode",
        "supporting_facts": facts,
        "context": titles,
    }
    (tmp_path / "hotpot" / "distractor").mkdir(parents=True)
    (tmp_path / "hotpot" / "distractor" / "train.jsonl").write_text(json.dumps(row) + "\n")
    card = "---\nconfigs:\n- config_name: distractor\n  data_files:\n  - split: train\n    path: distractor/*\n---\n"
    (tmp_path / "hotpot" / "README.md").write_text(card)
    found = opened(Path(f"hub:{tmp_path}/hotpot/distractor/train"))
    assert (found.kind, [question.id for question in found.questions()]) == ("hotpotqa", ["a1"])
    assert [passage.title for passage in found.passages()] == ["Ode"]
    assert len(found.source()) == 64
    with pytest.raises(DataError, match=r"corpus\.questions=hub:.*/none: cannot be loaded: .*none"):
        opened(Path(f"hub:{tmp_path}/hotpot/distractor/none"))


NAMES = {
    "hub:hotpotqa/hotpot_qa/distractor/train": ("hotpotqa/hotpot_qa", None, "distractor", "train"),
    "hub:dgslibisey/MuSiQue/validation": ("dgslibisey/MuSiQue", None, None, "validation"),
    "hub:a/b@abc123/test": ("a/b", "abc123", None, "test"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_hub_name_has_a_repository_and_a_split(name: str) -> None:
    assert parse(name) == NAMES[name]


@pytest.mark.parametrize("name", ["hub:a/b", "hub:a", "hub:a/b/c/d/e", "hub:a/b/train[:10]"])
def test_a_name_of_another_form_shows_the_form(name: str) -> None:
    with pytest.raises(DataError, match=r"write hub:OWNER/NAME/SPLIT"):
        parse(name)


def test_a_record_of_no_layout_shows_its_fields_and_the_accepted_layouts(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "Who?", "gold": "Ode"}))
    with pytest.raises(
        DataError, match=r"line 1: the record has the fields prompt, gold: accepted are HotpotQA"
    ):
        opened(tmp_path / "q.jsonl")


def test_questions_without_passages_name_the_setting(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "Who?", "answer": "Ode"}))
    with pytest.raises(DataError, match=r"bring no passages: set corpus\.passages"):
        opened(tmp_path / "q.jsonl")
