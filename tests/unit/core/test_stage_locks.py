"""Locks on a stage of a run_dir, on a file system and in a store."""

import errno
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from waiting import wait_until

from steper_ray.core import locks
from steper_ray.core.errors import LockedError, StorageError
from steper_ray.core.locks import locked

HOLD = (
    "import sys; from steper_ray.core.storage import as_path; from steper_ray.core.locks import locked\n"
    "with locked(as_path(sys.argv[1]), 'build'): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path):
    return tmp_path if request.param == "disk" else request.getfixturevalue("bucket_folder")


def test_a_lock_names_its_holder_and_is_gone_with_it(folder, monkeypatch):
    waits = []
    command = [sys.executable, "-c", HOLD, str(folder)]
    monkeypatch.setattr(locks, "_LOOK_S", 0.01)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        held_by = rf"another build is at work here: host .*, process {other.pid}, "
        with pytest.raises(LockedError, match=held_by), locked(folder, "build"):
            pass
        with locked(folder, "evaluation"):
            pass
        monkeypatch.setattr(
            locks.logger, "warning", lambda *said: waits.append(said) or (other.kill(), other.wait())
        )
        with locked(folder, "build", wait=True):
            assert len(waits) == 1
    with locked(folder, "build"):
        pass


def test_a_file_system_without_locks_is_one_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path, "build"):
        pass
    assert caplog.messages == [
        f"{tmp_path} cannot be locked ([Errno {errno.ENOLCK}] No locks available): start no second build here"
    ]


@pytest.fixture
def elsewhere(bucket_folder, monkeypatch):
    """Holds `build` in a store as a process of another machine does that is then gone."""
    monkeypatch.setattr(locks, "_boot", lambda: "another machine")
    ended, held = threading.Event(), threading.Event()

    def hold():
        with locked(bucket_folder, "build"):
            held.set()
            ended.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    monkeypatch.undo()
    yield bucket_folder
    ended.set()
    thread.join()


def taken_at_once(folder, takers=6):
    """What so many get who want the lock at the same moment."""
    ready = threading.Barrier(takers)

    def take(_):
        ready.wait()
        return locks._take(folder / ".locks", "build")

    with ThreadPoolExecutor(takers) as pool:
        return [*pool.map(take, range(takers))]


def test_of_many_who_come_at_once_one_has_the_lock(bucket_folder):
    found = taken_at_once(bucket_folder)
    assert sum(not isinstance(one, str) for one in found) == 1


def test_a_lock_whose_holder_shows_no_life_is_taken_by_one_alone(elsewhere, monkeypatch):
    with pytest.raises(LockedError, match=r"seen . s ago .if it was killed, its lock ends 90 s after that"):
        locked(elsewhere, "build").__enter__()
    monkeypatch.setattr(locks, "_DEAD_S", -1.0)
    numbers = locks._numbered(elsewhere / ".locks", "build")
    monkeypatch.setattr(locks, "_numbered", lambda *_: numbers)  # what all of them saw
    found = taken_at_once(elsewhere)
    assert sum(not isinstance(one, str) for one in found) == 1


def test_a_lock_in_a_store_lives_as_long_as_its_holder_writes_it(bucket_folder, monkeypatch, caplog):
    monkeypatch.setattr(locks, "_BEAT_S", 0.01)
    with locked(bucket_folder, "build"):
        (file,) = locks._numbered(bucket_folder / ".locks", "build").values()
        file.unlink()
        wait_until(file.exists, "the lock's file", every=0.01)

        def fail(*_, **__):
            raise StorageError("no store")

        monkeypatch.setattr(locks, "place", lambda _: (type("", (), {"pipe_file": fail}), ""))
        wait_until(lambda: caplog.messages, "a warning", every=0.01)
        monkeypatch.undo()
    assert caplog.messages == [f"{file}: the lock cannot be renewed: no store"]
    assert not file.exists()
