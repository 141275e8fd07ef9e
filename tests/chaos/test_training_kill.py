"""Whatever process dies at whatever moment of a training, the student is the undisturbed one, to the bit.

The moments are drawn from seeds. STEPER_CHAOS_ROUNDS=20 tries so many seeds of each case instead of one.
"""

import logging
import random
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray
from processes import ROUNDS, Driver, kill
from trainings import EVERY, KEEP, STEPS, Watched, kept_lines, make_student, same_student
from waiting import wait_until

from steper_ray.core.errors import TrainingError
from steper_ray.core.files import copy_file, remove_folder
from steper_ray.training.trainer import train

DRIVER = textwrap.dedent("""
    import sys
    from pathlib import Path
    import ray
    from steper_ray.config import TrainConfig
    from steper_ray.training.trainer import TrainJob, train

    if __name__ == "__main__":
        address, temp, folder, name, config, examples, output = sys.argv[1:]
        ray.init(address=address, log_to_driver=False)
        job = TrainJob(name, TrainConfig.model_validate_json(config), Path(examples), Path(output))
        train([job], run_dir=Path(folder), progress=False)
""")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return make_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def undisturbed(cluster, student, tmp_path_factory):
    training = Watched(tmp_path_factory.mktemp("undisturbed"), student)
    train([training.job], run_dir=training.folder, progress=False)
    return training


@pytest.fixture
def again_in_store(undisturbed, student, bucket_folder):
    """The undisturbed training in an object store, without its student: a run that ended after its last checkpoint."""
    for file in filter(Path.is_file, undisturbed.folder.rglob("*")):
        copy_file(file, bucket_folder / file.relative_to(undisturbed.folder).as_posix())
    training = Watched(bucket_folder, student)
    remove_folder(training.job.output)
    return training


def workers_of(training):
    """The processes of the training below this one, rank 0 first: it holds the log."""
    found = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name()]
    log = str(training.log)
    return sorted(found, key=lambda process: log not in [file.path for file in process.open_files()])


def kill_in_driver(training, case, step, ray_folder):
    """A training of a process of its own, in which `case` dies at the sight of a step's line."""
    address = "head" if case == "head" else ray.get_runtime_context().gcs_address
    driver, started = Driver(DRIVER, training.arguments, address, ray_folder), []
    try:
        wait_until(
            lambda: len(training.lines()) >= step, f"step {step}", every=0.005, in_vain=driver.process.poll
        )
        started = driver.everything()
        for victim in driver.victims(case):
            kill(victim)
        driver.process.wait(timeout=120)
    finally:
        driver.reap(started or driver.everything())


def train_and_kill(training, rank, step):
    """A training in this process, one rank of which dies at the sight of a step's line; returns the lines then."""

    def disturb():
        wait_until(lambda: len(training.lines()) >= step, f"step {step}", every=0.005, in_vain=ended.is_set)
        kill(workers_of(training)[rank])
        return training.lines()

    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(disturb)
        try:
            train([training.job], run_dir=training.folder, progress=False)
        finally:
            ended.set()
        return before.result()


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_head_driver_and_a_rank_die_one_after_the_other_and_the_student_is_the_same(
    seed, undisturbed, student, tmp_path, ray_folder
):
    rng, training = random.Random(seed), Watched(tmp_path, student)
    deaths = rng.sample(["head", "driver"], 2)
    thirds = (range(EVERY + 2, 9), range(11, 15), range(17, STEPS - 3))
    moments = [rng.choice(third) for third in thirds]
    rank = rng.randrange(2)
    print(f"{deaths} and rank {rank} at {moments}")
    logs = []
    for case, moment in zip(deaths, moments, strict=False):
        kill_in_driver(training, case, moment, ray_folder)
        logs.append(training.lines())
        assert not training.job.output.exists()
    logs.append(train_and_kill(training, rank, moments[2]))
    assert same_student(training, undisturbed)
    # Each time it went on from a checkpoint, the newest or, where that was still under way, the one before.
    for before, after in zip(logs, [*logs[1:], training.lines()], strict=True):
        kept = kept_lines(before, after)
        assert kept % EVERY == 0
        assert len(before) - 2 * EVERY <= kept <= len(before)
    assert [stored.step for stored in training.stored()] == [STEPS - EVERY, STEPS - 2 * EVERY]
    assert len(training.folders()) == KEEP


def test_another_number_of_workers_passes_over_a_damaged_checkpoint_and_goes_on_to_the_same_losses_up_to_rounding(
    again_in_store, undisturbed, student
):
    """Where nodes share a store and no disk."""
    again = again_in_store

    def go_on(workers, at):
        lines = again.lines()
        other = Watched(again.folder, student, workers=workers)
        train([other.job], run_dir=again.folder, progress=False)
        assert kept_lines(lines, again.lines()) == at
        for ours, theirs in zip(again.history(), undisturbed.history(), strict=True):
            assert ours["counts"] == theirs["counts"]
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
            assert ours["sigma"] == pytest.approx(theirs["sigma"], rel=1e-4)
        remove_folder(again.job.output)

    newest, before = again.stored()
    shard = next(newest.folder.rglob("*rank_1*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:1000])
    go_on(workers=1, at=before.step)
    assert [stored.workers for stored in again.stored()] == [1, 2]
    for stored in again.stored():
        assert stored.damage() is None
    go_on(workers=2, at=newest.step)
    assert len(again.folders()) == KEEP


def test_a_worker_that_finds_no_room_says_where_and_the_checkpoint_before_survives(
    cluster, student, tmp_path, caplog
):
    training = Watched(tmp_path, student, max_failures=0)

    def fill():
        """From now on the worker's files may not grow beyond what its log needs."""
        wait_until(training.stored, "a checkpoint", in_vain=ended.is_set)
        workers_of(training)[1].rlimit(psutil.RLIMIT_FSIZE, (100_000, 100_000))

    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        filling = pool.submit(fill)
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(
                TrainingError, match=r"^the checkpoint of step \d+ cannot be written to .*GB free\)"
            ),
        ):
            train([training.job], run_dir=training.folder, progress=False)
        ended.set()
        filling.result()
    assert not training.job.output.exists()
    assert training.stored()[0].damage() is None
