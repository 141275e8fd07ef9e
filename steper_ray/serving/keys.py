"""Who may ask: named keys, known by their hash alone, and the limits of each.

A file of keys holds no secret: each entry has a key's name, the SHA-256 of the key (keys are random, so a fast hash
does) and limits. `new_key` makes one. It knows no HTTP and no Ray.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from steper_ray.config.serve import CallerLimits
from steper_ray.core.files import write_file
from steper_ray.errors import SteperError, StorageError

#: Names of callers that have no entry: the one token, and clients of this machine where no key is asked for.
TOKEN, LOOPBACK = "token", "loopback"


class KeysError(SteperError):
    """A file of keys that cannot be used; the message names the file, the entry and the fix."""


class KeyEntry(CallerLimits):
    """One entry of the file."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Who it is, in logs and metrics."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the key, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what he may ask."""

    name: str
    limits: CallerLimits = field(default_factory=CallerLimits)


@dataclass(frozen=True, slots=True)
class Keyring:
    """All callers. Where it is not `guarded` there is but one, this machine's clients."""

    keys: tuple[tuple[bytes, Caller], ...] = ()
    """The SHA-256 of each key, and whose it is."""
    loopback: Caller = Caller(LOOPBACK)
    guarded: bool = False
    """Whether a key must be shown, even if there is none (any more)."""

    def find(self, shown: bytes) -> Caller | None:
        """Whose key this is. Takes as long for one key as for another: all are compared, and by their hashes."""
        digest, found = hashlib.sha256(shown).digest(), None
        for known, caller in self.keys:
            if hmac.compare_digest(digest, known):
                found = caller
        return found


def make_keyring(
    token: str | None, entries: Sequence[KeyEntry] = (), default: CallerLimits | None = None
) -> Keyring:
    """The callers of a server: its token, if it has one, and its file's entries; `default` is what they do not say."""
    default = default or CallerLimits()
    keys = [(bytes.fromhex(entry.sha256), Caller(entry.name, _limits(entry, default))) for entry in entries]
    if token is not None:
        keys.insert(0, (hashlib.sha256(token.encode()).digest(), Caller(TOKEN, default)))
    return Keyring(tuple(keys), Caller(LOOPBACK, default), guarded=bool(keys))


def _limits(entry: KeyEntry, default: CallerLimits) -> CallerLimits:
    own = {name: getattr(entry, name) for name in CallerLimits.model_fields}
    return default.model_copy(update={name: value for name, value in own.items() if value is not None})


def load_keys(path: Path | None, *, may_be_empty: bool = False) -> tuple[KeyEntry, ...]:
    """The entries of a YAML or JSON file; none where there is no file. Raises KeysError."""
    return () if path is None else _parse(_read(path), str(path), may_be_empty=may_be_empty)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise KeysError(f"{path}: the file of keys cannot be read: {why}") from error


def _list(text: str, where: str) -> list[tuple[str, Any]]:
    """Each value with its place, `where` and its line."""
    try:
        loader = yaml.SafeLoader(text)  # JSON is YAML too
        node = loader.get_single_node()
        loaded = None if node is None else loader.construct_document(node)
    except Exception as error:  # PyYAML lets pass what its readers of numbers and dates raise
        mark = getattr(error, "problem_mark", None)
        # The text is not repeated: somebody may have put a key there.
        raise KeysError(f"{where}{f':{mark.line + 1}' if mark else ''}: neither YAML nor JSON") from None
    if loaded is None:
        return []
    if not isinstance(node, yaml.SequenceNode):
        raise KeysError(
            f"{where}: must be a list of entries with name and sha256; `steper key NAME` makes one"
        )
    places = (f"{where}:{child.start_mark.line + 1}: entry {n}" for n, child in enumerate(node.value, 1))
    return list(zip(places, loaded, strict=True))


def _parse(text: str, where: str, *, may_be_empty: bool = False) -> tuple[KeyEntry, ...]:
    values = _list(text, where)
    entries = tuple(_entry(value, place) for place, value in values)
    if not entries and not may_be_empty:
        raise KeysError(f"{where}: no key in it; `steper key NAME --file {where}` adds one")
    for one_field in ("name", "sha256"):
        before = set[str]()
        for (place, _), entry in zip(values, entries, strict=True):
            if getattr(entry, one_field) in before:
                raise KeysError(f"{place}: its {one_field} is that of an earlier entry; drop one")
            before.add(getattr(entry, one_field))
    return entries


def _entry(value: Any, place: str) -> KeyEntry:
    name = value.get("name") if isinstance(value, dict) else None
    place += f" ('{name}')" if isinstance(name, str) and len(name) <= 64 else ""
    if isinstance(value, dict) and "key" in value:
        raise KeysError(f"{place}: key: a key itself must not lie in a file; write the sha256 of it")
    try:
        entry = KeyEntry.model_validate(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        path = ".".join(map(str, first["loc"])) or "entry"
        fix = _FIXES.get(path) or f"the fields are: {', '.join(KeyEntry.model_fields)}"
        raise KeysError(f"{place}: {path}: {first['msg']}; {fix}") from None
    if entry.name in (TOKEN, LOOPBACK):
        raise KeysError(f"{place}: name: '{entry.name}' is the server's own; choose another one")
    return entry


_FIXES = {
    "name": "up to 64 letters, digits and . _ -",
    "sha256": "64 hexadecimal digits in small letters, as `steper key NAME` writes them",
    **dict.fromkeys(CallerLimits.model_fields, "a whole number of 1 or more, or leave it out for no limit"),
}


def new_key(name: str, **limits: int | None) -> tuple[str, KeyEntry]:
    """A random key of 256 bits, and its entry. Raises KeysError."""
    key = secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    given = {field_name: value for field_name, value in limits.items() if value is not None}
    return key, _entry({"name": name, "sha256": digest, **given}, "the new key")


def entry_yaml(entry: KeyEntry) -> str:
    """The entry as a file has it, a list of one."""
    values = {name: getattr(entry, name) for name in ("name", "sha256", *CallerLimits.model_fields)}
    return yaml.safe_dump(
        [{name: value for name, value in values.items() if value is not None}], sort_keys=False
    )


def add_key(path: Path, entry: KeyEntry) -> None:
    """Puts an entry behind those of a file, or into a new one that its owner alone may read. Raises KeysError."""
    text = _read(path) if path.exists() else ""
    before = [value for _, value in _list(text, str(path))]
    if path.suffix == ".json" or text.lstrip().startswith("["):
        text = json.dumps([*before, *yaml.safe_load(entry_yaml(entry))], indent=2) + "\n"
    else:  # as text: comments stay
        text = text + ("" if not text or text.endswith("\n") else "\n") + entry_yaml(entry)
    _parse(text, str(path))
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600

    def write(fresh: Path) -> None:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)

    try:
        write_file(path, write)
    except StorageError as error:
        raise KeysError(f"{path}: cannot be written: {error.__cause__}") from error
