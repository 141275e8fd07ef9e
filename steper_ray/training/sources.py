"""The Parquet files of trajectories that a job learns from, verified against the manifest of their build.

Knows files alone: no tokenizer, no Ray.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from steper_ray.core.errors import TrainingError
from steper_ray.core.fingerprints import file_fingerprint

_AGAIN = "Build again: finished shards are kept"


class Source(NamedTuple):
    """One Parquet file of trajectories and its SHA-256."""

    path: Path
    sha256: str


def sources_of(path: Path) -> list[Source]:
    """The file, or all files of a folder in the order of their names.

    Raises TrainingError, naming the file and the fix, where there is none, and where a build's manifest is beside or
    above them and one is missing, changed or not of that build.
    """
    if not path.exists():
        raise TrainingError(f"{path}: no such file or folder of trajectories: run the build stage first")
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise TrainingError(f"{path}: no *.parquet file below this folder: run the build stage first")
    found = [Source(file, file_fingerprint(file)) for file in files]
    folder = path if path.is_dir() else path.parent
    for manifest in (folder / "manifest.json", folder.parent / "manifest.json"):
        if wanted := _checksums(manifest):
            _verify(found, wanted, manifest, folder if path.is_dir() else None)
            break
    return found


def data_fingerprint(path: Path) -> str:
    """SHA-256 over the Parquet files' names and contents. Raises TrainingError as `sources_of`."""
    lines = "".join(f"{source.path.name} {source.sha256}\n" for source in sources_of(path))
    return hashlib.sha256(lines.encode()).hexdigest()


def _checksums(manifest: Path) -> dict[str, str]:
    """File name -> SHA-256 as the build noted them; empty where this is no manifest of a build."""
    if not manifest.is_file():
        return {}
    try:
        noted = json.loads(manifest.read_text(encoding="utf-8")).get("kept_sha256")
    except (ValueError, AttributeError) as error:
        raise TrainingError(f"{manifest}: not a build's manifest: {error}. {_AGAIN}") from error
    return noted if isinstance(noted, dict) else {}


def _verify(found: list[Source], wanted: dict[str, str], manifest: Path, whole: Path | None) -> None:
    """`whole` is the folder that must hold all files of the manifest."""
    for path, sha256 in found:
        if path.name not in wanted:
            raise TrainingError(
                f"{path}: not in {manifest}: this is no file of kept trajectories, or one of another build. Train on "
                f"the build's `kept` folder. {_AGAIN}"
            )
        if sha256 != wanted[path.name]:
            raise TrainingError(
                f"{path}: not what the build wrote (its SHA-256 is not that of {manifest}). {_AGAIN}"
            )
    missing = wanted.keys() - {path.name for path, _ in found}
    if whole is not None and missing:
        raise TrainingError(f"{whole / min(missing)}: missing, {manifest} names it. {_AGAIN}")
