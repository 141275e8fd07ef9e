"""Jobs, their fingerprints, the schedule and the log: what a rerun takes for the same training, and what not."""

import hashlib
import json
from pathlib import Path

import pytest
from ray.train import Checkpoint
from training_examples import gold_examples, write_examples

from steper_ray.config import TrainConfig
from steper_ray.config.presets import PRESETS
from steper_ray.errors import ModelError, TrainingError
from steper_ray.training import engine
from steper_ray.training.engine import _uses_liger, deepspeed_config
from steper_ray.training.job import PROVENANCE, TrainJob, _weights, data_fingerprint, finished, make_task
from steper_ray.training.loop import learning_rate
from steper_ray.training.metrics import MetricsLog, ProgressBars, read_lines
from steper_ray.training.trainer import _resume_folder, train

#: What the fingerprint of a student was made of before LoRA, presets and Liger's kernels were there.
FIRST_SETTINGS = set(
    "method weighting fixed_weights normalize sigma_lr log_sigma_bounds epochs max_steps lr warmup_ratio weight_decay "
    "clip_norm batch_examples row_tokens rows_per_micro_batch packing attention gradient_checkpointing dtype seed "
    "use_gpu zero_stage".split()
)


@pytest.fixture
def examples(tmp_path):
    return write_examples(tmp_path / "examples.parquet", gold_examples(1, 2))


def task_of(tmp_path, examples, **settings):
    job = TrainJob("student", TrainConfig(**settings), examples, tmp_path / "models" / "student")
    return make_task(job, tmp_path)


def export_of(task, **record):
    task.job.output.mkdir(parents=True)
    (task.job.output / PROVENANCE).write_text(
        json.dumps({"fingerprint": task.fingerprint, "steps": 7} | record)
    )


def test_a_finished_job_is_known_by_its_fingerprint(tmp_path, examples):
    task = task_of(tmp_path, examples)
    assert finished(task) is None
    export_of(task)
    assert finished(task_of(tmp_path, examples)).steps == 7


def test_other_settings_or_other_data_are_another_training(tmp_path, examples):
    export_of(task_of(tmp_path, examples))
    assert finished(task_of(tmp_path, examples, seed=1)) is None
    write_examples(examples, gold_examples(1, 3))
    assert finished(task_of(tmp_path, examples)) is None


def test_how_many_workers_trained_it_does_not_make_it_another(tmp_path, examples):
    export_of(task_of(tmp_path, examples))
    assert finished(task_of(tmp_path, examples, workers=4, checkpoint_every=3)) is not None


def test_settings_that_came_later_leave_earlier_students_finished_until_they_are_used(tmp_path, examples):
    task = task_of(tmp_path, examples)
    parts = [
        task.name,
        task.job.config.model_dump_json(include=FIRST_SETTINGS),
        task.model,
        _weights(Path(task.model)),
        data_fingerprint(examples),
    ]
    assert task.fingerprint == hashlib.sha256("\n".join(parts).encode()).hexdigest()
    export_of(task)
    assert finished(task_of(tmp_path, examples, liger=False, check_memory=False)) is not None
    assert finished(task_of(tmp_path, examples, lora={})) is None


def test_a_preset_is_the_same_training_as_what_it_sets(tmp_path, examples):
    preset = task_of(tmp_path, examples, preset="8b-4gpu")
    spelled = task_of(tmp_path, examples, **PRESETS["8b-4gpu"])
    assert preset.fingerprint == spelled.fingerprint != task_of(tmp_path, examples).fingerprint


def test_whether_adapters_are_merged_makes_another_export(tmp_path, examples):
    export_of(task_of(tmp_path, examples, lora={"merge": False}))
    assert finished(task_of(tmp_path, examples, lora={"merge": True})) is None


def test_a_folder_of_someone_elses_is_never_overwritten(tmp_path, examples):
    task = task_of(tmp_path, examples)
    task.job.output.mkdir(parents=True)
    (task.job.output / "thesis.txt").write_text("mine")
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
    assert log.last == {"step": 3}
    log.write({"step": 4, "again": True})
    log.close()
    assert [json.loads(line)["step"] for line in read_lines(path)] == [1, 2, 3, 4]


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


def checkpoint_of(folder, task, workers):
    folder.mkdir()
    position = {"fingerprint": task.fingerprint, "workers": workers, "step": 8}
    (folder / "position.json").write_text(json.dumps(position))
    return Checkpoint.from_directory(folder)


def test_a_checkpoint_is_taken_by_the_job_that_wrote_it_alone(tmp_path, examples):
    task, other = task_of(tmp_path, examples), task_of(tmp_path, examples, seed=1)
    checkpoint = checkpoint_of(tmp_path / "checkpoint", task, workers=2)
    with _resume_folder(checkpoint, task, 2) as folder:
        assert folder == tmp_path / "checkpoint"
    with _resume_folder(checkpoint, other, 2) as folder:
        assert folder is None
    with _resume_folder(None, task, 2) as folder:
        assert folder is None


def test_a_checkpoint_of_another_number_of_workers_is_refused_with_the_fix(tmp_path, examples):
    task = task_of(tmp_path, examples)
    checkpoint = checkpoint_of(tmp_path / "checkpoint", task, workers=4)
    with (
        pytest.raises(TrainingError, match=r"written by 4 workers, this run has 2.*Set train.workers=4"),
        _resume_folder(checkpoint, task, 2),
    ):
        pass
