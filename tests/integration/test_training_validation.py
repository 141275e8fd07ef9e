"""What watches a training on Ray: held-out examples, questions asked beside it, the best student, a tracker."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_examples import gold_examples, tokens_of, write_trajectories
from transformers import AutoModelForCausalLM, AutoTokenizer
from waiting import wait_until

from steper_ray.config import Config
from steper_ray.core.jsonl import read_records
from steper_ray.evaluation.store import EvalJob, job_files, read_trajectories
from steper_ray.evaluation.watch import question_judge
from steper_ray.frameworks import FRAMEWORKS
from steper_ray.prompts import PromptEncoder
from steper_ray.schema import Ability
from steper_ray.training.data import load_data
from steper_ray.training.job import provenance
from steper_ray.training.trainer import TrainJob, train

WORLDS = {"seed": 5, "worlds": 2, "questions_per_world": 4}
EXAMPLES = gold_examples(worlds=2, questions=4, seed=5)
HELD_OUT = gold_examples(worlds=1, questions=4, seed=9)
SETTINGS = {
    "student": "miniature:base",
    "lr": 1e-3,
    "warmup_ratio": 0.0,
    "max_steps": 12,
    "batch_examples": 8,
    "row_tokens": 1024,
    "rows_per_micro_batch": 2,
    "checkpoint_every": 4,
    "keep_checkpoints": 1,
}
#: The miniature overfits the first step within a few optimiser steps.
BEST = {"every": 1, "keep": "best", "by": "initialization"}


def metrics(result):
    return read_records(result.metrics_path)


def config_of(folder, validation=None, **settings):
    """A run of which the questions of EXAMPLES are the corpus."""
    train_ = {**SETTINGS, "validation": validation or {}, **settings}
    return Config(
        run_dir=folder,
        corpus={"kind": "miniature", "miniature": WORLDS},
        engine={"kind": "transformers", "max_model_len": 1024},
        sampling={"max_tokens": 16},
        reasoning={"max_steps": 2, "k": 2},
        train=train_,
    )


def job(folder, name, validation=None, **settings):
    examples = folder / "kept" / "part-0.parquet"
    return TrainJob(name, config_of(folder, validation, **settings).train, examples, folder / "models" / name)


class KillRankZero(threading.Thread):
    """Kills the worker that writes a log once the log has `lines`."""

    def __init__(self, log, lines):
        super().__init__(daemon=True)
        self._log, self._lines, self.killed_at = log, lines, None

    def run(self):
        wait_until(lambda: len(read_records(self._log)) >= self._lines, "the step to kill at", every=0.01)
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name()]
        (writer,) = [p for p in workers if str(self._log) in [file.path for file in p.open_files()]]
        writer.kill()
        self.killed_at = len(read_records(self._log))


@dataclass
class Trained:
    folder: Path
    jobs: list[TrainJob]
    results: dict
    killer: KillRankZero
    judge: Callable
    weights: dict  # of every student that was asked


@pytest.fixture(scope="module")
def trained(ray_cluster, tmp_path_factory):
    """All in one worker group: without validation, with it, the best one kept, that one killed on its way, and one
    that is asked questions by an engine that wants three of the four CPUs, of which the workers have two."""
    folder = tmp_path_factory.mktemp("watched")
    write_trajectories(folder / "kept" / "part-0.parquet", EXAMPLES)
    held_out = write_trajectories(folder / "held_out.parquet", HELD_OUT)
    looked = {"trajectories": held_out}
    jobs = [
        job(folder, "plain", max_steps=5),
        job(folder, "watched", looked | {"every": 2}, max_steps=5),
        job(folder, "best", looked | BEST),
        job(folder, "killed", looked | BEST, tracking=["tensorboard"]),
    ]
    questions = {"share": 0.4, "questions": 2, "questions_every": 3, "num_cpus": 3}
    jobs.append(job(folder, "asked", questions, max_steps=6))
    ask, weights = question_judge(config_of(folder, questions)), {}

    def judge(model, name, step):
        weights[name, step] = (model / "model.safetensors").read_bytes()
        return ask(model, name, step)

    killer = KillRankZero(folder / "training" / "killed" / "metrics.jsonl", 10)
    killer.start()
    results = {result.name: result for result in train(jobs, run_dir=folder, progress=False, judge=judge)}
    killer.join()
    return Trained(folder, jobs, results, killer, judge, weights)


def loss_by_the_textbook(folder):
    """Of HELD_OUT with a student's folder: plain PyTorch, every example alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    encoder, losses = (
        PromptEncoder(tokenizer, FRAMEWORKS["ircot"].layout),
        {ability.value: [] for ability in Ability},
    )
    for example in HELD_OUT:
        shown = [passage for step in example.passages for passage in step]
        prompt, target = encoder.prompt(example.question, shown, []), encoder.target(example.chain)
        labels = torch.tensor([[-100] * len(prompt) + target])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([prompt + target]), labels=labels).loss
        losses[example.ability.value].append(loss.item())
    return {ability: sum(found) / len(found) for ability, found in losses.items()}


def test_looking_at_held_out_examples_leaves_the_training_alone_to_the_bit(trained):
    results = trained.results
    plain, watched = metrics(results["plain"]), metrics(results["watched"])
    assert [line["loss"] for line in plain] == [line["loss"] for line in watched]
    assert [line["grad_norm"] for line in plain] == [line["grad_norm"] for line in watched]
    assert [line["step"] for line in watched if "validation" in line] == [2, 4, 5]
    ours, theirs = (load_file(results[name].model_dir / "model.safetensors") for name in ("plain", "watched"))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_the_loss_of_two_workers_on_packed_rows_is_that_of_the_textbook(trained):
    results = trained.results
    look = metrics(results["watched"])[-1]["validation"]
    assert look["losses"] == pytest.approx(loss_by_the_textbook(results["watched"].model_dir), rel=1e-4)
    assert look["loss"] == pytest.approx(sum(look["losses"].values()))


def test_the_best_student_is_exported_though_checkpoints_of_its_step_are_gone(trained):
    results = trained.results
    result = results["best"]
    looks = {line["step"]: line["validation"] for line in metrics(result)}
    best = min(looks, key=lambda step: looks[step]["losses"]["initialization"])
    assert 1 < best < 12, looks
    record = provenance(result.model_dir)
    assert record["exported_step"] == record["validation"]["best"]["step"] == best
    assert record["validation"]["last"]["step"] == record["steps"] == 12
    assert looks[best]["losses"] == pytest.approx(loss_by_the_textbook(result.model_dir), rel=1e-4)
    assert f"{best} of 12, the best on held-out examples" in (result.model_dir / "README.md").read_text()
    assert not (result.metrics_path.parent / "best").exists()


def test_a_training_killed_after_its_best_step_exports_the_same_student(trained):
    results, killer = trained.results, trained.killer
    best = provenance(results["best"].model_dir)
    assert best["exported_step"] < killer.killed_at < 12
    assert provenance(results["killed"].model_dir)["validation"] == best["validation"]
    ours, theirs = (load_file(results[name].model_dir / "model.safetensors") for name in ("best", "killed"))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_tracker_has_every_step_once_though_some_were_run_twice(trained):
    results = trained.results
    result = results["killed"]
    (folder,) = (result.metrics_path.parent / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    lines = metrics(result)
    for name, wanted in (
        ("loss", [line["loss"] for line in lines]),
        ("sigma/aggregation", [line["sigma"]["aggregation"] for line in lines]),
        ("validation/losses/expansion", [line["validation"]["losses"]["expansion"] for line in lines]),
    ):
        assert [event.step for event in events.Scalars(name)] == list(range(1, 13))
        assert [event.value for event in events.Scalars(name)] == pytest.approx(wanted)


def test_questions_wait_for_room_and_the_training_does_not(trained):
    result = trained.results["asked"]
    answers = read_records(result.metrics_path.parent / "validation.jsonl")
    assert [(one["step"], one["n"]) for one in answers] == [(3, 2), (6, 2)]
    assert all(1 <= one["mean_steps"] <= 2 and 0 <= one["f1"] <= 1 for one in answers)
    assert list((result.metrics_path.parent / "students").iterdir()) == []
    last = (result.model_dir / "model.safetensors").read_bytes()
    assert trained.weights["asked", 3] != trained.weights["asked", 6] == last


def test_the_questions_that_are_asked_are_not_learned_from(trained):
    student = trained.jobs[-1]
    tokenizer = AutoTokenizer.from_pretrained(trained.results["asked"].model_dir)
    data = load_data(tokens_of(student.trajectories, tokenizer), student.config, 2048)
    job = EvalJob("step-6", "", "sentence")
    files = job_files(trained.folder / "training" / "asked", job)
    asked = {one.question.id for one in read_trajectories(files)}
    assert len(asked) == 2
    assert asked <= {item.question_id for item in data.held_out}
    assert not asked & {item.question_id for item in data.items}


def test_a_rerun_asks_nobody_again(trained):
    train([trained.jobs[-1]], run_dir=trained.folder, progress=False, judge=trained.judge)
    assert len(trained.weights) == 2
    log = trained.results["asked"].metrics_path.parent / "validation.jsonl"
    assert len(read_records(log)) == 2
