"""Atomic writes with checksums, and fingerprints of everything a file holds."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from steper_ray.core import fingerprints
from steper_ray.core.errors import DataError, StorageError
from steper_ray.core.files import (
    TEMPORARY,
    file_sha256,
    read_table,
    remove_unfinished,
    write_table,
    write_text,
)
from steper_ray.core.fingerprints import file_fingerprint, folder_fingerprint, remembered
from steper_ray.core.sums import sums_damage, write_sums

TABLE = pa.table({"n": list(range(50_000))})


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_write_that_fails_leaves_the_old_file_and_says_where_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"^.*No space left on device.*run_dir[^\n]*$") as caught:
        write_text(path, "new")
    assert str(tmp_path) in str(caught.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / f"{TEMPORARY}1-a").touch()
    (tmp_path / "a").touch()
    remove_unfinished(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_every_flipped_bit_of_a_table_is_named_with_its_checksum_known_and_any_of_its_data_without(tmp_path):
    path = tmp_path / "a.parquet"
    sha256 = write_table(path, TABLE)
    assert read_table(path, sha256).equals(TABLE)
    assert read_table(path).equals(TABLE)
    size = path.stat().st_size
    for at in range(0, size, size // 40):
        flip(path, at)
        with pytest.raises(DataError, match=r"a\.parquet: changed since it was written"):
            read_table(path, sha256)
        flip(path, at)
    flip(path, size // 3)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read"):
        read_table(path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, in which a file may be kept as soon as it was written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", -1)
    monkeypatch.setattr(fingerprints, "_known", {})
    return tmp_path / "cache" / "steper_ray" / "fingerprints"


def test_a_fingerprint_sees_one_byte_in_the_middle_of_a_large_file_whose_times_were_set_back(tmp_path, cache):
    model = tmp_path / "model"
    model.mkdir()
    weights = model / "model.safetensors"
    weights.write_bytes(bytes(3 << 20))
    first, folder = file_fingerprint(weights), folder_fingerprint(model)
    assert first == file_sha256(weights)
    before = weights.stat()
    flip(weights, before.st_size // 2)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_fingerprint(weights) == file_sha256(weights) != first
    assert folder_fingerprint(model) != folder


def test_what_is_read_from_files_is_read_once_until_one_of_them_or_the_key_changes(
    tmp_path, cache, monkeypatch
):
    files, reads = [tmp_path / "a", tmp_path / "b"], []
    for file in files:
        file.write_text(file.name)

    def read():
        reads.append("".join(file.read_text() for file in files))
        return reads[-1]

    def ask(key="key", *, another_process=False):
        if another_process:
            monkeypatch.setattr(fingerprints, "_known", {})
        return remembered(key, read, files)

    assert [ask(), ask(), ask(another_process=True)] == ["ab"] * 3
    assert reads == ["ab"]
    for kept in cache.iterdir():  # a damaged cache is not believed
        kept.write_text(kept.read_text().replace("ab", "aa"))
    assert ask(another_process=True) == "ab"
    assert ask("other key") == "ab"
    files[1].write_text("c")
    assert [ask(), ask(another_process=True)] == ["ac"] * 2
    assert reads == ["ab", "ab", "ab", "ac"]
    cache.parent.rename(tmp_path / "elsewhere")
    cache.parent.write_text("no folder can be made here")
    assert [ask("new"), ask("new")] == ["ac"] * 2
    assert reads == ["ab", "ab", "ab", "ac", "ac"]

    def homeless(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert [ask("newer"), ask("newer")] == ["ac"] * 2
    assert len(reads) == 6


def test_a_file_that_changed_just_now_or_while_it_was_read_is_read_again(tmp_path, cache, monkeypatch):
    file, reads = tmp_path / "a", []
    file.write_text("a")

    def read():
        reads.append(file.read_text())
        file.write_text(file.read_text() + "a")
        return reads[-1]

    assert [remembered("key", read, [file]) for _ in range(2)] == ["a", "aa"]
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", 10**15)
    assert [remembered("key", lambda: reads.append(0) or "x", [file]) for _ in range(2)] == ["x"] * 2
    assert reads[2:] == [0, 0]


def test_sums_are_those_of_sha256sum_and_name_every_flipped_cut_missing_and_unlisted_file(tmp_path):
    for name in ("config.json", "model.safetensors", "README.md", "chat/default.jinja"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(os.urandom(3000))
    write_sums(tmp_path)
    assert sums_damage(tmp_path) is None
    told = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True)
    assert (told.returncode, told.stdout.count(": OK")) == (0, 4)
    weights, sums = tmp_path / "model.safetensors", tmp_path / "SHA256SUMS"
    for at in range(0, 3000, 75):
        flip(weights, at)
        assert sums_damage(tmp_path) == "model.safetensors was changed since it was written (SHA-256)"
        flip(weights, at)
    for at in range(sums.stat().st_size):
        flip(sums, at)
        card = b"README.md" in sums.read_bytes().split(b"\n")[0] and at < 64  # an edited card is no damage
        assert card or sums_damage(tmp_path) is not None, at
        flip(sums, at)
    (tmp_path / "README.md").write_text("edited")
    assert sums_damage(tmp_path) is None
    (tmp_path / "chat_template.jinja").touch()
    assert sums_damage(tmp_path) == "chat_template.jinja is not listed in SHA256SUMS"
    weights.unlink()
    assert sums_damage(tmp_path) == "model.safetensors is missing"
    sums.write_text("")
    assert sums_damage(tmp_path) == "SHA256SUMS cannot be read"


def test_reading_a_table_starts_no_thread(tmp_path):
    """One of pyarrow's pool can abort the process as it ends."""
    sha256 = write_table(tmp_path / "t.parquet", pa.table({name: range(9) for name in "abcdefgh"}))
    code = (
        "import psutil, sys; from pathlib import Path; from steper_ray.core.files import read_table\n"
        "def read(): return [read_table(Path(sys.argv[1]), one).num_rows for one in (None, sys.argv[2])]\n"
        "before = psutil.Process().num_threads(); print(read(), psutil.Process().num_threads() - before)"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "t.parquet"), sha256]
    assert subprocess.run(call, capture_output=True, text=True).stdout == "[9, 9] 0\n"
