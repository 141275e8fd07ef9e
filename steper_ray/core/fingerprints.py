"""One hash of a plain value, of a file and of a folder: what ties results to what they were made from.

- A folder's fingerprint covers every byte of its files: two checkpoints that differ in one byte differ here.
- A file is read once: its SHA-256 is kept under its path, size, modification time and inode, in this process and in
  the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from steper_ray.core.files import file_sha256, write_text
from steper_ray.errors import StorageError

#: Smaller files are read again by each process; larger ones are looked up in the cache folder.
_WORTH_KEEPING = 1 << 20  # bytes
#: What an export writes about itself and what changes no answer.
_ABOUT = ("README.md", "SHA256SUMS", "steper.json")


def digest(value: Any) -> str:
    """SHA-256 of a plain JSON value, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file, read again only when its size, modification time or inode has changed."""
    path = path.resolve()
    stat = path.stat()
    return _file_fingerprint(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of all files directly in a folder."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name not in _ABOUT)
    return digest({file.name: file_fingerprint(file) for file in files if not file.name.startswith(".")})


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 over the package's sources: which code wrote a manifest, without version control too."""
    root = Path(__file__).parents[1]
    total = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        total.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _file_fingerprint(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    if size < _WORTH_KEEPING:
        return file_sha256(path)
    kept = _cache() / digest([str(path), size, mtime_ns, inode])
    with suppress(OSError):
        text = kept.read_text(encoding="utf-8")
        if len(text) == 64:
            return text
    found = file_sha256(path)
    with suppress(StorageError):  # a cache: without it the file is read again
        write_text(kept, found)
    return found


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "steper_ray" / "fingerprints"
