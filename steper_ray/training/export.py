"""A trained student as a Hugging Face folder that transformers and vLLM load as it is, with its provenance.

Of a student of adapters either that, merged, or the adapters' folder.

The folder is written under a temporary name and renamed, so it is whole or not there; `SHA256SUMS`, its last file,
lists the others. Runs on rank 0 alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from steper_ray.core.copies import local, local_name
from steper_ray.core.errors import TrainingError, in_one_line
from steper_ray.core.files import new_folder, remove_leftovers
from steper_ray.core.probes import Probes, write_probes
from steper_ray.core.sums import PROVENANCE, sums_damage, write_sums
from steper_ray.pretrained import load_shape, load_tokenizer
from steper_ray.prompts import end_of, mark_style
from steper_ray.schema.records import LookAt, StepRecord
from steper_ray.training.job import Task
from steper_ray.training.lora import save_adapters, save_merged
from steper_ray.training.memory import training_dtype

#: One look at the held-out examples, or the best and the last of them.
Looks = LookAt | Mapping[str, LookAt | None]
_PACKAGES = ("torch", "transformers", "deepspeed", "ray", "peft")


def export(
    task: Task,
    model: Any,
    state: dict[str, torch.Tensor],
    steps: int,
    summary: StepRecord,
    probes: Probes | None = None,
    *,
    folder: Path | None = None,
    validation: Looks | None = None,
) -> None:
    """Writes weights (safetensors, in the dtype they were trained in), config, tokenizer, generation config, card.

    `model` and `state` are the engine's `module` and `whole_state`, `summary` is the last line of the metrics,
    `probes` are what other engines compare themselves with,
    `validation` what is known of held-out examples. `folder` is the job's output unless said otherwise. What lies there
    is replaced.
    """
    with _replaced(folder or task.job.output) as partial:
        lora, trusted = task.job.config.lora, task.job.config.trust_remote_code
        if lora is None:
            model.config.use_cache = True
            model.save_pretrained(partial, state_dict=state)
        elif lora.merge:
            save_merged(partial, task.model, model, state, training_dtype(task.job.config), trusted)
        else:
            save_adapters(partial, model, state)
        tokenizer = load_tokenizer(task.model, trusted)
        end = end_of(tokenizer, task.job.prompt)
        mark_style(tokenizer, task.job.prompt)
        tokenizer.save_pretrained(partial)
        if lora is None or lora.merge:
            generation_config(task.model, end, trusted).save_pretrained(partial)
        if probes is not None:
            write_probes(partial, probes)
        _describe(partial, task, _record(task, steps, summary, validation))


def generation_config(model: str, end: int, trusted: bool = False) -> GenerationConfig:
    """That of a model folder or name, with `end`, which the student learns to write behind a step, among its ends.

    Otherwise what generates by this file alone would never stop. Raises TrainingError where transformers would refuse
    to write it, which is found out before a training and not after it.
    """
    try:
        config = GenerationConfig.from_pretrained(local_name(model))
    except OSError:  # it has none
        config = GenerationConfig.from_model_config(load_shape(model, trusted))
    stated = config.eos_token_id
    ends = [stated] if isinstance(stated, int) else list(stated or [])
    if end not in ends:
        config.eos_token_id = [end, *ends] if ends else end
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise TrainingError(
            f"{model}: its generation_config.json contradicts itself, and transformers would not write the student's: "
            f"{in_one_line(error)}"
        ) from error
    return config


def export_kept(
    task: Task, kept: Path, step: int, steps: int, summary: StepRecord, validation: Looks
) -> None:
    """As `export`, with the student of an earlier `step` that `export` wrote to the folder `kept`, which stays.

    Raises TrainingError where that one is damaged.
    """
    if (wrong := sums_damage(kept)) is not None:
        raise TrainingError(
            f"{kept}: the best student so far is damaged: {wrong}. Bring the file back, or delete {kept.parent} and "
            f"this job's checkpoints below {kept.parents[1] / 'ray'} to train again from the start"
        )
    with _replaced(task.job.output) as partial:
        own = shutil.ignore_patterns(PROVENANCE, "README.md")
        shutil.copytree(local(kept), partial, ignore=own, copy_function=_link, dirs_exist_ok=True)
        _describe(partial, task, _record(task, steps, summary, validation) | {"exported_step": step})


def _link(source: str, target: str) -> None:
    """A second name for a large file, which is not written any more; a copy on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def _replaced(output: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `output` once it is filled, with the sums of its files.

    The caller holds the job's lock.
    """
    remove_leftovers(output)
    with new_folder(output) as fresh:
        yield fresh
        write_sums(fresh)


def _describe(folder: Path, task: Task, record: dict[str, Any]) -> None:
    (folder / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(task, record), encoding="utf-8")


def _record(task: Task, steps: int, summary: StepRecord, validation: Looks | None) -> dict[str, Any]:
    return {
        "fingerprint": task.fingerprint,
        "name": task.name,
        "steps": steps,
        "exported_step": steps,
        "student": task.job.config.student,
        "config": json.loads(task.job.config.model_dump_json()),
        "trajectories": {
            "path": str(task.job.trajectories),
            "sha256": task.sources["trajectories"],
            "manifest": _data_manifest(task.job.trajectories),
        },
        "last_step": summary,
        "validation": validation,
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _data_manifest(trajectories: Path) -> Any:
    """The build stage's manifest, if one lies with the trajectories or one folder up."""
    folder = trajectories if trajectories.is_dir() else trajectories.parent
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
| optimiser steps | {_steps(record)} |
| learning rate, seed | {config.lr}, {config.seed} |
| trajectories | sha256 `{record["trajectories"]["sha256"]}` |

`{PROVENANCE}` holds the whole config, the data's manifest and the package versions.
"""


def _steps(record: dict[str, Any]) -> str:
    steps, kept = record["steps"], record["exported_step"]
    return str(steps) if kept == steps else f"{kept} of {steps}, the best on held-out examples"
