"""What a rerun takes for the same training, and what not: fingerprints, and the record of what a job is made from."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from training_examples import gold_examples, write_trajectories
from training_jobs import export_of, task_of

from steper_ray.config.presets import PRESETS
from steper_ray.core.errors import DataError, TrainingError
from steper_ray.core.files import write_text
from steper_ray.core.sums import PROVENANCE, write_sums
from steper_ray.models import resolve_model
from steper_ray.training.job import _weights, data_fingerprint, finished, lost, note_sources

#: What the fingerprint of a student was made of before LoRA, presets and Liger's kernels were there.
FIRST_SETTINGS = set(
    "method weighting fixed_weights normalize sigma_lr log_sigma_bounds epochs max_steps lr warmup_ratio weight_decay "
    "clip_norm batch_examples row_tokens rows_per_micro_batch packing attention gradient_checkpointing dtype seed "
    "use_gpu zero_stage".split()
)


@pytest.fixture
def examples(tmp_path):
    return write_trajectories(tmp_path / "kept.parquet", gold_examples(1, 2))


def fingerprint(tmp_path, examples, **settings):
    return task_of(tmp_path, examples, **settings).fingerprint


def test_a_finished_job_is_known_by_its_fingerprint(tmp_path, examples):
    task = task_of(tmp_path, examples)
    assert finished(task) is None
    export_of(task)
    assert finished(task_of(tmp_path, examples)).steps == 7


def test_an_export_is_believed_only_while_each_of_its_files_is_what_was_written(tmp_path, examples):
    task = task_of(tmp_path, examples)
    export_of(task)
    output = task.job.output
    weights = output / "model.safetensors"
    weights.write_bytes(bytes(range(256)) * 20)
    write_sums(output)
    assert finished(task) is not None
    assert lost(task) is None
    for at in range(0, 5120, 128):
        flipped = bytearray(weights.read_bytes())
        flipped[at] ^= 4
        weights.write_bytes(flipped)
        assert finished(task) is None
        assert lost(task) == f"{output}: model.safetensors was changed since it was written (SHA-256)"
        flipped[at] ^= 4
        weights.write_bytes(flipped)
    assert finished(task) is not None
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert lost(task) == f"{output}: model.safetensors was changed since it was written (SHA-256)"
    weights.unlink()
    assert (finished(task), lost(task)) == (None, f"{output}: model.safetensors is missing")
    weights.write_bytes(whole)
    (output / PROVENANCE).write_text("{")
    assert (finished(task), lost(task)) == (
        None,
        f"{output}: {PROVENANCE} was changed since it was written (SHA-256)",
    )
    task_of(tmp_path, examples)  # still known as an export, which may be replaced
    (output / "SHA256SUMS").unlink()
    (output / PROVENANCE).write_text(json.dumps({"fingerprint": task.fingerprint, "steps": 7}))
    assert (finished(task), lost(task)) == (None, f"{output}: SHA256SUMS is missing")


def test_a_student_that_was_trained_and_is_gone_is_named_and_one_that_was_not_is_not(tmp_path, examples):
    task = task_of(tmp_path, examples)
    note_sources(task)
    for step, said in ((1, None), (2, f"{task.job.output} is gone")):
        write_text(task.metrics, json.dumps({"step": step, "steps": 2}) + "\n")
        assert lost(task) == said
    assert lost(task_of(tmp_path, examples, seed=1)) is None
    write_text(task.metrics, '{"step": 2, "st\x01ps": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1: damaged"):
        lost(task)


def test_a_start_from_a_student_with_one_other_bit_is_another_training(tmp_path, examples):
    student = tmp_path / "base"
    shutil.copytree(resolve_model("miniature:base"), student)
    weights = student / "model.safetensors"
    before, stat = fingerprint(tmp_path, examples, student=str(student)), weights.stat()
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(tmp_path, examples, student=str(student)) != before
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert fingerprint(tmp_path, examples, student=str(student)) == before


def test_a_student_that_lies_elsewhere_with_the_same_files_is_no_other(tmp_path, examples, caplog):
    places = [shutil.copytree(resolve_model("miniature:base"), tmp_path / name) for name in ("a", "b")]
    teacher = {"soft_targets": {"teacher": str(places[0])}}
    first = task_of(tmp_path, examples, student=str(places[0]), **teacher)
    note_sources(first)
    export_of(first)
    moved = {"soft_targets": {"teacher": str(places[1])}}
    again = task_of(tmp_path, examples, student=str(places[1]), **moved)
    note_sources(again)
    assert (again.fingerprint, again.model, caplog.text) == (first.fingerprint, str(places[1]), "")
    assert finished(again) is not None
    weights = places[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    other = task_of(tmp_path, examples, student=str(places[1]), **teacher)
    note_sources(other)
    assert finished(other) is None
    assert "the student's files changed" in caplog.text


def test_other_settings_or_other_data_are_another_training(tmp_path, examples):
    export_of(task_of(tmp_path, examples))
    assert finished(task_of(tmp_path, examples, seed=1)) is None
    write_trajectories(examples, gold_examples(1, 3))
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


def test_a_rerun_that_must_start_anew_says_what_changed(tmp_path, examples, caplog):
    note_sources(task_of(tmp_path, examples))
    note_sources(task_of(tmp_path, examples, workers=4, checkpoint_every=3))
    assert caplog.text == ""
    note_sources(task_of(tmp_path, examples, lr=1e-4))
    assert "starts from the beginning: since its last start, train.lr" in caplog.text
    assert "train.lr was 5e-06 and is 0.0001" in caplog.text
    caplog.clear()
    write_trajectories(examples, gold_examples(1, 3))
    note_sources(task_of(tmp_path, examples, lr=1e-4))
    assert "since its last start, the trajectories changed. Its earlier checkpoints" in caplog.text
    caplog.clear()
    note_sources(task_of(tmp_path, examples, lr=1e-4))
    assert caplog.text == ""


def test_a_record_that_was_cut_off_or_is_older_is_no_obstacle(tmp_path, examples, caplog):
    task = task_of(tmp_path, examples)
    note_sources(task)
    record = task.metrics.with_name("made_from.json")
    older = json.loads(record.read_text())
    settings = json.loads(older["settings"])
    del settings["packing"]
    record.write_text(json.dumps(older | {"settings": json.dumps(settings)}))
    note_sources(task)
    assert "since its last start, train.packing is new" in caplog.text
    record.write_text("{")
    caplog.clear()
    note_sources(task)
    assert caplog.text == ""


def test_a_fingerprint_ties_settings_student_weights_and_examples_together(tmp_path, examples):
    sources = task_of(tmp_path, examples).sources
    assert list(sources) == ["name", "settings", "student", "weights", "trajectories"]
    assert "workers" not in json.loads(sources["settings"])


def test_looking_and_tracking_leave_a_training_what_it_was_and_holding_out_does_not(tmp_path, examples):
    plain = fingerprint(tmp_path, examples)
    held_out = fingerprint(tmp_path, examples, validation={"share": 0.5})
    looked = fingerprint(
        tmp_path, examples, validation={"trajectories": examples, "every": 3, "questions_every": 2}
    )
    assert looked == plain == fingerprint(tmp_path, examples, tracking=["wandb"], tracking_project="mine")
    assert held_out == fingerprint(tmp_path, examples, validation={"share": 0.5, "every": 3, "questions": 2})
    best = {"share": 0.5, "keep": "best"}
    different = [
        held_out,
        fingerprint(tmp_path, examples, validation={"number": 1}),
        *(
            fingerprint(tmp_path, examples, validation=best | more)
            for more in ({}, {"every": 3}, {"by": "aggregation"})
        ),
    ]
    assert len({plain, *different}) == 1 + len(different)


def test_what_decides_the_best_is_read_from_the_held_out_examples_themselves(tmp_path, examples):
    held_out = write_trajectories(tmp_path / "held_out.parquet", gold_examples(1, 1, seed=9))
    validation = {"trajectories": held_out, "keep": "best"}
    before = fingerprint(tmp_path, examples, validation=validation)
    write_trajectories(held_out, gold_examples(1, 2, seed=9))
    assert fingerprint(tmp_path, examples, validation=validation) != before
    held_out.unlink()
    with pytest.raises(TrainingError, match=r"train.validation.trajectories: .*held_out.parquet"):
        task_of(tmp_path, examples, validation=validation)
