"""A trained student as a Hugging Face folder that transformers and vLLM load as it is, with its provenance.

Of a student of adapters either that, merged, or the adapters' folder.

The folder is written under a temporary name and renamed, so it is whole or not there. Runs on rank 0 alone.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from steper_ray.training.job import PROVENANCE, Task, data_fingerprint
from steper_ray.training.lora import save_adapters, save_merged
from steper_ray.training.memory import training_dtype

_PACKAGES = ("torch", "transformers", "deepspeed", "ray", "peft")


def export(
    task: Task, model: Any, state: dict[str, torch.Tensor], steps: int, summary: dict[str, Any]
) -> None:
    """Writes weights (safetensors, in the dtype they were trained in), config, tokenizer, generation config, card.

    `model` and `state` are the engine's `module` and `whole_state`, `summary` is the last line of the metrics. An
    earlier export is replaced.
    """
    output = task.job.output
    partial = output.parent / f".{output.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    lora = task.job.config.lora
    if lora is None:
        model.config.use_cache = True
        model.save_pretrained(partial, state_dict=state)
    elif lora.merge:
        save_merged(partial, task.model, model, state, training_dtype(task.job.config))
    else:
        save_adapters(partial, model, state)
    AutoTokenizer.from_pretrained(task.model).save_pretrained(partial)
    record = _record(task, steps, summary)
    (partial / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(_card(task, record), encoding="utf-8")
    old = output.parent / f".{output.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    partial.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _record(task: Task, steps: int, summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "fingerprint": task.fingerprint,
        "name": task.name,
        "steps": steps,
        "student": task.job.config.student,
        "config": json.loads(task.job.config.model_dump_json()),
        "examples": {
            "path": str(task.job.examples),
            "sha256": data_fingerprint(task.job.examples),
            "manifest": _data_manifest(task.job.examples),
        },
        "last_step": summary,
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _data_manifest(examples: Path) -> Any:
    """The build stage's manifest, if one lies with the examples or one folder up."""
    folder = examples if examples.is_dir() else examples.parent
    for candidate in (folder / "manifest.json", folder.parent / "manifest.json"):
        if candidate.is_file():
            return json.loads(candidate.read_text(encoding="utf-8"))
    return None


def _card(task: Task, record: dict[str, Any]) -> str:
    config = task.job.config
    learned = "all weights"
    if config.lora is not None:
        merged = "merged" if config.lora.merge else "not merged: load with peft"
        learned = f"LoRA adapters of rank {config.lora.rank}, {merged}"
    return f"""# {task.name}

A student of step-wise knowledge distillation, trained by steper_ray.

| | |
|---|---|
| method | {config.method}, weighting {config.weighting} |
| started from | `{config.student}` |
| learned | {learned} |
| optimiser steps | {record["steps"]} |
| learning rate, seed | {config.lr}, {config.seed} |
| examples | sha256 `{record["examples"]["sha256"]}` |

`{PROVENANCE}` holds the whole config, the data's manifest and the package versions.
"""
