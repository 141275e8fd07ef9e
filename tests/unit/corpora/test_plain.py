"""Plain files: what is read, what stops, what is skipped, and what stays in order and in memory."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steper_ray.config import CorpusConfig
from steper_ray.core import fingerprints
from steper_ray.core.errors import DataError
from steper_ray.core.fingerprints import passages_fingerprint
from steper_ray.corpora import Corpus, open_corpus
from steper_ray.corpora import corpus as corpus_module
from steper_ray.schema import Passage, Question, SubQuestion

PASSAGES = [
    {"id": "p1", "title": "Arvel", "text": "Arvel is a port.", "src": ["x"]},
    {"id": "p2", "title": "", "text": "Bela was born in Arvel."},
    {"id": "p3", "title": "Corin", "text": "Corin sings."},
]
QUESTIONS: list[dict[str, Any]] = [
    {
        "id": "q1",
        "question": "Where was Bela born?",
        "answers": ["Arvel", "the port of Arvel", "Arvel"],
        "gold_ids": ["p2"],
        "hops": 1,
        "decomposition": [
            {"question": "Where was Bela born?", "answer": "Arvel", "gold_id": "p2"},
            {"question": "What is #1?", "answer": "a port", "support_id": None},
        ],
        "dataset": "toy",
        "level": "easy",
    },
    {"id": "q2", "text": "Who sings?", "answer": "Corin"},
]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def corpus(
    folder: Path, passages: str = lines(PASSAGES), questions: str = lines(QUESTIONS), **more: Any
) -> Corpus:
    """A corpus of two files with these contents; `more` goes to the config."""
    files = {"passages": folder / "passages.jsonl", "questions": folder / "questions.jsonl"}
    files["passages"].write_text(passages, encoding="utf-8")
    files["questions"].write_text(questions, encoding="utf-8")
    return open_corpus(CorpusConfig(**{"kind": "plain", **files, **more}))


def test_a_plain_question_keeps_all_its_fields_and_ignores_others(tmp_path: Path) -> None:
    hops = (SubQuestion("Where was Bela born?", "Arvel", "p2"), SubQuestion("What is #1?", "a port", None))
    assert list(corpus(tmp_path).questions()) == [
        Question("q1", "Where was Bela born?", ("Arvel", "the port of Arvel"), ("p2",), 1, hops, "toy"),
        Question("q2", "Who sings?", ("Corin",)),
    ]


def test_streams_can_be_read_again_and_the_limit_holds_for_questions_alone(tmp_path: Path) -> None:
    opened = corpus(tmp_path, limit=1)
    for _ in range(2):
        assert [question.id for question in opened.questions()] == ["q1"]
        assert [passage.id for passage in opened.passages()] == ["p1", "p2", "p3"]


def test_the_fingerprint_is_the_one_of_an_index_and_changes_with_any_field_and_the_order(
    tmp_path: Path,
) -> None:
    opened = corpus(tmp_path)
    passages = list(opened.passages())
    assert opened.fingerprint() == passages_fingerprint(passages)
    moved = [Passage("p1", "Arvel is", "a port."), *passages[1:]]
    assert len({passages_fingerprint(p) for p in (passages, moved, passages[::-1], passages[:2])}) == 4


def test_the_fingerprint_and_what_was_left_out_are_read_once_while_files_and_settings_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", -1)
    reads: list[int] = []
    read = corpus_module.passages_fingerprint
    monkeypatch.setattr(
        corpus_module, "passages_fingerprint", lambda passages: reads.append(0) or read(passages)
    )
    broken = lines(PASSAGES) + "{\n"
    opened = [corpus(tmp_path, broken, on_error="skip")]
    opened += [open_corpus(opened[0]._config.model_copy(update={"limit": 1})) for _ in range(2)]
    list(opened[0].passages())  # notes taken before are not taken twice, and not forgotten
    told = [(one.fingerprint(), [(s.record, s.file) for s in one.skipped]) for one in opened]
    assert told == [(read(opened[0].passages()), [("line 4", str(tmp_path / "passages.jsonl"))])] * 3
    assert len(reads) == 1
    with pytest.raises(DataError, match="line 4"):
        open_corpus(opened[0]._config.model_copy(update={"on_error": "stop"})).fingerprint()
    changed = [{**PASSAGES[0], "text": "Arvel is a part."}, *PASSAGES[1:]]
    assert corpus(tmp_path, lines(changed) + "{\n", on_error="skip").fingerprint() != told[0][0]
    assert len(reads) == 3
    (tmp_path / "passages.jsonl").unlink()
    with pytest.raises(DataError, match=r"passages\.jsonl: cannot be read: No such file"):
        opened[0].fingerprint()


def write_gzip(folder: Path, rows: list[Any]) -> Path:
    (folder / "p.jsonl.gz").write_bytes(gzip.compress(lines(rows).encode()))
    return folder / "p.jsonl.gz"


def write_bz2(folder: Path, rows: list[Any]) -> Path:
    (folder / "p.jsonl.bz2").write_bytes(bz2.compress(lines(rows).encode()))
    return folder / "p.jsonl.bz2"


def write_xz(folder: Path, rows: list[Any]) -> Path:
    (folder / "p.json.xz").write_bytes(lzma.compress(json.dumps(rows).encode()))
    return folder / "p.json.xz"


def write_tsv(folder: Path, rows: list[Any]) -> Path:
    """DPR's: other order of columns, quoted texts."""
    table = ["id\ttext\ttitle", *(f'{row["id"]}\t"{row["text"]}"\t{row["title"]}' for row in rows)]
    (folder / "p.tsv.gz").write_bytes(gzip.compress("\r\n".join(table).encode()))
    return folder / "p.tsv.gz"


def write_csv(folder: Path, rows: list[Any]) -> Path:
    table = ["\ufefftitle,id,text", *(f'{row["title"]},{row["id"]},"{row["text"]}"' for row in rows)]
    (folder / "p.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    return folder / "p.csv"


def write_array(folder: Path, rows: list[Any]) -> Path:
    (folder / "p.json").write_text("\ufeff \n" + json.dumps(rows, indent=1), encoding="utf-8")
    return folder / "p.json"


def write_parquet(folder: Path, rows: list[Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "p.parquet")
    return folder / "p.parquet"


def write_folder(folder: Path, rows: list[Any]) -> Path:
    (folder / "parts").mkdir()
    for number, row in enumerate(rows):
        (folder / "parts" / f"{number}.jsonl").write_text("\ufeff" + lines([row]) + "\n", encoding="utf-8")
    (folder / "parts" / "README.md").write_text("not data")
    return folder / "parts"


def write_glob(folder: Path, rows: list[Any]) -> Path:
    return write_folder(folder, rows) / "?.jsonl"


@pytest.mark.parametrize(
    "write",
    [
        write_gzip,
        write_bz2,
        write_xz,
        write_tsv,
        write_csv,
        write_array,
        write_parquet,
        write_folder,
        write_glob,
    ],
)
def test_every_container_gives_the_same_passages(tmp_path: Path, write: Any) -> None:
    (tmp_path / "questions.jsonl").write_text(lines(QUESTIONS), encoding="utf-8")
    config = CorpusConfig(
        kind="plain", passages=write(tmp_path, PASSAGES), questions=tmp_path / "questions.jsonl"
    )
    wanted = [Passage(row["id"], row["title"], row["text"]) for row in PASSAGES]
    assert list(open_corpus(config).passages()) == wanted


def changed(row: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A copy with other fields; None takes one away."""
    return {name: value for name, value in {**row, **fields}.items() if value is not None}


BAD_PASSAGES = {
    '{"id": "p9", "title"': "not valid JSON",
    "[1, 2]": "expected an object",
    json.dumps(changed(PASSAGES[0], id="p9", text=None)): "this record has the fields id, title, src",
    json.dumps(changed(PASSAGES[0], id="p9", title=7)): "'title' must be a string",
    json.dumps(changed(PASSAGES[0], id="p9", text=[7])): "'text' must be a string",
    json.dumps(changed(PASSAGES[0], id="p9", text=" ")): "'text' is empty",
    json.dumps(changed(PASSAGES[0], id=True)): "'id' must be a string",
    json.dumps(changed(PASSAGES[0], id="p9", text="\ud800")): "not Unicode text",
    json.dumps(changed(PASSAGES[0], text="Another text.")): "'p1' came before",
}


@pytest.mark.parametrize(("bad", "reason"), BAD_PASSAGES.items(), ids=list(BAD_PASSAGES.values()))
def test_a_malformed_passage_stops_with_file_line_and_fix_or_is_skipped(
    tmp_path: Path, bad: str, reason: str
) -> None:
    rows = lines(PASSAGES).splitlines()
    text = "\n".join([*rows[:2], "", bad, *rows[2:]]) + "\n"
    stream = corpus(tmp_path, passages=text).passages()
    assert [passage.id for passage in islice(stream, 2)] == ["p1", "p2"]
    with pytest.raises(DataError, match=r"passages\.jsonl, line 4: .*corpus\.on_error=skip") as caught:
        next(stream)
    assert reason in str(caught.value)
    skipping = corpus(tmp_path, passages=text, on_error="skip")
    for _ in range(2):
        assert [passage.id for passage in skipping.passages()] == ["p1", "p2", "p3"]
    (note,) = skipping.skipped
    assert (note.file, note.record) == (str(tmp_path / "passages.jsonl"), "line 4")
    assert reason in note.reason


BAD_QUESTIONS: dict[str, dict[str, Any]] = {
    "'question' is missing": {"question": None},
    "'question' is empty": {"question": ""},
    "the question has no answer": {"answers": None},
    "no answer: `steper predict` answers": {"answers": []},
    "answers such questions": {"answers": [""]},
    "'answers.0' must be a string": {"answers": [True]},
    "'answers' must be a list": {"answers": True},
    "'gold_ids' must be a list": {"gold_ids": 3},
    "'hops' must be a whole number": {"hops": "two"},
    "'decomposition.0' must be an object": {"decomposition": ["a"]},
    "'decomposition.0.answer' is missing": {"decomposition": [{"question": "a"}]},
    "'q2' came before": {"id": "q2"},
}


@pytest.mark.parametrize(("reason", "fields"), BAD_QUESTIONS.items(), ids=list(BAD_QUESTIONS))
def test_a_malformed_question_stops_with_file_line_and_fix_or_is_skipped(
    tmp_path: Path, reason: str, fields: dict[str, Any]
) -> None:
    text = lines([QUESTIONS[1], changed(QUESTIONS[0], **fields)])
    with pytest.raises(DataError, match=r"questions\.jsonl, line 2: .*corpus\.on_error=skip") as caught:
        list(corpus(tmp_path, questions=text).questions())
    assert reason in str(caught.value)
    skipping = corpus(tmp_path, questions=text, on_error="skip")
    assert [question.id for question in skipping.questions()] == ["q2"]
    assert [note.record for note in skipping.skipped] == ["line 2"]


def test_a_passage_that_comes_again_unchanged_is_one_passage(tmp_path: Path) -> None:
    opened = corpus(tmp_path, passages=lines([*PASSAGES, PASSAGES[0]]))
    assert [passage.id for passage in opened.passages()] == ["p1", "p2", "p3"]
    assert opened.skipped == []


def test_ids_may_be_whole_numbers(tmp_path: Path) -> None:
    opened = corpus(
        tmp_path, lines([changed(PASSAGES[0], id=7)]), lines([changed(QUESTIONS[1], id=1, gold_ids=[7])])
    )
    (question,) = opened.questions()
    assert (next(opened.passages()).id, question.id, question.gold_ids) == ("7", "1", ("7",))


def test_a_truncated_jsonl_says_that_the_file_may_be_cut_off(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: not valid JSON \(the last line: is the file cut off\?\)"):
        list(corpus(tmp_path, passages=lines(PASSAGES)[:-9]).passages())


def test_bytes_that_are_not_utf8_are_malformed_at_their_line(tmp_path: Path) -> None:
    opened = corpus(tmp_path, on_error="skip")
    path = tmp_path / "passages.jsonl"
    path.write_bytes(path.read_bytes().replace(b"sings", b"s\xffngs"))
    assert [passage.id for passage in opened.passages()] == ["p1", "p2"]
    assert [(note.record, note.reason[:9]) for note in opened.skipped] == [("line 3", "not UTF-8")]


@pytest.mark.parametrize("write", [write_gzip, write_bz2, write_xz])
def test_a_compressed_file_that_is_cut_off_keeps_what_came_before(tmp_path: Path, write: Any) -> None:
    rows = [changed(PASSAGES[0], id=f"p{n}", text=f"{n * 7919} is a number.") for n in range(30000)]
    path = write(tmp_path, rows)
    path.write_bytes(path.read_bytes()[:-2000])
    corpus(tmp_path)
    opened = open_corpus(
        CorpusConfig(kind="plain", passages=path, questions=tmp_path / "questions.jsonl", on_error="skip")
    )
    assert 0 < len(list(opened.passages())) < 30000
    assert "broken or cut off" in opened.skipped[-1].reason


def test_a_file_that_is_no_parquet_is_a_data_error(tmp_path: Path) -> None:
    corpus(tmp_path)
    path = tmp_path / "p.parquet"
    path.write_bytes(b"PAR1 and no more")
    config = CorpusConfig(kind="plain", passages=path, questions=tmp_path / "questions.jsonl")
    with pytest.raises(DataError, match=r"p\.parquet, record 1: not readable as Parquet"):
        list(open_corpus(config).passages())


@pytest.mark.parametrize("field", ["passages", "questions"])
def test_a_missing_file_is_named_with_its_setting_at_opening(tmp_path: Path, field: str) -> None:
    corpus(tmp_path)
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("passages", "questions")}
    paths[field] = tmp_path / "nowhere.jsonl"
    with pytest.raises(DataError, match=rf"nowhere\.jsonl: no such file: correct corpus\.{field}"):
        open_corpus(CorpusConfig(kind="plain", **paths))


def test_a_folder_without_data_files_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data files in this folder"):
        open_corpus(CorpusConfig(kind="plain", passages=tmp_path / "empty", questions=tmp_path / "empty"))


def test_a_corpus_without_a_passage_and_one_without_a_question_are_data_errors(tmp_path: Path) -> None:
    opened = corpus(tmp_path, passages="", questions="\n")
    with pytest.raises(DataError, match=r"passages\.jsonl: no passage in it: the corpus is empty"):
        list(opened.passages())
    with pytest.raises(DataError, match=r"questions\.jsonl: no question in it"):
        list(opened.questions())


def test_skipping_every_record_is_an_empty_corpus_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"the corpus is empty \(1 records left out, the first: not valid JSON"
    ):
        list(corpus(tmp_path, passages="nothing\n", on_error="skip").passages())


def test_the_miniature_corpus_is_its_worlds_and_its_limit_is_kept() -> None:
    opened = open_corpus(CorpusConfig.model_validate({"limit": 3, "miniature": {"worlds": 2}}))
    passages = list(opened.passages())
    assert len(list(opened.questions())) == 3
    assert opened.fingerprint() == passages_fingerprint(passages)
    known = {passage.id for passage in passages}
    assert all(known.issuperset(question.gold_ids) for question in opened.questions())
