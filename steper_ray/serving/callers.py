"""The callers of a running server: its token, and its file of keys as the file is now. No HTTP, no Ray."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from time import sleep

from steper_ray.config.serve import CallerLimits
from steper_ray.serving.keys import KeyEntry, Keyring, KeysError, load_keys, make_keyring

logger = logging.getLogger(__name__)

#: The file is looked at when somebody asks, and no more often than this.
LOOK_SECONDS = 1.0
#: A file that changes is read when it has not changed for so long: an editor may still be writing it.
SETTLE_SECONDS = 0.05
_SETTLE_LOOKS = 20

_Signature = tuple[int, ...] | None


class Callers:
    """Who may ask now.

    `entries` are those that the service was built with: they hold where `path` is no file of this machine. A file that
    cannot be used leaves the keys that were read before, and the log says once what is wrong with it; one that is
    empty leaves none, and does not open the server.
    """

    def __init__(
        self,
        token: str | None,
        entries: Sequence[KeyEntry] = (),
        default: CallerLimits | None = None,
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._token, self._default, self._path, self._clock = token, default, path, clock
        self._keyring = make_keyring(token, entries, default)
        self._seen: _Signature = ()
        if path is not None:
            self._look(path)
        self._looked = clock()

    @property
    def guarded(self) -> bool:
        """Whether a key must be shown; that does not change."""
        return self._keyring.guarded

    async def now(self) -> Keyring:
        """By which a request is judged; what the file says counts a second later at most."""
        if self._path is not None and self._clock() - self._looked >= LOOK_SECONDS:
            self._looked = self._clock()  # before the wait: the others go on with what was read before
            await asyncio.to_thread(self._look, self._path)
        return self._keyring

    def _look(self, path: Path) -> None:
        seen = _signature(path)
        if seen == self._seen:
            return
        if self._seen != ():  # it was changed, perhaps a moment ago
            seen = _settled(path, seen)
        try:
            entries = load_keys(path, may_be_empty=True)
        except KeysError as error:
            logger.error("%s; the keys that were read before stay in force", error)
        else:
            keyring = make_keyring(self._token, entries, self._default)
            self._keyring = dataclasses.replace(keyring, guarded=True)
            logger.info("%s: %d keys", path, len(entries))
        self._seen = seen


def _settled(path: Path, seen: _Signature) -> _Signature:
    for _ in range(_SETTLE_LOOKS):
        sleep(SETTLE_SECONDS)
        before, seen = seen, _signature(path)
        if seen == before:
            break
    return seen


def _signature(path: Path) -> _Signature:
    """What changes with the file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
