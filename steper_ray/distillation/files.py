"""Files that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a file under another name, which then takes the place of `path`: no reader sees half of it."""
    fresh = path.with_name(f"{path.name}.writing")
    write(fresh)
    fresh.replace(path)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))
