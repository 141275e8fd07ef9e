"""What a build was made from: everything that decides what a trajectory says, and nothing that does not.

Two runs with the same identity may share shards; batch sizes, actors and paths are no part of it. Reads the
model's folder, knows no engine.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import steper_ray
from steper_ray.config import Config, EngineConfig, ReasoningConfig
from steper_ray.errors import DataError
from steper_ray.models import resolve_model
from steper_ray.schema import SCHEMA_VERSION

#: Raised by hand when a change of the code makes the same inputs give other trajectories.
TRAJECTORY_VERSION = 2
_SAMPLED = 1 << 20  # bytes read at both ends of a weights file
_ENGINE_FIELDS = {"kind", "model", "tokenizer", "dtype", "max_model_len", "url"}


def run_identity(config: Config, corpus_fingerprint: str, first_sample: int = 0) -> dict[str, Any]:
    """Of one teacher: teacher, reasoning, retrieval, corpus and code versions, as plain JSON."""
    identity: dict[str, Any] = {
        "versions": {"schema": SCHEMA_VERSION, "trajectory": TRAJECTORY_VERSION},
        "corpus": corpus_fingerprint,
        "teacher": config.build.teacher,
        "retrieval": config.retrieval.model_dump(mode="json", include={"kind", "k1", "b"}),
        "reasoning": _reasoning(config.reasoning),
    }
    if config.build.teacher == "engine":
        identity["engine"] = engine_identity(config.engine)
        identity["sampling"] = config.sampling.model_dump(mode="json")
        identity["samples"] = config.build.samples
        if config.build.samples > 1 or config.build.self_correct:
            # Who is asked again depends on what is right.
            fields = {"match", "self_correct"}
            identity["again"] = config.build.model_dump(mode="json", include=fields)
            identity["again"]["until_right"] = config.build.until_right
        if first_sample:
            identity["first_sample"] = first_sample
    return identity


def digest(value: Any) -> str:
    """SHA-256 of a plain value, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 over the package's own sources: which code wrote a manifest, without version control too."""
    root = Path(steper_ray.__file__).parent
    total = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        total.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


def _reasoning(config: ReasoningConfig) -> dict[str, Any]:
    """The settings, with the demonstrations file by its content: an edited prompt is another prompt.

    Those of the stopping policy are left out: a build always runs at fixed steps.
    """
    settings = config.model_dump(mode="json", exclude={"demonstrations", "stop", "confidence"})
    if config.demonstrations is not None:
        try:
            settings["demonstrations"] = hashlib.sha256(config.demonstrations.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(
                f"reasoning.demonstrations: {config.demonstrations} cannot be read: {error}"
            ) from error
    return settings


def engine_identity(config: EngineConfig) -> dict[str, Any]:
    """The settings, with a local model by its files, so that weights trained anew under an old path count."""
    settings = config.model_dump(mode="json", include=_ENGINE_FIELDS)
    if config.kind != "openai":
        folder = Path(resolve_model(config.model))
        if folder.is_dir():
            settings["files"] = {
                file.name: _sample(file) for file in sorted(folder.iterdir()) if file.is_file()
            }
    return settings


def _sample(file: Path) -> str:
    """Size and both ends of a file: weights of many GB are told apart without reading them all."""
    size = file.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        total.update(stream.read(_SAMPLED))
        stream.seek(max(size - _SAMPLED, 0))
        total.update(stream.read(_SAMPLED))
    return total.hexdigest()
