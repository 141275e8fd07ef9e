"""A corpus made ready for rollouts: read once, and again only where it changed."""

import dataclasses
import json
import os

import pytest

from steper_ray.config.file import load_config
from steper_ray.core.errors import DataError
from steper_ray.core.tasks import in_order
from steper_ray.corpora.corpus import Corpus
from steper_ray.corpora.miniature import make_corpus
from steper_ray.rollouts.sources import open_source
from steper_ray.schema import to_row

PASSAGES, QUESTIONS = make_corpus(5, 1, 6, "train")


@pytest.fixture
def settle(tmp_path, monkeypatch):
    """Opens the corpus of these questions; its files are a minute old, as files mostly are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("steper_ray.core.fingerprints._SETTLED_NS", 0)

    def write(name, rows):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(row if isinstance(row, str) else json.dumps(to_row(row)) + "\n" for row in rows)
        )
        os.utime(path, ns=(10**18, 10**18))
        return f"corpus.{name}={path}"

    def open_it(questions=QUESTIONS, *overrides, asked=None, size=4):
        files = [write("passages", PASSAGES), write("questions", questions)]
        config = load_config(None, ["corpus.kind=plain", *files, *overrides])
        return lambda: open_source(config.corpus, config.retrieval, tmp_path / "run", size, questions=asked)

    return open_it


def test_the_questions_and_the_index_are_there_and_a_second_call_reads_neither(settle, monkeypatch):
    call = settle()
    first = call()
    assert list(first.questions) == QUESTIONS
    assert (first.index / "manifest.json").is_file()

    def read(*_):
        raise AssertionError("read again")
        yield

    monkeypatch.setattr(Corpus, "passages", read)
    monkeypatch.setattr(Corpus, "questions", read)
    assert call() == first


def test_other_questions_a_limit_and_another_shard_size_are_other_files(settle):
    changed = [dataclasses.replace(QUESTIONS[0], answers=("Zed",)), *QUESTIONS[1:]]
    ways = [(QUESTIONS,), (QUESTIONS, "corpus.limit=3"), (changed,)]
    paths = {settle(*way)().questions.path for way in ways} | {settle(size=2)().questions.path}
    assert len(paths) == 4


def test_the_records_that_were_left_out_are_counted_and_named_also_where_nothing_is_read(settle, tmp_path):
    call = settle([*QUESTIONS, "{not json\n"], "corpus.on_error=skip")
    assert [call().questions.skipped for _ in range(2)] == [1, 1]
    (file,) = (tmp_path / "run" / "questions").glob("skipped-*.jsonl")
    (row,) = map(json.loads, file.read_text().splitlines())
    assert (row["file"], row["record"]) == (str(tmp_path / "questions.jsonl"), "line 7")
    assert row["reason"].startswith("not valid JSON")


def test_questions_of_a_caller_take_the_place_of_the_corpus_own(settle):
    asked = QUESTIONS[2:4]
    assert list(settle(asked=asked)().questions) == asked


def test_long_passages_are_counted(settle):
    source = settle()()
    assert source.long_passages(10**6, "cut") == ""
    assert f"of {len(PASSAGES)}" in source.long_passages(20, "cut")


def test_without_ray_a_function_runs_here_in_order_and_raises_its_own_errors():
    assert list(in_order(lambda n: n * n, range(5))) == [0, 1, 4, 9, 16]

    def fails(n):
        raise DataError(f"item {n}")

    with pytest.raises(DataError, match="item 0"):
        list(in_order(fails, range(3)))
