"""Files that are there whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a file under another name, which then takes the place of `path`: no reader sees half of it."""
    fresh = path.with_name(f"{path.name}.writing")
    write(fresh)
    fresh.replace(path)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def replace_folder(fresh: Path, folder: Path) -> None:
    """`fresh`, which lies beside `folder`, takes its place as a whole; what was there is removed."""
    # Named after `fresh`: beside a folder that a user named, `folder.old` may be a thing of theirs.
    old = fresh.with_name(f"{fresh.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
