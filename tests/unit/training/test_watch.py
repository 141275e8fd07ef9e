"""Students that wait to be asked are asked in order, each once, whatever fails or is started again."""

import json
import logging
import threading

import pytest
from training_examples import gold_examples, write_trajectories

from steper_ray.config import TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.core.jsonl import read_records
from steper_ray.core.sums import PROVENANCE, write_sums
from steper_ray.training.job import TrainJob, make_task
from steper_ray.training.students import Students
from steper_ray.training.watch import Watcher


def task_of(tmp_path, name="student", **validation):
    examples = tmp_path / "kept.parquet"
    if not examples.exists():
        write_trajectories(examples, gold_examples(3, 6)[:6])
    validation = {"share": 0.5, "questions": 1} | validation
    return make_task(TrainJob(name, TrainConfig(validation=validation), examples, tmp_path / name), tmp_path)


def wait_for_questions(task, step):
    folder = Students(task).folder(step)
    folder.mkdir(parents=True)
    (folder / PROVENANCE).write_text(json.dumps({"fingerprint": task.fingerprint}))
    write_sums(folder)
    return folder


def begin(task):
    """What the first step of a training does."""
    task.metrics.parent.mkdir(parents=True, exist_ok=True)
    task.metrics.write_text('{"step": 1}\n')


def test_two_students_wait_at_most_and_the_last_one_always(tmp_path):
    task = task_of(tmp_path)
    students = Students(task)
    assert students.wanted(5, 30)
    wait_for_questions(task, 5)
    assert not students.wanted(5, 30)
    assert students.wanted(10, 30)
    wait_for_questions(task, 10)
    assert not students.wanted(15, 30)
    assert students.wanted(30, 30)
    students.finish(5, {"em": 0.5})
    assert students.waiting() == [10]
    assert students.wanted(15, 30)
    assert not students.wanted(5, 30)
    assert not students.folder(5).exists()


def test_students_are_asked_in_order_and_each_once_whatever_is_started_again(tmp_path):
    task, asked = task_of(tmp_path), []

    def judge(model, name, step):
        assert (model / PROVENANCE).exists()
        asked.append((name, step))
        return {"em": step / 10}

    for step in (3, 6):
        wait_for_questions(task, step)
    with Watcher([task], judge, every_s=0.01):
        pass
    wait_for_questions(task, 9)
    wait_for_questions(task, 6)  # was asked, and its folder not removed: the process was killed in between
    with Watcher([task], judge, every_s=0.01):
        pass
    assert asked == [("student", 3), ("student", 6), ("student", 9)]
    assert [(one["step"], one["em"]) for one in read_records(Students(task).log)] == [
        (3, 0.3),
        (6, 0.6),
        (9, 0.9),
    ]
    assert Students(task).waiting() == []


def test_a_student_is_asked_while_the_training_goes_on_but_not_before_it_began(tmp_path):
    task, asked = task_of(tmp_path), threading.Event()
    wait_for_questions(task, 3)

    def judge(model, name, step):
        asked.set()
        return {}

    with Watcher([task], judge, every_s=0.01):
        assert not asked.wait(0.2)
        begin(task)
        assert asked.wait(60)


def test_what_another_training_of_the_name_left_is_not_asked_nor_kept(tmp_path):
    old, new = task_of(tmp_path), task_of(tmp_path, share=0.6)
    Students(old).folder(3).mkdir(parents=True)
    Students(old).finish(3, {"em": 1.0})
    wait_for_questions(old, 6)
    with Watcher([new], lambda *_: pytest.fail("asked"), every_s=0.01):
        pass
    assert read_records(Students(new).log) == []
    assert Students(new).waiting() == []


def test_questions_that_fail_are_one_warning_and_a_line_and_stop_nothing(tmp_path, caplog):
    task = task_of(tmp_path)
    for step in (3, 6):
        wait_for_questions(task, step)

    def judge(model, name, step):
        raise RuntimeError(f"no engine for step {step}")

    with caplog.at_level(logging.WARNING), Watcher([task], judge, every_s=0.01):
        pass
    assert [one["error"][:12] for one in read_records(Students(task).log)] == ["RuntimeError"] * 2
    assert caplog.text.count("no engine") == 1


def test_answers_that_cannot_be_noted_are_one_warning_and_asked_for_again_by_the_next_start(tmp_path, caplog):
    task, asked = task_of(tmp_path), []
    for step in (3, 6):
        wait_for_questions(task, step)
    log = Students(task).log
    log.symlink_to(tmp_path / "no such folder" / "log")  # a write fails, as on a full disk

    def judge(model, name, step):
        asked.append(step)
        return {}

    with caplog.at_level(logging.WARNING), Watcher([task], judge, every_s=0.01):
        begin(task)
    assert asked == [3]
    assert caplog.text.count("are given up, the training goes on") == 1
    log.unlink()
    with Watcher([task], judge, every_s=0.01):
        pass
    assert asked == [3, 3, 6]


def test_an_engine_that_never_comes_does_not_hold_up_the_end_and_is_asked_for_again(tmp_path, caplog):
    task, never = task_of(tmp_path), threading.Event()
    wait_for_questions(task, 3)

    def judge(model, name, step):
        never.wait()
        raise RuntimeError("the cluster is gone")

    with caplog.at_level(logging.WARNING), Watcher([task], judge, every_s=0.01, last_s=0.1):
        pass
    assert "train.validation.num_cpus=0 needs no free CPU" in caplog.text
    never.set()
    with Watcher([task], lambda *_: {"em": 1.0}, every_s=0.01):
        pass
    assert [one["step"] for one in read_records(Students(task).log)] == [3]


def test_a_training_that_failed_waits_for_no_questions(tmp_path):
    task = task_of(tmp_path)
    wait_for_questions(task, 3)
    with (
        pytest.raises(TrainingError, match="broken"),
        Watcher([task], lambda *_: pytest.fail("asked"), every_s=0.01),
    ):
        raise TrainingError("broken")
    assert Students(task).waiting() == [3]


def test_a_torn_line_of_the_log_is_not_gone_on_with(tmp_path):
    task = task_of(tmp_path)
    students = Students(task)
    students.folder(3).mkdir(parents=True)
    students.finish(3, {"em": 1.0})
    with students.log.open("a") as stream:
        stream.write('{"step": 6, "e')
    students.tidy()
    students.finish(6, {"em": 0.0})
    assert [one["step"] for one in read_records(students.log)] == [3, 6]
