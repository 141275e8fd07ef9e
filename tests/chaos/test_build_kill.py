"""Whatever process dies at whatever moment, every question ends in the data set once, and nothing is made twice.

The moments are drawn from seeds. STEPER_CHAOS_ROUNDS=20 tries so many seeds of each case instead of one.
"""

import copy
import os
import random
import shutil
import signal
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import ray
from builds import (
    N_QUESTIONS,
    N_SHARDS,
    SETTINGS,
    Moment,
    Watched,
    config,
    same_data,
    timeless,
)
from processes import ROUNDS, Driver, children, kill, rounds
from waiting import wait_until

from steper_ray.core.errors import OwedError
from steper_ray.data.build import build_data
from steper_ray.rollouts import run
from steper_ray.rollouts.actor import RolloutActor
from steper_ray.rollouts.deaths import ALONE, COMPANY

VICTIMS = {"engine": "RolloutActor", "notes": "NotesActor", "worker": "ray::"}
# A lost node (test_nodes.py) takes some "worker" with it: a short run leaves that one out.
WORKERS = list(VICTIMS) if ROUNDS > 1 else ["engine", "notes"]
# Agents of a raylet: it ends itself without them, which is the case of the raylet.
AGENTS = ("DashboardAgent", "RuntimeEnvAgent")
DRIVER = textwrap.dedent("""
    import sys
    import ray
    from steper_ray.config.file import load_config
    from steper_ray.data.build import build_data

    if __name__ == "__main__":
        address, temp, *settings = sys.argv[1:]
        local = dict(num_cpus=4, include_dashboard=False, _temp_dir=temp) if address == "local" else {}
        ray.init(address=address, log_to_driver=False, **local)
        build_data(load_config(None, settings))
""")


def build_and_kill(build, moment, victim):
    """A build in this process, `victim()` of which is killed at the moment: its report, and the shards that were
    committed at the moment."""

    def disturb():
        wait_until(lambda: moment.has_come(build), str(moment), every=0.002, in_vain=ended.is_set)
        committed = build.committed()
        kill(victim())
        return committed

    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(disturb)
        try:
            report = build_data(config(build.run_dir))
        finally:
            ended.set()
        return report, before.result()


@pytest.mark.parametrize(("case", "seed"), rounds(*WORKERS))
def test_a_build_survives_the_death_of_a_worker(case, seed, whole, tmp_path):
    rng = random.Random(f"{case} {seed}")
    moment, build = Moment.drawn(rng), Watched(tmp_path)
    killed = []

    def victim():
        workers = children(psutil.Process(), named=VICTIMS[case])
        workers = [w for w in workers if not any(agent in w.cmdline()[0] for agent in AGENTS)]
        killed.append(rng.choice(workers))
        print(f"{case} at {moment}: {killed[0].cmdline()[0]}")
        return killed[0]

    report, before = build_and_kill(build, moment, victim)
    assert not killed[0].is_running()
    assert len(before) < N_SHARDS
    assert report.shards_run == N_SHARDS
    after = build.committed()
    assert {shard: after[shard] for shard in before} == before
    assert same_data(build, whole)
    assert build_data(config(tmp_path)).shards_run == 0


def test_a_build_in_a_store_that_fails_one_request_in_five_is_the_undisturbed_one(
    whole, bucket_folder, store_weather
):
    store_weather.begin(0.2, seed=1)
    build = Watched(bucket_folder)
    assert build_data(config(build.run_dir)).shards_run == N_SHARDS
    assert build_data(config(build.run_dir)).shards_run == 0
    print(store_weather.faults)
    assert sum(store_weather.faults.values()) > 20
    store_weather.share = 0.0
    assert same_data(build, whole)


# The last two are parts of "head", and take their time: a short run leaves them out.
WITH_RAY = ["head", "raylet", "gcs_server"] if ROUNDS > 1 else ["head"]


@pytest.mark.parametrize(("case", "seed"), rounds("driver", *WITH_RAY))
def test_after_the_death_of_driver_or_head_a_rerun_makes_what_is_missing_and_no_more(
    case, seed, whole, tmp_path, ray_folder
):
    moment, build = Moment.drawn(random.Random(f"{case} {seed}")), Watched(tmp_path)
    # The rerun of a killed driver finds its cluster as it is, with the workers of the dead one in it.
    own = ray.get_runtime_context().gcs_address
    address = {"driver": own, "head": "head"}.get(case, "local")
    driver = Driver(DRIVER, [*SETTINGS, f"run_dir={tmp_path}"], address, ray_folder)
    started = []
    try:
        wait_until(lambda: moment.has_come(build), str(moment), every=0.002, in_vain=driver.process.poll)
        started = driver.everything()
        victims = driver.victims(case)
        assert victims
        for victim in victims:
            kill(victim)
        driver.process.wait(timeout=120)  # it does not outlive its Ray
    finally:
        driver.reap(started or driver.everything())
    before = build.committed()
    assert len(before) < N_SHARDS
    assert not build.kept()

    report = build_data(config(tmp_path))
    after = build.committed()
    assert len(after) == N_SHARDS
    unchanged = {shard for shard in before if after[shard] == before[shard]}
    assert unchanged == set(before)
    late = N_SHARDS - len(before) - report.shards_run
    print(f"{case} at {moment}: {len(before)} shards were there, {late} came late")
    # The workers of a dead driver on a living cluster may commit until they are told.
    assert late >= 0 if case == "driver" else late == 0
    assert same_data(build, whole)


KILLER, FAILER = 5, 10  # questions of shards that hold others too


def poisoned(killer, failer):
    """An actor whose engine is killed in the forward pass over one question's prompt, and raises in another's."""

    class Poisoned(RolloutActor):  # local: a worker process cannot import the tests
        async def _load(self, *how):
            generator = await super()._load(*how)
            tokenizer = copy.deepcopy(generator.tokenizer)

            def forward(module, args, kwargs):
                for row in kwargs["input_ids"]:
                    text = tokenizer.decode(row)
                    if killer in text:
                        os.kill(os.getpid(), signal.SIGKILL)
                    if failer in text:
                        raise RuntimeError("no kernel for this shape")

            generator.model.register_forward_pre_hook(forward, with_kwargs=True)
            return generator

    return Poisoned


def test_questions_that_kill_the_engine_or_fail_in_it_are_owed_and_cost_no_other(
    whole, tmp_path, monkeypatch
):
    build, wanted = Watched(tmp_path), whole.trajectories()
    killer, failer = (wanted[number].question for number in (KILLER, FAILER))
    monkeypatch.setattr(run, "RolloutActor", poisoned(killer.text, failer.text))
    with pytest.raises(OwedError, match=f"2 of {N_QUESTIONS} questions are owed"):
        build_data(config(tmp_path))
    owed = {one["question"]: one["error"] for one in build.owed()}
    assert owed.keys() == {killer.id, failer.id}
    assert f"engines died {COMPANY + ALONE} times" in owed[killer.id]
    assert "no kernel for this shape" in owed[failer.id]
    others = [t for t in wanted if t.question.id not in owed]
    assert [timeless(t) for t in build.trajectories()] == [timeless(t) for t in others]
    monkeypatch.undo()
    assert build_data(config(tmp_path)).owed == 0
    assert same_data(build, whole)


FLIPS = 12


def test_flipped_bits_in_committed_files_are_made_good_or_refused_by_name(whole, tmp_path):
    """Whatever file of a finished build is damaged: the next build gives the undisturbed one's data."""
    shutil.copytree(whole.run_dir, tmp_path, dirs_exist_ok=True)
    build, rng = Watched(tmp_path), random.Random(3)
    files = sorted(
        p for p in tmp_path.rglob("*") if p.is_file() and ".locks" not in p.parts and p.stat().st_size
    )
    for file in rng.sample(files, FLIPS):
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        print(f"flipped a bit of {file.relative_to(tmp_path)}")
    build_data(config(tmp_path))
    assert same_data(build, whole)
