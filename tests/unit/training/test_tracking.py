"""Trackers are fed every step once, whatever is started again, and one that fails ends nothing."""

import errno
import json
import logging
import struct
import sys
import threading
import time

import pytest
import wandb.proto.wandb_internal_pb2 as wandb_records
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_examples import gold_examples, write_trajectories
from training_jobs import export_of
from waiting import wait_until

from steper_ray.config import TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.core.files import storing, write_text
from steper_ray.core.sums import PROVENANCE, write_sums
from steper_ray.training import tracking, trainer
from steper_ray.training.job import TrainJob, make_task
from steper_ray.training.metrics import MetricsLog
from steper_ray.training.students import Students
from steper_ray.training.tracking import Tracking, check_trackers, values


@pytest.fixture
def make(tmp_path):
    """Tasks of one run, with the trackers given."""

    def task(*trackers, **settings):
        examples = tmp_path / "kept.parquet"
        if not examples.exists():
            write_trajectories(examples, gold_examples(1, 2))
        config = TrainConfig(tracking=trackers, **settings)
        return make_task(TrainJob("student", config, examples, tmp_path / "models"), tmp_path)

    return task


def line(step):
    return {
        "step": step,
        "steps": 9,
        "epoch": 0,
        "loss": 1 / step,
        "losses": {"initialization": 0.5, "expansion": None},
        "sigma": None,
        "memory": {"device_peak": None, "host_peak": 1000},
    }


def train(task, start, stop, *, answers=(), trackers=Tracking):
    """What rank 0 and the watcher write between two kills."""
    with trackers([task], every_s=0.01):
        log = MetricsLog(task.metrics, start)
        for step in range(start + 1, stop + 1):
            log.write(line(step))
        log.close()
        for step in answers:
            students = Students(task)
            students.finish(step, {"em": 0.25, "unit": "chain"})


class Told:
    """A tracker of the test's own. `fails_at` is the step that it fails at."""

    fails_at: int | None = None
    runs: list["Told"]

    def __init__(self, run):
        self.run, self.logged, self.closed = run, [], None
        type(self).runs.append(self)

    def log(self, step, values):
        if step == self.fails_at:
            raise ConnectionError("no answer of https://me:secret@tracker.example/api")
        self.logged.append((step, values))

    def close(self, *, well):
        self.closed = well


@pytest.fixture
def told(monkeypatch):
    kind = type("Told", (Told,), {"runs": []})
    monkeypatch.setitem(tracking.TRACKERS, "wandb", ("json", kind))
    return kind


def test_numbers_are_named_by_where_they_stand():
    record = line(2) | {
        "validation": {"loss": 3, "losses": {"aggregation": 2.5}},
        "flag": True,
        "unit": "chain",
    }
    assert values(record) == {
        "epoch": 0.0,
        "loss": 0.5,
        "losses/initialization": 0.5,
        "memory/host_peak": 1000.0,
        "validation/loss": 3.0,
        "validation/losses/aggregation": 2.5,
    }


def test_steps_that_run_again_are_told_once_under_the_same_run(make, told):
    task = make("wandb")
    train(task, 0, 5, answers=[3])
    train(task, 2, 8, answers=[6])
    first, second = told.runs
    assert first.run.id == second.run.id
    assert (first.run.after, second.run.after) == (0, 5)
    of_steps = [step for one in told.runs for step, numbers in one.logged if "loss" in numbers]
    of_questions = [
        (step, numbers) for one in told.runs for step, numbers in one.logged if "loss" not in numbers
    ]
    assert of_steps == list(range(1, 9))
    assert of_questions == [(3, {"questions/em": 0.25}), (6, {"questions/em": 0.25})]
    assert first.closed is second.closed is True


def test_answers_that_come_after_a_training_is_finished_are_told_too(make, told, tmp_path, monkeypatch):
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", ("json", told))  # which needs no key
    task = make("mlflow", validation={"share": 0.5, "questions": 1})
    train(task, 0, 3)
    export_of(task)
    left = Students(task).folder(3)
    left.mkdir(parents=True)
    (left / PROVENANCE).write_text(json.dumps({"fingerprint": task.fingerprint}))
    write_sums(left)
    trainer.train([task.job], run_dir=tmp_path, progress=False, judge=lambda *_: {"em": 0.5})
    first, second = told.runs
    assert second.run.id == first.run.id
    assert [(step, numbers["questions/em"]) for step, numbers in second.logged] == [(3, 0.5)]


def test_another_training_is_another_run_from_its_first_step(make, told):
    train(make("wandb"), 0, 3)
    train(make("wandb", lr=1.0), 0, 2)
    first, second = told.runs
    assert first.run.id != second.run.id
    assert [step for step, _ in second.logged] == [1, 2]


def test_a_tracker_that_fails_is_one_warning_and_is_sent_what_it_missed_at_the_next_start(make, told, caplog):
    task = make("wandb", "tensorboard")
    told.fails_at = 3
    with caplog.at_level(logging.WARNING):
        train(task, 0, 5)
    assert caplog.text.count("tracking by wandb failed") == 1
    assert "tracker.example" in caplog.text
    assert "secret" not in caplog.text
    assert [step for step, _ in told.runs[0].logged] == [1, 2]
    assert scalars(task, "loss") == [(step, pytest.approx(1 / step)) for step in range(1, 6)]
    told.fails_at = None
    train(task, 5, 6)
    assert [step for step, _ in told.runs[1].logged] == [3, 4, 5, 6]


def test_a_full_disk_costs_the_note_and_no_step_and_the_note_is_tried_with_every_step(
    make, told, caplog, monkeypatch
):
    task, full = make("wandb"), threading.Event()
    log = MetricsLog(task.metrics, 0)
    full.set()

    def write(path, text):
        with storing(path.parent):
            if full.is_set():
                raise OSError(errno.ENOSPC, "No space left on device")
        write_text(path, text)

    monkeypatch.setattr(tracking, "write_text", write)
    with caplog.at_level(logging.WARNING), Tracking([task], every_s=0.01):
        for step in (1, 2):
            log.write(line(step))
        wait_until(lambda: told.runs and len(told.runs[0].logged) == 2, "two steps")
        wait_until(lambda: "No space left" in caplog.text, "the warning", seconds=30)
        full.clear()
        log.write(line(3))
    assert [step for step, _ in told.runs[0].logged] == [1, 2, 3]
    assert told.runs[0].closed
    assert caplog.text.count("what was sent cannot be noted") == 1
    train(task, 3, 4)
    assert [step for step, _ in told.runs[1].logged] == [4]


def test_a_training_that_fails_is_closed_as_failed(make, told):
    task = make("wandb")

    def breaks():
        with Tracking([task], every_s=0.01):
            MetricsLog(task.metrics, 0).write(line(1))
            raise TrainingError("broken")

    with pytest.raises(TrainingError):
        breaks()
    assert told.runs[0].closed is False


def test_settings_go_to_the_tracker_without_what_only_looks(make, told):
    train(make("wandb", tracking_project="reading", lr=0.5), 0, 1)
    run = told.runs[0].run
    assert (run.project, run.name, run.params["lr"]) == ("reading", "student", 0.5)
    assert not {"validation", "tracking"} & run.params.keys()


def test_a_missing_package_is_said_before_any_worker_starts(make, monkeypatch):
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", ("no_such_package", Told))
    with pytest.raises(TrainingError, match=r"mlflow is not installed: pip install 'steper-ray\[tracking\]'"):
        check_trackers([make("tensorboard", "mlflow")])


def test_a_missing_key_is_said_before_any_worker_starts(make, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    import wandb

    wandb.teardown()
    with pytest.raises(TrainingError, match="set WANDB_API_KEY, or WANDB_MODE=offline"):
        check_trackers([make("wandb")])
    wandb.teardown()


def test_without_trackers_nothing_is_imported_or_written(make):
    task = make()
    check_trackers([task])
    train(task, 0, 2)
    assert [path.name for path in task.metrics.parent.iterdir()] == ["metrics.jsonl"]


def scalars(task, name):
    (folder,) = (task.metrics.parent / "tensorboard").iterdir()
    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(name)]


def test_tensorboard_hides_what_was_written_before_a_kill_and_not_noted(make):
    task = make("tensorboard")
    train(task, 0, 5)
    notes = task.metrics.parent / "tracked.json"
    noted = json.loads(notes.read_text())
    noted["sent"]["tensorboard"]["steps"] = 4
    notes.write_text(json.dumps(noted))
    train(task, 2, 7)
    assert scalars(task, "loss") == [(step, pytest.approx(1 / step)) for step in range(1, 8)]
    assert scalars(task, "losses/initialization") == [(step, 0.5) for step in range(1, 8)]


def test_mlflow_goes_on_with_the_run_it_finds(make, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    task = make("mlflow", tracking_project="reading", lr=0.5)
    train(task, 0, 3, answers=[2])
    train(task, 1, 5)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("reading")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["lr"]) == ("student", "FINISHED", "0.5")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(step, 1 / step) for step in range(1, 6)]
    assert [one.step for one in client.get_metric_history(run.info.run_id, "questions/em")] == [2]


def wandb_history(file):
    """The logged rows of an offline file: records of protobuf in the blocks of LevelDB's log."""
    data, at, body, rows = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        body += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_records.Record.FromString(body)
            body = b""
            if record.HasField("history"):
                items = record.history.item
                rows.append(
                    {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
                )
    return rows


def test_wandb_offline_holds_every_step_of_both_starts_under_one_id(make, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    task = make("wandb", tracking_project="reading")
    check_trackers([task])
    train(task, 0, 3)
    started = int(time.time())  # W&B names a start's folder by the second
    wait_until(lambda: int(time.time()) > started, "the next second")
    train(task, 1, 5, answers=[2])

    def rows_of(key):
        files = sorted(
            (task.metrics.parent / "wandb").glob(f"offline-run-*/run-{task.fingerprint[:16]}.wandb")
        )
        return [row for file in files for row in wandb_history(file) if key in row]

    # W&B's own process writes the last rows when it comes to it.
    wait_until(lambda: len(rows_of("loss")) >= 5, "the rows of both starts")
    steps = rows_of("loss")
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in steps] == [1 / step for step in range(1, 6)]
    assert [(row["step"], row["questions/em"]) for row in rows_of("questions/em")] == [(2, 0.25)]


def test_the_trackers_are_imported_only_when_they_are_opened():
    import subprocess

    code = "import steper_ray.training.tracking, sys; print({'wandb', 'mlflow', 'tensorboardX'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
