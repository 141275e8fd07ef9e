"""Files and folders of an object store: whole or not there, copied to a node once, and a store that fails."""

import json
import logging
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from steper_ray.config import Config
from steper_ray.config.file import ConfigError, load_config
from steper_ray.core import copies, store_path
from steper_ray.core.copies import local, local_name, origin
from steper_ray.core.errors import DataError, LockedError, StorageError
from steper_ray.core.files import (
    append_text,
    copy_file,
    new_folder,
    read_many,
    read_table,
    remove_folder,
    replace_folder,
    write_file,
    write_table,
    write_text,
)
from steper_ray.core.fingerprints import file_fingerprint, folder_fingerprint
from steper_ray.core.locks import locked
from steper_ray.core.storage import as_path, place
from steper_ray.core.sums import sums_damage, write_sums


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path):
    return tmp_path / "run" if request.param == "disk" else request.getfixturevalue("bucket_folder")


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def filled(folder, **files):
    with new_folder(folder) as fresh:
        for name, text in files.items():
            (fresh / name).write_text(text)
        write_sums(fresh)


def test_files_are_written_read_added_to_and_copied(folder, tmp_path):
    file = folder / "a" / "b.txt"
    assert not file.exists()
    write_text(file, "one\n\u2028")
    append_text(file, "two\n")
    assert file.read_text(encoding="utf-8") == "one\n\u2028two\n"
    with file.open(encoding="utf-8") as lines:
        assert [*lines] == ["one\n", "\u2028two\n"]
    copy_file(file, folder / "c.txt")
    write_file(tmp_path / "here.txt", lambda fresh: fresh.write_text("here"))
    copy_file(tmp_path / "here.txt", folder / "a" / "here.txt")
    assert names(folder) == ["a/b.txt", "a/here.txt", "c.txt"]
    assert sorted(path.name for path in folder.glob("*/*.txt")) == ["b.txt", "here.txt"]
    assert file_fingerprint(folder / "c.txt") == file_fingerprint(file)
    remove_folder(folder / "a")
    remove_folder(folder / "a")
    assert names(folder) == ["c.txt"]
    (folder / "c.txt").unlink()
    (folder / "c.txt").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (folder / "c.txt").read_text(encoding="utf-8")


def test_a_table_is_verified(folder):
    table = pa.table({"n": list(range(1000))})
    sha256 = write_table(folder / "t.parquet", table)
    assert read_table(folder / "t.parquet", sha256).equals(table)
    write_text(folder / "t.parquet", "other")
    with pytest.raises(DataError, match=r"t\.parquet: changed since it was written"):
        read_table(folder / "t.parquet", sha256)


def test_a_new_folder_takes_the_place_of_the_old_one_and_is_believed_by_its_sums(folder):
    filled(folder / "m", a="1", b="2")
    first = folder_fingerprint(folder / "m")
    assert sums_damage(folder / "m") is None
    filled(folder / "m", a="1", c="3")
    assert names(folder / "m") == ["SHA256SUMS", "a", "c"]
    assert sums_damage(folder / "m") is None
    assert folder_fingerprint(folder / "m") != first
    write_text(folder / "m" / "a", "2")
    assert sums_damage(folder / "m") == "a was changed since it was written (SHA-256)"
    (folder / "m" / "SHA256SUMS").unlink()
    assert sums_damage(folder / "m") == "SHA256SUMS is missing"


def test_a_block_that_fails_leaves_the_folder_as_it_was(folder):
    filled(folder / "m", a="1")

    def fill():
        with new_folder(folder / "m") as fresh:
            (fresh / "a").write_text("2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill()
    assert sums_damage(folder / "m") is None
    assert (folder / "m" / "a").read_text() == "1"


def test_a_folder_is_renamed_over_another(folder):
    write_text(folder / "kept" / "old.parquet", "old")
    write_text(folder / "kept.writing" / "x" / "new.parquet", "new")
    replace_folder(folder / "kept.writing", folder / "kept")
    assert names(folder) == ["kept/x/new.parquet"]


def test_a_folder_whose_upload_is_cut_off_is_not_taken_for_whole(bucket_folder, monkeypatch):
    """What says that it is whole comes last, and goes first."""
    filled(bucket_folder / "m", a="1", b="2")
    plain, _ = place(bucket_folder)
    put = plain._fs.put

    def cut_off(sources, targets, **_):
        put(sources[:1], targets[:1])
        raise OSError("cut off")

    monkeypatch.setattr(store_path, "_WAITS_S", ())
    monkeypatch.setattr(plain._fs, "put", cut_off)
    with pytest.raises(StorageError, match="cut off"):
        filled(bucket_folder / "m", a="3", b="4")
    assert sums_damage(bucket_folder / "m") == "SHA256SUMS is missing"


def test_what_lies_in_a_store_is_copied_to_a_node_once_by_its_own_name(bucket_folder):
    filled(bucket_folder / "model", **{"config.json": "{}"})
    write_text(bucket_folder / "model" / "sub" / "x.txt", "x")
    copy = local(bucket_folder / "model")
    assert copy.name == "model"
    assert names(copy) == ["SHA256SUMS", "config.json", "sub/x.txt"]
    made = (copy / "config.json").stat().st_ino
    assert local_name(str(bucket_folder / "model")) == str(copy)
    assert (local(bucket_folder / "model") / "config.json").stat().st_ino == made
    assert origin(copy / "config.json") == f"{bucket_folder}/model/config.json"
    assert local(bucket_folder / "model" / "config.json").read_text() == "{}"
    write_text(bucket_folder / "model" / "config.json", "{1}")
    assert (local(bucket_folder / "model") / "config.json").read_text() == "{1}"
    assert local(copy) == copy
    assert local_name("organisation/model") == "organisation/model"
    with pytest.raises(FileNotFoundError):
        local(bucket_folder / "none")


def test_copies_that_were_not_used_lately_make_room(bucket_folder, monkeypatch):
    monkeypatch.setenv("STEPER_CACHE_GB", "3e-6")
    for name in "abcd":
        write_text(bucket_folder / name, name * 1000)
    first, second = local(bucket_folder / "a"), local(bucket_folder / "b")
    local(bucket_folder / "c")
    local(bucket_folder / "d")
    assert first.exists()  # it may be about to be opened
    monkeypatch.setattr(copies, "_IN_USE_S", -1.0)
    for age, copy in enumerate((first, second)):
        copies.os.utime(copy.parent, (age, age))
    write_text(bucket_folder / "e", "e" * 1000)
    assert local(bucket_folder / "e").read_text() == "e" * 1000
    assert (first.exists(), second.exists()) == (False, False)
    assert local(bucket_folder / "a").read_text() == "a" * 1000


def test_what_a_killed_process_wrote_here_before_a_store_got_it_is_removed(
    bucket_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    call = "from steper_ray.core.copies import scratch; scratch('x').write_text('x')"
    code = f"import os; {call}; os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)})
    assert len([*tmp_path.glob("steper-scratch-*/x")]) == 1
    write_file(bucket_folder / "y", lambda fresh: fresh.write_text("y"))
    assert [*tmp_path.glob("steper-scratch-*")] == []
    assert (bucket_folder / "y").read_text() == "y"


def test_a_missing_file_of_many_is_none_though_the_store_failed_when_it_was_asked_first(
    bucket_folder, monkeypatch
):
    write_text(bucket_folder / "a", "x")
    plain, _ = place(bucket_folder)
    monkeypatch.setattr(plain._fs, "cat", lambda names, **_: {name: OSError("SlowDown") for name in names})
    assert read_many([bucket_folder / "a", bucket_folder / "none"]) == [b"x", None]


def test_a_store_that_fails_is_asked_again_and_then_named_in_one_line(bucket_folder, monkeypatch, caplog):
    write_text(bucket_folder / "a", "x")
    calls = []

    def failing(times, error):
        def cat_file(path, **_):
            calls.append(path)
            if len(calls) <= times:
                raise error
            return b"x"

        return cat_file

    plain, _ = place(bucket_folder)
    monkeypatch.setattr(store_path, "_WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(plain._fs, "cat_file", failing(2, OSError("SlowDown:\nreduce your rate")))
    with caplog.at_level(logging.WARNING):
        assert (bucket_folder / "a").read_text() == "x"
    assert [message.split(": ")[0] for message in caplog.messages] == [f"{bucket_folder}/a"] * 2
    calls.clear()
    monkeypatch.setattr(plain._fs, "cat_file", failing(9, OSError("SlowDown:\nreduce your rate")))
    with pytest.raises(
        StorageError, match=r"/a: the store fails: SlowDown: reduce your rate\. Check"
    ) as raised:
        (bucket_folder / "a").read_text()
    assert "\n" not in str(raised.value)
    assert len(calls) == 3
    for error, said in (
        (PermissionError("Access Denied"), "refuses access: Access Denied"),
        (RuntimeError("Unable to locate credentials"), "refuses access: Unable to locate credentials"),
    ):
        calls.clear()
        monkeypatch.setattr(plain._fs, "cat_file", failing(9, error))
        with pytest.raises(StorageError, match=said):
            (bucket_folder / "a").read_text()
        assert len(calls) == 1


def test_a_bucket_that_is_not_there_is_named(bucket_folder):
    with pytest.raises(StorageError, match=r"s3://no-such-bucket-here.*bucket does not exist"):
        write_table(as_path("s3://no-such-bucket-here/a.parquet"), pa.table({"n": [1]}))
    with pytest.raises(StorageError, match=r"s3://no-such-bucket-here.*bucket does not exist"):
        write_text(as_path("s3://no-such-bucket-here/a.txt"), "a")


@pytest.mark.parametrize(
    "field", ["run_dir", "corpus.questions", "retrieval.index_dir", "train.validation.trajectories"]
)
def test_a_setting_may_name_a_place_in_a_store_and_is_written_as_it_was(field, bucket):
    value = config = load_config(None, [f"{field}={bucket}/x"])
    for part in field.split("."):
        value = getattr(value, part)
    assert str(value) == f"{bucket}/x"
    assert (value / "y").name == "y"
    assert Config.model_validate(json.loads(config.model_dump_json())) == config
    assert f"{bucket}/x" in config.dump()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ftp://host/x", "ftp:// is not known: give a path, s3://, gs://"),
        ("gs://bucket/x", r"needs gcsfs: pip install 'steper-ray\[gs\]'"),
        ("s3:/bucket/x", "not a URL: write s3://bucket/x"),
        ("s3://", "names no bucket"),
    ],
)
def test_a_place_that_no_store_has_is_refused_by_its_setting(name, said):
    with pytest.raises(ConfigError, match=f"run_dir: .*{said}"):
        load_config(None, [f"run_dir={name}"])
    Config(run_dir="runs/a:b")


def test_whatever_requests_are_refused_answered_half_or_done_without_an_answer_nothing_is_lost(
    bucket_folder, store_weather, monkeypatch
):
    monkeypatch.setattr(store_path, "_WAITS_S", (0.0,) * 4)
    table = pa.table({"n": list(range(5000))})
    store_weather.begin(0.3, seed=0)
    filled(bucket_folder / "m", a="1", b="2" * 5000)
    filled(bucket_folder / "m", a="3" * 5000, c="4")
    sha256 = write_table(bucket_folder / "writing" / "t.parquet", table)
    write_text(bucket_folder / "kept" / "old.txt", "old")
    replace_folder(bucket_folder / "writing", bucket_folder / "kept")
    with locked(bucket_folder, "build"), pytest.raises(LockedError), locked(bucket_folder, "build"):
        pass
    texts = [bucket_folder / "texts" / str(number) for number in range(20)]
    for number, path in enumerate(texts):
        write_text(path, str(number))
    assert read_many([*texts, bucket_folder / "none"]) == [*(str(n).encode() for n in range(20)), None]
    assert read_table(bucket_folder / "kept" / "t.parquet", sha256).equals(table)
    assert sums_damage(bucket_folder / "m") is None
    assert names(local(bucket_folder / "m")) == ["SHA256SUMS", "a", "c"]
    remove_folder(bucket_folder / "texts")
    assert names(bucket_folder) == ["kept/t.parquet", "m/SHA256SUMS", "m/a", "m/c"]
    assert store_weather.faults.keys() == {"refused", "half", "lost"}
