"""Checkpoints are atomic and the last N are kept: the files alone, without a model."""

import json
import logging
import os
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from steper_ray.core.errors import TrainingError
from steper_ray.training.checkpoints import Checkpoints, Saver, newest

FINGERPRINT = "a" * 64


@pytest.fixture(autouse=True)
def local_disk(tmp_path, monkeypatch):
    folder = tmp_path / "local"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store\u2028of two lines"  # a path may hold what ends a line elsewhere
    (folder / "group").mkdir(parents=True)
    return folder


def checkpoints_of(store, group="group", fingerprint=FINGERPRINT, name="student"):
    return Checkpoints(store, store / group, name, fingerprint)


def alone(message):
    """What one worker agrees on."""
    return message


def write_shard(rank=0):
    def write(folder):
        (folder / "state").mkdir()
        (folder / "state" / f"shard-{rank}.bin").write_bytes(f"shard of {rank}".encode() * 1000)
        (folder / "latest").write_text("state")

    return write


def put(checkpoints, tmp_path, step, workers=2, ranks=None):
    """A checkpoint, sealed by `ranks` of its workers."""
    for rank in range(workers) if ranks is None else ranks:
        local = tmp_path / f"shard-{step}-{rank}"
        local.mkdir()
        write_shard(rank)(local)
        checkpoints.put(local, step, rank, workers)
    return checkpoints.folder(step)


def test_the_newest_checkpoint_that_every_worker_sealed_is_taken(store, tmp_path):
    checkpoints = checkpoints_of(store)
    put(checkpoints, tmp_path, 4)
    whole = put(checkpoints, tmp_path, 8)
    put(checkpoints, tmp_path, 12, ranks=[0])
    put(checkpoints, tmp_path, 16, ranks=[1])
    taken = newest(checkpoints, 0, 1, alone)
    assert (taken.folder, taken.step, taken.workers) == (whole, 8, 2)
    assert {"state/shard-0.bin", "state/shard-1.bin", "latest"} == set(taken.files)


def test_no_checkpoint_is_a_training_from_the_start(store):
    assert newest(checkpoints_of(store), 0, 1, alone) is None


def test_a_seal_that_was_cut_off_is_none(store, tmp_path):
    checkpoints = checkpoints_of(store)
    seal = put(checkpoints, tmp_path, 4) / "seal-1.json"
    seal.write_text(seal.read_text()[:40])
    assert checkpoints.stored() == []


def test_a_worker_that_dies_while_it_copies_leaves_no_checkpoint(store, tmp_path, monkeypatch):
    checkpoints, copy = checkpoints_of(store), shutil.copyfile

    class Killed(BaseException):
        pass

    def copies_one(source, target):
        copy(source, target)
        if source.name != "latest":
            raise Killed

    monkeypatch.setattr(shutil, "copyfile", copies_one)
    with pytest.raises(Killed):
        put(checkpoints, tmp_path, 4, workers=1)
    assert (checkpoints.folder(4) / "state" / "shard-0.bin").exists()
    assert checkpoints.stored() == []


def truncate(file):
    os.truncate(file, file.stat().st_size - 1)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate, r"shard-1.bin has 9999 bytes instead of 10000"),
        (flip, r"shard-1.bin was changed since it was written \(SHA-256\)"),
        (lambda file: file.unlink(), r"shard-1.bin is missing"),
    ],
    ids=["truncated", "changed", "missing"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(store, tmp_path, caplog, spoil, said):
    checkpoints = checkpoints_of(store)
    before, damaged = put(checkpoints, tmp_path, 4), put(checkpoints, tmp_path, 8)
    spoil(damaged / "state" / "shard-1.bin")
    with caplog.at_level(logging.WARNING):
        assert newest(checkpoints, 0, 1, alone).folder == before
    assert f"a checkpoint is damaged: {damaged}: state/shard-1.bin" in caplog.text
    shutil.rmtree(before)
    with pytest.raises(TrainingError, match=rf"{said}. No other is left: restore the file, or delete"):
        newest(checkpoints, 0, 1, alone)


def test_workers_share_the_reading_and_come_to_the_same_answer(store, tmp_path):
    checkpoints = checkpoints_of(store)
    before, damaged = put(checkpoints, tmp_path, 4), put(checkpoints, tmp_path, 8)
    for worker in range(2):  # the files lie sorted, and each worker reads every second one
        spoiled = damaged / sorted(newest_files(checkpoints))[worker]
        kept = spoiled.read_bytes()
        flip(spoiled)
        assert set(together(lambda rank, agree: newest(checkpoints, rank, 2, agree).folder)) == {before}
        spoiled.write_bytes(kept)
    assert set(together(lambda rank, agree: newest(checkpoints, rank, 2, agree).folder)) == {damaged}


def newest_files(checkpoints):
    return checkpoints.stored()[0].files


def together(work, workers=2):
    """`work(rank, agree)` on threads that agree as the workers of a training do."""
    said, barrier = [None] * workers, threading.Barrier(workers, timeout=30)

    def agree_of(rank):
        def agree(message):
            said[rank] = message
            barrier.wait()
            first = next((m for m in said if m is not None), None)
            barrier.wait()
            return first

        return agree

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda rank: work(rank, agree_of(rank)), range(workers)))


def test_another_training_has_no_part_in_them(store, tmp_path):
    put(checkpoints_of(store), tmp_path, 4)
    assert newest(checkpoints_of(store, fingerprint="b" * 64), 0, 1, alone) is None
    assert newest(checkpoints_of(store, fingerprint="a" * 12 + "b" * 52), 0, 1, alone) is None
    assert newest(checkpoints_of(store, name="stud*"), 0, 1, alone) is None


def test_the_same_job_beside_other_jobs_finds_what_it_had_reached(store, tmp_path):
    put(checkpoints_of(store), tmp_path, 4)
    (store / "with others").mkdir()
    assert newest(checkpoints_of(store, "with others"), 0, 1, alone).step == 4


def test_a_checkpoint_of_another_version_is_refused_by_name(store, tmp_path):
    checkpoints = checkpoints_of(store)
    seal = put(checkpoints, tmp_path, 4) / "seal-0.json"
    seal.write_text(json.dumps(json.loads(seal.read_text()) | {"format": 0}))
    with pytest.raises(
        TrainingError, match=r"student-a+-00000004: a checkpoint of another version of steper"
    ):
        newest(checkpoints, 0, 1, alone)


def steps_in(store):
    return {int(folder.name[-8:]) for folder in (store / "group").glob("student*")}


def test_pruning_keeps_the_newest_and_the_one_under_way(store, tmp_path):
    checkpoints = checkpoints_of(store)
    for step in (4, 8, 12):
        put(checkpoints, tmp_path, step)
    put(checkpoints, tmp_path, 16, ranks=[1])
    other = put(checkpoints_of(store, name="other"), tmp_path, 2)
    checkpoints.prune(2)
    assert steps_in(store) == {8, 12, 16}
    assert other.exists()


def test_what_lies_beyond_the_checkpoint_that_is_gone_on_from_makes_room(store, tmp_path):
    """Kept as the newest, a damaged one would outlive the good ones that are made after it."""
    checkpoints = checkpoints_of(store)
    for step in (4, 8, 12):
        put(checkpoints, tmp_path, step)
    put(checkpoints, tmp_path, 6, ranks=[1])
    put(checkpoints, tmp_path, 16, ranks=[0])
    other = put(checkpoints_of(store, name="other"), tmp_path, 20)
    flip(checkpoints.folder(12) / "state" / "shard-0.bin")
    checkpoints.clear_beyond(newest(checkpoints, 0, 1, alone).step)
    assert steps_in(store) == {4, 8}
    assert other.exists()


def saver_of(checkpoints, told, *, keep=2, rank=0, workers=1, agree=alone):
    return Saver(checkpoints, rank, workers, keep, agree, lambda folder, step: told.append((folder, step)))


def test_saving_leaves_so_many_checkpoints_and_nothing_on_the_local_disk(store, local_disk):
    checkpoints, told = checkpoints_of(store), []
    save = saver_of(checkpoints, told)
    for step in range(1, 8):
        save(write_shard(), step)
        assert len(list((store / "group").iterdir())) <= 3  # the two that are kept and the one under way
        assert len(list(local_disk.iterdir())) <= 1
    save.close()
    assert told == [(checkpoints.folder(step), step) for step in range(1, 8)]
    assert [stored.step for stored in checkpoints.stored()] == [7, 6]
    assert len(list((store / "group").iterdir())) == 2
    assert list(local_disk.iterdir()) == []


def test_what_a_killed_worker_left_on_the_local_disk_goes_when_it_starts_again(store, local_disk):
    class Killed(BaseException):
        pass

    def killed(folder):
        (folder / "half").write_text("")
        raise Killed

    with pytest.raises(Killed):
        saver_of(checkpoints_of(store), [])(killed, 4)
    assert len(list(local_disk.iterdir())) == 1
    saver_of(checkpoints_of(store), [])
    assert list(local_disk.iterdir()) == []


def test_a_checkpoint_that_one_worker_cannot_store_stops_all_and_the_one_before_survives(store, tmp_path):
    checkpoints = checkpoints_of(store)
    before, told = put(checkpoints, tmp_path, 4), []

    def work(rank, agree):
        save = saver_of(checkpoints, told, rank=rank, workers=2, agree=agree)
        if rank == 1:
            save._checkpoints = checkpoints_of(store, "gone")  # a node that does not see the store
        save(write_shard(rank), 8)
        with pytest.raises(
            TrainingError, match=r"checkpoint of step 8 cannot be written to .*gone: .*No such"
        ):
            save.finish()

    together(work)
    assert told == []
    assert [stored.folder for stored in checkpoints.stored()] == [before]
    assert list((store / "group").iterdir()) == [before]


def test_a_failure_to_store_after_the_last_step_costs_the_student_nothing(store, caplog):
    save = saver_of(checkpoints_of(store, "gone"), [])
    save(write_shard(), 8)
    save.close()
    assert "the checkpoint of step 8 cannot be written" in caplog.text
