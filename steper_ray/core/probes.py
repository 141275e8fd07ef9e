"""Probes of a model: short prompts as token ids, with the next token it gives and that token's log-probability.

A training writes them beside the weights. An engine of another implementation that loads the folder asks the same
prompts and compares (generation/agreement.py). Knows errors and files alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from steper_ray.core.errors import ModelError
from steper_ray.core.files import write_text

PROBES = "agreement.json"


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt, the most probable next token after it, and its natural log-probability."""

    prompt: tuple[int, ...]
    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Probes:
    """The probes of one model and the `dtype` (`float32`, `bfloat16`) that they were computed in."""

    dtype: str
    probes: tuple[Probe, ...]


def write_probes(folder: Path, probes: Probes) -> None:
    """Writes them into a model's folder. Raises StorageError."""
    write_text(folder / PROBES, json.dumps(asdict(probes)) + "\n")


def read_probes(folder: Path) -> Probes | None:
    """The probes of a model's folder, or None without any. Raises ModelError for a file that is none."""
    path = folder / PROBES
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        probes = tuple(
            Probe(tuple(map(int, probe["prompt"])), int(probe["token"]), float(probe["logprob"]))
            for probe in record["probes"]
        )
        return Probes(str(record["dtype"]), probes)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path}: cannot be read as a model's probes ({type(error).__name__}: {error}): export the student again, "
            "or delete the file to go without the check"
        ) from error
