"""One hash of a plain value, of a file, of a folder and of passages: what ties results to what they were made from.

- A folder's fingerprint covers every byte of its files: two checkpoints that differ in one byte differ here.
- What is read from files is read once: it is kept under their paths, sizes, times and inodes, in this process and in
  the user's cache folder, until one of them changes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from steper_ray.core.copies import cache_folder
from steper_ray.core.errors import StorageError
from steper_ray.core.files import file_sha256, write_text
from steper_ray.core.storage import is_remote, state

#: Smaller files are read again each time.
_WORTH_KEEPING = 1 << 20  # bytes
#: A file that changed within this time may change again without a change of its times: it is read again.
_SETTLED_NS = 2_000_000_000
#: What an export writes about itself and what changes no answer.
_ABOUT = ("README.md", "SHA256SUMS", "steper.json")

_known: dict[str, str] = {}


def digest(value: Any) -> str:
    """SHA-256 of a plain JSON value, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash64(text: str) -> int:
    """64 bits of a text's BLAKE2b, the same on every machine: a number that stands for it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file, read again only when its size, times or inode have changed."""
    if not is_remote(path) and path.stat().st_size < _WORTH_KEEPING:
        return file_sha256(path)
    return remembered("sha256", lambda: file_sha256(path), [path])


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


class Passages(Protocol):
    """The bytes that a passage's fingerprint is made of."""

    @property
    def id(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...


class PassageDigest:
    """SHA-256 over id, title and text of passages in their order; each field counts with its length."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, passage: Passages) -> None:
        fields = [field.encode() for field in (passage.id, passage.title, passage.text)]
        self._digest.update(b"".join(part for one in fields for part in (len(one).to_bytes(8, "big"), one)))

    def hex(self) -> str:
        return self._digest.hexdigest()


def passages_fingerprint(passages: Iterable[Passages]) -> str:
    """The fingerprint of a corpus: 64 hex digits that change with any id, title, text or the order."""
    found = PassageDigest()
    for passage in passages:
        found.add(passage)
    return found.hex()


def remembered(key: Any, compute: Callable[[], str], files: Iterable[Path] = ()) -> str:
    """The result of `compute`, cached until the key, a plain JSON value, or one of the files changes.

    `compute` must depend on nothing else. It is kept in this process and in the user's cache folder, but not where a
    file has changed just now.
    """
    paths = [path.resolve() for path in files]
    before = [state(path) for path in paths]
    name = digest([key, before])
    if (found := _known.get(name) or _recall(name)) is None:
        found = compute()
        if not _is_settled(before):
            return found
        with suppress(StorageError, RuntimeError):  # without the cache folder it is computed again
            write_text(_cache() / name, json.dumps([found, digest([name, found])]))
    _known[name] = found
    return found


def _is_settled(states: Iterable[tuple[Any, ...]]) -> bool:
    """A store's file is: its state follows its content."""
    now = time.time_ns()
    return all(
        now - max(mtime, ctime) > _SETTLED_NS
        for mtime, ctime in (one[-2:] for one in states if len(one) == 5)
    )


def _recall(name: str) -> str | None:
    """The cached value of a name; None for none, or for a damaged file."""
    try:
        found, check = json.loads((_cache() / name).read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError, TypeError):
        return None
    return found if isinstance(found, str) and check == digest([name, found]) else None


def _cache() -> Path:
    """Raises RuntimeError for a user without a home."""
    return cache_folder() / "fingerprints"
