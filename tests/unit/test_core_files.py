"""Atomic writes with checksums, folder locks, and fingerprints of everything a file holds."""

import errno
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from steper_ray.config import Config
from steper_ray.config.file import ConfigError, load_config
from steper_ray.core.files import (
    TEMPORARY,
    file_sha256,
    locked,
    read_table,
    remove_unfinished,
    write_table,
    write_text,
)
from steper_ray.core.fingerprints import file_fingerprint, folder_fingerprint
from steper_ray.errors import DataError, LockedError, StorageError

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
        with pytest.raises(DataError, match=r"a\.parquet: not what was written"):
            read_table(path, sha256)
        flip(path, at)
    flip(path, size // 3)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read"):
        read_table(path)


def test_a_lock_names_its_holder_and_is_gone_with_it(tmp_path):
    script = (
        "import sys; from pathlib import Path; from steper_ray.core.files import locked\n"
        "with locked(Path(sys.argv[1]), 'build'): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        held_by = rf"another build is at work here: host .*, process {other.pid}, for "
        with pytest.raises(LockedError, match=held_by), locked(tmp_path, "build"):
            pass
        with locked(tmp_path, "evaluation"):
            pass
        other.kill()
    with locked(tmp_path, "build"):
        pass


def test_a_fingerprint_sees_one_byte_in_the_middle_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    weights = model / "model.safetensors"
    weights.write_bytes(bytes(3 << 20))
    first, folder = file_fingerprint(weights), folder_fingerprint(model)
    assert first == file_sha256(weights)
    flip(weights, weights.stat().st_size // 2)
    os.utime(weights, ns=(1, 1))
    assert file_fingerprint(weights) == file_sha256(weights) != first
    assert folder_fingerprint(model) != folder


@pytest.mark.parametrize(
    "field", ["run_dir", "corpus.questions", "retrieval.index_dir", "train.validation.trajectories"]
)
def test_a_url_in_place_of_a_path_is_refused_and_not_taken_for_a_folder(field):
    with pytest.raises(ConfigError, match=r"is a URL.*mount"):
        load_config(None, [f"{field}=s3://bucket/x"])
    Config(run_dir="runs/a:b")
