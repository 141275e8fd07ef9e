"""The seal of a build's data: the SHA-256 of each of its files, what they were made of, and a check of the seal itself.

Nothing below data/ is shown, exported or taken for finished unless it is what the seal names. Trajectory shards have
their own manifests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steper_ray.core.errors import DataError
from steper_ray.core.files import write_text
from steper_ray.core.fingerprints import digest, file_fingerprint

SEAL = "report.json"
_SEALED = ("kept/*.parquet", "step_scores/*.parquet", "dropped.*", "owed.jsonl", "manifest.json")
_AGAIN = "Build again: finished shards are kept"


def seal(folder: Path, made_of: str, report: dict[str, Any]) -> None:
    """Writes the seal, after everything else. Raises StorageError."""
    files = {
        path.relative_to(folder).as_posix(): file_fingerprint(path)
        for pattern in _SEALED
        for path in sorted(folder.glob(pattern))
    }
    sealed = json.loads(json.dumps({"made_of": made_of, "report": report, "files": files}))
    write_text(folder / SEAL, json.dumps({**sealed, "check": digest(sealed)}) + "\n")


def read_seal(folder: Path) -> dict[str, Any]:
    """The seal as it was written. Raises DataError where it is missing or was changed."""
    path = folder / SEAL
    try:
        sealed: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if sealed.pop("check") == digest(sealed):
            return sealed
    except FileNotFoundError as error:
        raise DataError(f"{path}: no data set here: run the build stage with this run_dir first") from error
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    raise DataError(f"{path}: damaged or of another version. {_AGAIN}")


def damaged(folder: Path, sealed: dict[str, Any], name: str) -> str | None:
    """The fault of one of the sealed files, or None."""
    try:
        same = file_fingerprint(folder / name) == sealed["files"].get(name)
    except OSError as error:
        return f"{folder / name}: cannot be read: {error.strerror}. {_AGAIN}"
    return None if same else f"{folder / name}: changed since it was written (its SHA-256 differs). {_AGAIN}"
