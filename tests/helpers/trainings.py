"""Trainings that are disturbed, seen from outside: their job, how far they are, and what they came to."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from training_examples import gold_examples, write_trajectories
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from steper_ray.config import TrainConfig
from steper_ray.core.copies import local
from steper_ray.core.jsonl import read_lines
from steper_ray.models import resolve_model
from steper_ray.training.checkpoints import Checkpoints
from steper_ray.training.job import make_task
from steper_ray.training.trainer import TrainJob

STEPS, EVERY, KEEP = 24, 4, 2
SETTINGS = {
    "lr": 1e-2,
    "max_steps": STEPS,
    "checkpoint_every": EVERY,
    "keep_checkpoints": KEEP,
    "batch_examples": 8,
    "row_tokens": 1024,
}
#: What does not depend on the hour: all that a line of the log tells but the pace.
EXACT = ("step", "epoch", "loss", "losses", "counts", "sigma", "weights", "lr", "grad_norm", "tokens")


def make_student(folder: Path) -> Path:
    """A student of 80,000 parameters with the miniature's tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("miniature:base"))
    shape = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
    )
    AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Watched:
    """One student's training below `folder`, from `student` and the same data as all of them."""

    def __init__(self, folder: Path, student: Path, **settings) -> None:
        self.folder = folder
        kept = folder / "kept"
        if not kept.exists():
            write_trajectories(kept / "part-0.parquet", gold_examples(worlds=3, questions=4))
        config = TrainConfig(**{**SETTINGS, "student": str(student), **settings})
        self.job = TrainJob("student", config, kept, folder / "models" / "student")
        self.task = make_task(self.job, folder)
        self.log = self.task.metrics

    @property
    def arguments(self) -> list[str]:
        """What the script of a driver of its own makes the same job of."""
        job = self.job
        return [
            str(self.folder),
            job.name,
            job.config.model_dump_json(),
            str(job.trajectories),
            str(job.output),
        ]

    def lines(self) -> list[str]:
        return read_lines(self.log)

    def history(self) -> list[dict]:
        return [{key: json.loads(line)[key] for key in EXACT} for line in self.lines()]

    def store(self) -> Path:
        return self.folder / "training" / "ray"

    def stored(self) -> list:
        """Whole checkpoints, newest first."""
        return Checkpoints(self.store(), self.store(), self.task.name, self.task.fingerprint).stored()

    def folders(self) -> set[Path]:
        """All that lies there of checkpoints, whole or not."""
        return set(self.store().glob("*/student-*"))

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(local(self.job.output / "model.safetensors"))


def kept_lines(before: list[str], after: list[str]) -> int:
    """The step that a rerun went on from: so many lines of the log, pace and all, were there before."""
    same = 0
    for one, other in zip(before, after, strict=False):
        if one != other:
            break
        same += 1
    return same


def same_student(training: Watched, whole: Watched) -> bool:
    """Losses, sigmas, gradients, batches and weights, to the bit."""
    assert [line["step"] for line in whole.history()] == list(range(1, STEPS + 1))
    for ours, theirs in zip(training.history(), whole.history(), strict=True):
        assert ours == theirs
    found, wanted = training.weights(), whole.weights()
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        assert torch.equal(value, wanted[key]), key
    return True
