"""What is held out, its loss however it is cut, the best step, and students that wait to be asked."""

import json
import logging
import threading
from dataclasses import replace

import pytest
import torch
from test_training_data import CharTokenizer
from training_examples import gold_examples, write_examples

from steper_ray.config import TrainConfig
from steper_ray.errors import TrainingError
from steper_ray.splits import draw, question_of
from steper_ray.training import validation as module
from steper_ray.training.data import load_data
from steper_ray.training.engine import Worker
from steper_ray.training.job import PROVENANCE, TrainJob, make_task
from steper_ray.training.metrics import read_records
from steper_ray.training.objective import TASKS
from steper_ray.training.shares import filler
from steper_ray.training.students import Students
from steper_ray.training.validation import HeldOut, course, due
from steper_ray.training.watch import Watcher

LONG = 10**6
EXAMPLES = gold_examples(worlds=3, questions=6)
FILLER = filler(1)


def load(tmp_path, examples=EXAMPLES, *, held_out=None, **settings):
    path = write_examples(tmp_path / "examples.parquet", examples)
    validation = dict(settings.pop("validation", {}))
    if held_out is not None:
        validation["examples"] = write_examples(tmp_path / "held_out.parquet", held_out)
    config = TrainConfig(row_tokens=LONG, validation=validation, **settings)
    return config, load_data(path, CharTokenizer(), config, LONG)


def ids(items):
    return {item.question_id for item in items}


def test_more_data_moves_no_question_between_the_sets(tmp_path):
    _, few = load(tmp_path, [e for e in EXAMPLES if draw(e.question_id) > 0.1], validation={"share": 0.4})
    _, many = load(tmp_path, validation={"share": 0.4})
    assert ids(few.held_out) <= ids(many.held_out)
    assert ids(few.items) <= ids(many.items)
    assert ids(many.held_out) == {e.question_id for e in EXAMPLES if draw(e.question_id) < 0.4}
    assert len(ids(many.items)) + len(ids(many.held_out)) == len({e.question_id for e in EXAMPLES})


def test_samples_of_one_question_stay_on_one_side(tmp_path):
    again = [replace(e, question_id=f"{e.question_id}~1", id=f"{e.id}~") for e in EXAMPLES]
    retried = [replace(e, question_id=f"{e.question_id}~2.1", id=f"{e.id}~~") for e in EXAMPLES]
    _, data = load(tmp_path, EXAMPLES + again + retried, validation={"number": 3})
    away, kept = ({question_of(q) for q in ids(items)} for items in (data.held_out, data.items))
    assert len(away) == 3
    assert len(data.held_out) == 9
    assert not away & kept


def test_a_number_of_questions_are_those_that_a_growing_share_takes_first(tmp_path):
    _, data = load(tmp_path, validation={"number": 4})
    assert ids(data.held_out) == set(sorted({e.question_id for e in EXAMPLES}, key=draw)[:4])


def test_a_folder_of_held_out_examples_leaves_the_training_data_as_it_is(tmp_path):
    _, plain = load(tmp_path)
    _, data = load(tmp_path, held_out=gold_examples(1, 3, seed=11))
    assert (data.items, data.steps_per_epoch) == (plain.items, plain.steps_per_epoch)
    assert len(data.held_out) == 3


@pytest.mark.parametrize("validation", [{"share": 1e-9}, {"number": 18}])
def test_a_split_that_leaves_one_side_empty_is_refused(tmp_path, validation):
    with pytest.raises(TrainingError, match=r"of 18 questions .* change train.validation.share or number"):
        load(tmp_path, validation=validation)


def test_an_ability_that_no_held_out_example_has_cannot_choose_the_best(tmp_path):
    with pytest.raises(TrainingError, match="no held-out example of expansion"):
        load(tmp_path, method="vanilla_kd", validation={"number": 3, "keep": "best", "by": "expansion"})


class LengthEngine:
    """Stands for a model: an example's loss is the length of its target."""

    def __init__(self):
        self.evaluating_now = False

    def evaluating(self):
        return self

    def __enter__(self):
        self.evaluating_now = True

    def __exit__(self, *_):
        self.evaluating_now = False

    def losses(self, packed):
        assert self.evaluating_now
        seen = packed.example[packed.example >= 0]
        return torch.bincount(seen, minlength=len(packed.task)).float()


@pytest.mark.parametrize("settings", [{}, {"packing": "padded"}, {"normalize": "per_question"}])
def test_the_loss_is_the_mean_over_examples_however_rows_and_workers_cut_them(
    tmp_path, monkeypatch, settings
):
    validation = {"number": 5}
    config, data = load(tmp_path, validation=validation, rows_per_micro_batch=2, **settings)
    lengths = {task: [] for task in range(len(TASKS))}
    for item in data.held_out:
        for tree in item.trees:
            for branch in tree.branches:
                lengths[branch.task].append(len(branch.target))
    of = 5 if "normalize" in settings else None
    wanted = {TASKS[task].value: sum(found) / (of or len(found)) for task, found in lengths.items()}
    longest = max(len(tree) for item in data.held_out for tree in item.trees)
    for row_tokens, workers in ((longest, 1), (longest, 2), (3 * longest, 3), (3 * longest, 7)):
        cut = config.model_copy(update={"row_tokens": row_tokens})
        parts = []

        def gather(values, worker, parts=parts):
            parts.append(values)
            return torch.stack(parts).sum(dim=0)

        monkeypatch.setattr(module, "sum_over_workers", gather)
        for rank in range(workers):
            held_out = HeldOut(data.held_out, cut, Worker(rank, workers, torch.device("cpu")), FILLER)
            look = held_out.losses(LengthEngine())
        assert look["losses"] == pytest.approx(wanted)
        assert look["loss"] == pytest.approx(sum(wanted.values()))


def test_the_best_look_is_the_first_with_the_lowest_loss_that_the_settings_name():
    def line(step, init, exp):
        return {
            "step": step,
            "validation": {"loss": init + exp, "losses": {"initialization": init, "expansion": exp}},
        }

    records = [{"step": 1}, line(2, 3.0, 1.0), line(4, 1.0, 2.0), line(6, 1.0, 2.0), line(8, 2.5, 0.8)]
    steps = {}
    for by in ("sum", "expansion"):
        config = TrainConfig(validation={"share": 0.1, "by": by}).validation
        steps[by] = {name: look["step"] for name, look in course(records, config).items()}
    assert steps == {"sum": {"best": 4, "last": 8}, "expansion": {"best": 8, "last": 8}}
    assert course(records[:1], config) is None
    assert [step for step in range(1, 12) if due(step, 11, 4)] == [4, 8, 11]


def task_of(tmp_path, name="student", **validation):
    examples = tmp_path / "examples.parquet"
    if not examples.exists():
        write_examples(examples, EXAMPLES[:6])
    validation = {"share": 0.5, "questions": 1} | validation
    return make_task(TrainJob(name, TrainConfig(validation=validation), examples, tmp_path / name), tmp_path)


def wait_for_questions(task, step):
    folder = Students(task).folder(step)
    folder.mkdir(parents=True)
    (folder / PROVENANCE).write_text(json.dumps({"fingerprint": task.fingerprint}))
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
