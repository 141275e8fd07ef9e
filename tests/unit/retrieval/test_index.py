"""An index is built whole or not at all, and opened only for the corpus and settings it was built from."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steper_ray.cli.main import app
from steper_ray.config import RetrievalConfig
from steper_ray.core import locks
from steper_ray.core.errors import DataError, RetrievalError
from steper_ray.core.files import TEMPORARY, temporary
from steper_ray.core.fingerprints import passages_fingerprint as fingerprint
from steper_ray.retrieval import (
    LongPassages,
    build_index,
    ensure_index,
    index_folder,
    long_passages,
    open_index,
    read_manifest,
)
from steper_ray.retrieval.store import BATCH_ROWS, PassageStore, write_passages
from steper_ray.schema import Passage

PASSAGES = [Passage("a", "Arvel", "Arvel is a port."), Passage("b", "Bela", "Bela was born in Arvel.")]
OTHER = [*PASSAGES, Passage("c", "Corin", "Corin sings.")]
CONFIG = RetrievalConfig()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "index"


def found(folder: Path, query: str) -> list[str]:
    return [hit.passage.id for hit in open_index(folder, CONFIG).search([query], 5)[0]]


def beside(folder: Path) -> list[str]:
    return [path.name for path in folder.parent.iterdir() if path.name != ".locks"]


def unread() -> Iterator[Passage]:
    """Passages that nobody may ask for."""
    raise AssertionError("the passages were read")
    yield


def test_the_manifest_says_what_the_index_was_built_from(folder: Path) -> None:
    manifest = build_index(iter(PASSAGES), RetrievalConfig(k1=0.9, b=0.4), folder)
    assert [manifest.settings[name] for name in ("kind", "k1", "b")] == ["bm25", 0.9, 0.4]
    assert manifest.passages == 2
    assert manifest.fingerprint == fingerprint(PASSAGES)
    assert manifest.library.startswith("steper_ray bm25 ")
    assert read_manifest(folder) == manifest
    assert beside(folder) == ["index"]


def test_two_builds_of_one_corpus_have_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_index(PASSAGES, CONFIG, tmp_path / name)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two


def test_ensure_builds_what_is_missing_and_reuses_what_is_there(folder: Path) -> None:
    digest = fingerprint(PASSAGES)
    first = ensure_index(iter(PASSAGES), CONFIG, folder, digest)
    again = ensure_index(unread(), CONFIG, folder, digest)
    assert first.search(["Arvel"], 5) == again.search(["Arvel"], 5) != [[]]


def test_a_stale_corpus_is_refused_with_the_fix(folder: Path) -> None:
    build_index(PASSAGES, CONFIG, folder)
    open_index(folder, CONFIG, fingerprint(PASSAGES))
    for refuse in (
        lambda: open_index(folder, CONFIG, fingerprint(OTHER)),
        lambda: ensure_index(unread(), CONFIG, folder, fingerprint(OTHER)),
    ):
        with pytest.raises(RetrievalError, match=r"stale.*build it again.*retrieval\.index_dir"):
            refuse()


def test_an_index_built_from_other_passages_than_promised_is_refused(folder: Path) -> None:
    with pytest.raises(RetrievalError, match="stale"):
        ensure_index(PASSAGES, CONFIG, folder, fingerprint(OTHER))


OTHERS = [("k1", 0.9), ("b", 0.4), ("kind", "lucene"), ("title_weight", 3), ("language", "german")]


@pytest.mark.parametrize(("field", "value"), OTHERS)
def test_other_settings_are_refused_by_name(folder: Path, field: str, value: object) -> None:
    build_index(PASSAGES, CONFIG, folder)
    with pytest.raises(
        RetrievalError, match=rf"built with retrieval\.{field} .*, asked for {value}.*build it again"
    ):
        open_index(folder, RetrievalConfig.model_validate({field: value}))


def test_a_missing_index_is_refused_with_the_fix(folder: Path) -> None:
    with pytest.raises(RetrievalError, match=r"no index here: build one \(`steper index`\)"):
        open_index(folder, CONFIG)


def test_a_half_built_index_is_refused_and_not_overwritten(folder: Path) -> None:
    build_index(PASSAGES, CONFIG, folder)
    (folder / "manifest.json").unlink()
    for attempt in (
        lambda: open_index(folder, CONFIG),
        lambda: ensure_index(PASSAGES, CONFIG, folder),
        lambda: build_index(PASSAGES, CONFIG, folder),
    ):
        with pytest.raises(RetrievalError, match=r"delete (it|the folder)"):
            attempt()
    assert (folder / "passages.arrow").is_file()


def in_files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_file())
    assert {"manifest.json", "passages.arrow", "documents.npy", "scores.npy"} < {path.name for path in found}
    return found


def test_every_flipped_bit_of_every_file_is_named_and_reaches_no_search(folder: Path) -> None:
    build_index(OTHER, CONFIG, folder)
    rng = random.Random(0)
    for path in in_files(folder):
        whole = path.read_bytes()
        for at in rng.sample(range(len(whole)), min(len(whole), 40)):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises(RetrievalError, match=rf"{path.name}.*delete the folder and build it again"):
                open_index(folder, CONFIG)
        path.write_bytes(whole)
    assert found(folder, "Corin") == ["c"]


@pytest.mark.parametrize("harm", ["cut", "deleted"])
@pytest.mark.parametrize("part", [(0, 1), (1, 2)])
def test_a_file_that_is_cut_or_gone_is_named_with_the_fix(
    folder: Path, harm: str, part: tuple[int, int]
) -> None:
    build_index(PASSAGES, CONFIG, folder)
    for path in in_files(folder):
        whole = path.read_bytes()
        path.unlink() if harm == "deleted" else path.write_bytes(whole[:-5])
        with pytest.raises(RetrievalError, match=rf"{path.name}.*build it again"):
            open_index(folder, CONFIG, part=part)
        path.write_bytes(whole)


def test_a_damaged_index_of_the_run_is_built_again_with_one_line_and_a_named_one_is_refused(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    build_index(PASSAGES, CONFIG, folder)
    for name in ("terms.npy", "manifest.json"):
        (folder / name).write_text("{")
        with pytest.raises(RetrievalError, match=rf"{name}.*build it again"):
            ensure_index(unread(), RetrievalConfig(index_dir=folder), folder)
        assert caplog.records == []
        retriever = ensure_index(PASSAGES, CONFIG, folder, fingerprint(PASSAGES))
        assert len(retriever.search(["Arvel"], 5)[0]) == 2
        (line,) = caplog.messages
        assert str(folder) in line
        assert name in line
        assert line.endswith("It is built again")
        caplog.clear()
    ensure_index(unread(), CONFIG, folder, fingerprint(PASSAGES))


def test_what_a_killed_build_left_is_removed_by_the_next_one_and_nothing_else(folder: Path) -> None:
    folder.parent.mkdir()
    killed = temporary(folder)
    other = temporary(folder.with_name("other-index"))
    for left in (killed, killed.with_name(f"{killed.name}.old"), other):
        left.mkdir()
        (left / "passages.arrow").touch()
    build_index(PASSAGES, CONFIG, folder)
    assert sorted(beside(folder)) == [other.name, "index"]
    assert other.name.startswith(TEMPORARY)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "not an index manifest"), ('{"a": 1}', "not an index manifest"), (None, "format 99")],
)
def test_a_manifest_that_cannot_be_read_is_refused(folder: Path, text: str | None, reason: str) -> None:
    build_index(PASSAGES, CONFIG, folder)
    path = folder / "manifest.json"
    path.write_text(text or json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(RetrievalError, match=reason):
        open_index(folder, CONFIG)


def test_an_index_is_replaced_by_a_new_build_and_an_open_one_goes_on(folder: Path) -> None:
    build_index(PASSAGES, CONFIG, folder)
    before = open_index(folder, CONFIG)
    build_index(OTHER, CONFIG, folder)
    assert found(folder, "Corin") == ["c"]
    assert before.search(["Corin"], 5) == [[]]
    assert len(before.search(["Arvel"], 5)[0]) == 2
    assert beside(folder) == ["index"]


def test_a_build_that_fails_leaves_the_index_that_was_there(folder: Path) -> None:
    def broken() -> Iterator[Passage]:
        yield from OTHER
        raise DataError("file, line 4: not valid JSON")

    build_index(PASSAGES, CONFIG, folder)
    with pytest.raises(DataError, match="line 4"):
        build_index(broken(), CONFIG, folder)
    assert found(folder, "Arvel") == ["a", "b"]
    assert beside(folder) == ["index"]


def test_who_builds_the_same_index_meanwhile_waits_and_takes_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, answers = threading.Event(), list[object]()
    monkeypatch.setattr(locks.logger, "warning", lambda *_: waits.set())

    def other() -> None:
        try:
            answers.append(ensure_index(unread(), CONFIG, folder).search(["Arvel"], 5))
        except BaseException as error:
            answers.append(error)
        finally:
            waits.set()

    second = threading.Thread(target=other)

    def overtaken() -> Iterator[Passage]:
        second.start()
        assert waits.wait(30)
        yield from PASSAGES

    mine = ensure_index(overtaken(), CONFIG, folder).search(["Arvel"], 5)
    second.join()
    assert answers == [mine] != [[]]
    assert beside(folder) == ["index"]


def test_a_folder_with_other_files_and_a_file_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RetrievalError, match="not replaced"):
        build_index(PASSAGES, CONFIG, tmp_path / "mine")
    with pytest.raises(RetrievalError, match="is a file"):
        build_index(PASSAGES, CONFIG, tmp_path / "file")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_empty_corpus_and_an_id_that_comes_twice_are_data_errors(folder: Path) -> None:
    with pytest.raises(DataError, match="no passages"):
        build_index([], CONFIG, folder)
    with pytest.raises(DataError, match="'a' comes twice"):
        build_index([*PASSAGES, PASSAGES[0]], CONFIG, folder)
    assert beside(folder) == []


def test_a_passage_is_found_by_its_id(tmp_path: Path) -> None:
    passages = [Passage(f"p{n}", "T", f"text {n}") for n in range(BATCH_ROWS + 10)]
    write_passages(passages, tmp_path / "passages.arrow")
    store = PassageStore(tmp_path / "passages.arrow")
    assert [store.by_id(f"p{n}") for n in (0, BATCH_ROWS, BATCH_ROWS + 9)] == [
        passages[n] for n in (0, BATCH_ROWS, BATCH_ROWS + 9)
    ]
    assert store.by_id("none") is None


def test_passages_that_are_longer_than_a_prompt_takes_are_counted_and_the_longest_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steper_ray.retrieval.store.BATCH_ROWS", 2)
    texts = ["\u6771" * 9, "x" * 8, "y" * 30, "z" * 9, ""]
    build_index([Passage(str(n), "T\u00ef", text) for n, text in enumerate(texts)], CONFIG, folder)
    found = long_passages(folder, 10)
    assert found == LongPassages(limit=10, count=3, total=5, id="2", title="T\u00ef", chars=32)
    assert found.summary("cut") == (
        "3 of 5 have more than 10 characters (reasoning.max_passage_chars) and are cut there; "
        "the longest, 'T\u00ef' (id '2'), has 32"
    )
    assert "are left out" in found.summary("leave_out")
    none = long_passages(folder, 32)
    assert none is not None
    assert none.summary("cut") == ""
    assert long_passages(folder.parent, 10) is None  # no index


def test_the_index_command_names_long_passages(tmp_path: Path) -> None:
    overrides = [f"run_dir={tmp_path}", "corpus.miniature.worlds=1", "reasoning.max_passage_chars=5"]
    told = CliRunner().invoke(app, ["index", *overrides]).stdout.splitlines()
    assert [line.partition(": ")[0] for line in told] == ["index", "passages"]
    assert "reasoning.max_passage_chars) and are cut there; the longest, '" in told[1]
    assert len(CliRunner().invoke(app, ["index", *overrides[:-1]]).stdout.splitlines()) == 1


def test_each_setting_has_an_index_folder_of_its_own_in_one_run(tmp_path: Path) -> None:
    settings = [RetrievalConfig(), RetrievalConfig(kind="lucene"), RetrievalConfig(k1=0.9)]
    folders = {index_folder(config, tmp_path, "f" * 64) for config in settings}
    assert len(folders) == 3
    assert all(folder.parent == tmp_path / "index" for folder in folders)
    named = RetrievalConfig(index_dir=tmp_path / "mine")
    assert index_folder(named, tmp_path, "f" * 64) == tmp_path / "mine"
