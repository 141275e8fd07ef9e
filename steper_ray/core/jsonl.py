"""Logs of one JSON object a line, which another process may be writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steper_ray.core.errors import DataError


def read_lines(path: Path) -> list[str]:
    """The whole lines of a log; a last line that is still being written is omitted."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return text.split("\n")[:-1]  # JSON text may hold the other line ends that `str.splitlines` knows


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log of JSON objects. Raises DataError for a damaged one."""
    records = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: damaged ({error}): delete the line") from error
    return records
