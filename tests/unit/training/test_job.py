"""Jobs that are refused or locked, the schedule, DeepSpeed's settings and the log."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from training_examples import gold_examples, write_trajectories
from training_jobs import export_of, task_of

from steper_ray import stages
from steper_ray.config import Config, DemoConfig, TrainConfig
from steper_ray.core.errors import DataError, LockedError, ModelError, TrainingError
from steper_ray.core.jsonl import read_lines
from steper_ray.pretrained import load_shape, load_tokenizer
from steper_ray.recipes.demo import _settings
from steper_ray.training import engine, trainer
from steper_ray.training.checkpoints import Checkpoints
from steper_ray.training.engine import _uses_liger, deepspeed_config
from steper_ray.training.job import TrainJob
from steper_ray.training.loop import learning_rate
from steper_ray.training.metrics import Follower, MetricsLog, ProgressBars, WarningLog
from steper_ray.training.trainer import train


@pytest.fixture
def examples(tmp_path):
    return write_trajectories(tmp_path / "kept.parquet", gold_examples(1, 2))


def test_a_folder_of_someone_elses_is_never_overwritten(tmp_path, examples):
    task = task_of(tmp_path, examples)
    task.job.output.mkdir(parents=True)
    (task.job.output / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="choose another output folder"):
        task_of(tmp_path, examples)


def test_an_output_that_is_a_file_is_refused(tmp_path, examples):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "student").write_text("mine")
    with pytest.raises(TrainingError, match="choose another output folder"):
        task_of(tmp_path, examples)


def test_what_is_missing_is_said_before_any_worker_starts(tmp_path, examples):
    with pytest.raises(TrainingError, match="run the build stage first"):
        task_of(tmp_path, Path("nowhere.parquet"))
    with pytest.raises(ModelError, match="no such folder"):
        task_of(tmp_path, examples, student="./nowhere")
    with pytest.raises(TrainingError, match=r"set train.use_gpu=true or train.offload=false"):
        task_of(tmp_path, examples, offload=True)
    with pytest.raises(TrainingError, match=r"set train.use_gpu=true, or train.liger=auto"):
        task_of(tmp_path, examples, liger=True)
    for bfloat16 in ({"use_gpu": True}, {"dtype": "bfloat16"}):
        with pytest.raises(TrainingError, match=r"set train.zero_stage=1 or more"):
            task_of(tmp_path, examples, zero_stage=0, **bfloat16)


def test_ligers_kernels_are_for_gpus_that_have_them(monkeypatch):
    def used(**settings):
        return _uses_liger(TrainConfig(**settings))

    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    assert not used(use_gpu=True)
    with pytest.raises(TrainingError, match=r"install the extra `gpu`, or set train.liger=auto"):
        used(use_gpu=True, liger=True)
    monkeypatch.setattr(engine, "find_spec", lambda name: name)
    assert [used(), used(use_gpu=True), used(use_gpu=True, liger=True)] == [False, True, True]
    assert not used(use_gpu=True, liger=False)


def test_jobs_of_one_group_need_the_same_workers_and_names_of_their_own(tmp_path, examples):
    def job(name, **settings):
        return TrainJob(name, TrainConfig(**settings), examples, tmp_path / name)

    with pytest.raises(TrainingError, match=r"train.workers differs between jobs \(1, 2\)"):
        train([job("a", workers=1), job("b", workers=2)], run_dir=tmp_path)
    with pytest.raises(TrainingError, match="two jobs have the same name: a, a"):
        train([job("a"), job("a")], run_dir=tmp_path)
    with pytest.raises(TrainingError, match="no jobs"):
        train([], run_dir=tmp_path)


def test_the_learning_rate_warms_up_linearly_and_falls_as_a_cosine():
    config = TrainConfig(lr=1.0, warmup_ratio=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[99] < 0.01


def test_a_training_of_one_step_moves():
    assert learning_rate(TrainConfig(lr=1.0), 0, 1) == 1.0


def test_a_small_model_stays_whole_and_a_large_one_is_gathered_by_layer():
    small = deepspeed_config(TrainConfig(), 10**6, 128)["zero_optimization"]
    large = deepspeed_config(TrainConfig(use_gpu=True, offload=True), 8 * 10**9, 4096)
    assert small["stage3_param_persistence_threshold"] == 10**6
    zero = large["zero_optimization"]
    assert zero["reduce_bucket_size"] == 4096**2
    assert zero["stage3_param_persistence_threshold"] == 40960
    assert zero["stage3_max_live_parameters"] == zero["stage3_max_reuse_distance"] == 10**9
    assert zero["offload_param"]["device"] == zero["offload_optimizer"]["device"] == "cpu"
    assert large["bf16"]["enabled"]


def test_a_resumed_log_drops_the_lines_of_steps_that_run_again(tmp_path):
    path = tmp_path / "log" / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in range(1, 6):
        log.write({"step": step})
    log.close()
    with path.open("a") as stream:
        stream.write('{"step": 6, "lo')  # the worker was killed here
    log = MetricsLog(path, 3)
    log.write({"step": 4, "again": True})
    log.close()
    assert [json.loads(line)["step"] for line in read_lines(path)] == [1, 2, 3, 4]


def test_the_lines_of_a_log_end_at_line_feeds_alone(tmp_path):
    lines = [json.dumps({"step": n, "asked": "a\u2028b\x85c"}, ensure_ascii=False) for n in (1, 2)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines) + '{"step"', encoding="utf-8")
    assert read_lines(path) == lines


def test_bars_show_the_last_whole_line_of_every_log_that_changes(tmp_path, capsys):
    def write(name, step):
        (tmp_path / name).write_text(json.dumps({"step": step, "steps": 3, "loss": 0.5}) + '\n{"st')

    write("old", 2)
    names = ("first", "second", "old", "none")
    with ProgressBars([(name, tmp_path / name) for name in names]):
        write("first", 3)
        write("second", 1)
    shown = capsys.readouterr().err
    assert "first: 100%" in shown
    assert "second:  33%" in shown
    assert "old" not in shown
    assert "none" not in shown


# Holds a training in another process and ends with it.
HOLD = """
import sys
from pathlib import Path
from steper_ray.core.locks import locked

with locked(Path(sys.argv[1]), "training"):
    print("holds it", flush=True)
    sys.stdin.read()
"""


def test_one_training_at_a_time_works_on_a_job_and_a_killed_one_lets_go(tmp_path, examples, monkeypatch):
    monkeypatch.setattr(trainer, "_fit", lambda tasks, run_dir: None)
    task = task_of(tmp_path, examples)
    two = TrainJob("other", TrainConfig(), examples, tmp_path / "models" / "other")
    command = [sys.executable, "-c", HOLD, str(task.metrics.parent)]
    started = r"job 'other': training ended without an export"
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "holds it\n"
        said = rf"training/student: another training is at work here: host .*, process {other.pid}, for "
        with pytest.raises(LockedError, match=said):
            train([two, task.job], run_dir=tmp_path, progress=False)
        with pytest.raises(TrainingError, match=started):
            train([two], run_dir=tmp_path, progress=False)
        other.kill()
    with pytest.raises(TrainingError, match=started):
        train([two, task.job], run_dir=tmp_path, progress=False)


def test_a_damaged_student_is_trained_again_from_its_checkpoint_but_a_best_one_from_the_start(
    tmp_path, examples, monkeypatch, caplog
):
    monkeypatch.setattr(trainer, "_fit", lambda tasks, run_dir: None)
    for validation, kept, start in (
        ({}, True, "its last checkpoint"),
        ({"share": 0.5, "keep": "best"}, False, "the start: checkpoints do not hold the best student"),
    ):
        task = task_of(tmp_path, examples, validation=validation)
        export_of(task)
        (task.job.output / "SHA256SUMS").unlink()
        store = tmp_path / "training" / "ray"
        checkpoint = Checkpoints(store, store / "run", task.name, task.fingerprint).folder(3)
        checkpoint.mkdir(parents=True)
        with pytest.raises(TrainingError, match="ended without an export"):
            train([task.job], run_dir=tmp_path, progress=False)
        assert checkpoint.exists() == kept
        said = f"job 'student' was trained, but {task.job.output}: SHA256SUMS is missing. It is trained again from "
        assert said + start in caplog.messages
        shutil.rmtree(task.job.output)


def test_a_student_whose_config_or_tokenizer_does_not_load_is_named(tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"model '.*student': its tokenizer cannot be loaded \("):
        load_tokenizer(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"model '.*student': its config cannot be loaded \("):
        load_shape(str(folder))


def test_the_demos_vanilla_students_learn_the_final_step_alone_whatever_steper_learns():
    train = TrainConfig(steps="first_final", max_steps=9)
    settings = {student: _settings(train, student, 3, 40) for student in DemoConfig().students}
    assert {(s.method, s.steps) for s in settings.values()} == {
        ("steper", "first_final"),
        ("vanilla_kd", "all"),
    }
    for chosen in settings.values():
        assert TrainConfig.model_validate(chosen.model_dump()) == chosen


def test_questions_need_someone_who_asks_them(tmp_path, examples):
    config = TrainConfig(validation={"share": 0.5, "questions": 1})
    with pytest.raises(TrainingError, match="was given no `judge`"):
        train([TrainJob("a", config, examples, tmp_path / "a")], run_dir=tmp_path, progress=False)


def test_a_bar_tells_the_abilities_the_speed_and_the_best_validation_so_far(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    losses = {"initialization": 0.25, "expansion": None, "aggregation": 0.5}
    with ProgressBars([("student", path)]):
        log = MetricsLog(path, 0)
        for step, look in enumerate((1.5, 0.75, 1.25), 1):
            more = {"losses": losses, "tokens_per_second": 1234.5, "validation": {"loss": look}}
            log.write({"step": step, "steps": 4, "loss": 0.5} | more)
        log.write({"step": 4, "steps": 4, "loss": 0.5, "losses": losses, "tokens_per_second": 1234.5})
        log.close()
    shown = capsys.readouterr().err
    assert "loss 0.500 (ini 0.250 agg 0.500), 1,234 tokens/s, best validation 0.750" in shown


def test_warnings_of_a_worker_are_shown_once_and_those_of_an_earlier_run_not(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    with WarningLog(path):
        logging.getLogger("steper_ray.training.selection").warning("%d of %d left out", 1, 2)
    with ProgressBars([("student", path)]):
        pass
    assert capsys.readouterr().err == ""
    with ProgressBars([("student", path)]), WarningLog(path):
        for left_out in (3, 4, 3):
            logging.getLogger("steper_ray.training.selection").warning("%d of %d left out", left_out, 5)
        logging.getLogger("steper_ray").info("not this")
    shown = capsys.readouterr().err.splitlines()
    assert shown == ["student: 3 of 5 left out", "student: 4 of 5 left out"]


def test_a_log_is_followed_line_by_line_and_anew_when_it_was_written_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, 0).write({"step": 1})
    follower = Follower(path)
    assert follower.new() == []  # of an earlier run
    log = MetricsLog(path, 0)
    log.write({"step": 1})
    assert follower.new() == [{"step": 1}]
    log.write({"step": 2})
    with path.open("a") as stream:
        stream.write('{"step"')
    assert follower.new() == [{"step": 2}]
    assert follower.new() == []
    log.close()
    log = MetricsLog(path, 1)
    log.write({"step": 2})
    assert follower.new() == [{"step": 1}, {"step": 2}]


def test_a_run_without_kept_trajectories_says_which_stage_makes_them(tmp_path):
    (tmp_path / "data" / "examples").mkdir(parents=True)  # what an earlier version built
    with pytest.raises(
        DataError, match=r"data/kept: no kept trajectories here: run the build .*finished shards are"
    ):
        stages.train(Config(run_dir=tmp_path))
