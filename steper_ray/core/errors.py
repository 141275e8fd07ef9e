"""Errors that a user can correct: the message names the file, the line or field, and the fix.

The command line prints them without a traceback and exits with their `exit_status`. Knows no other module.
"""

from __future__ import annotations

import re

#: What Ray says, over thirty lines, of processes that its memory monitor ended.
_OUT_OF_MEMORY = re.compile(
    r"low on memory.*?IP: ([^,)]+).*?was ([\d.]+) ?GB used / ([\d.]+) ?GB", re.DOTALL | re.IGNORECASE
)


def in_one_line(error: object, limit: int = 300) -> str:
    """What a library's error says, in one line of at most `limit` characters; its type where it says nothing.

    Where Ray ended a process because its node ran out of memory, the line says just that.
    """
    said = str(error)
    if found := _OUT_OF_MEMORY.search(said):
        node, used, most = found.groups()
        return f"node {node} ran out of memory ({used} of {most} GB), and Ray ended processes there"
    return " ".join(said.split())[:limit].strip() or type(error).__name__


class SteperError(Exception):
    """Base of every error that the project raises on purpose."""

    exit_status = 2
    report = ""
    """A summary of what the command did before it failed, for the console."""


class DataError(SteperError):
    """A corpus, question or example file that cannot be used."""


class NothingKeptError(DataError):
    """A build whose filters refused every trajectory: a training would have nothing to learn from."""

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message)
        self.report = report


class ModelError(SteperError):
    """A model folder or name that cannot be used."""


class RetrievalError(SteperError):
    """The index is missing, stale or broken, or a search failed."""


class StorageError(SteperError):
    """A folder cannot be written: the disk is full, read-only or gone."""


class LockedError(SteperError):
    """Another process does the same work in the same run_dir."""


class OwedError(SteperError):
    """More questions than `max_failed` allows are still owed; what is done is kept and the same command asks the rest.

    Its exit status is EX_TEMPFAIL: running the command again may succeed.
    """

    exit_status = 75

    def __init__(self, message: str, report: str = "") -> None:
        super().__init__(message)
        self.report = report


class GenerationError(SteperError):
    """The engine could not answer one request this time; the same request may succeed later."""


class RefusedError(GenerationError):
    """The engine refuses this request for what it says: it never succeeds, and others are not concerned."""


class PromptTooLongError(RefusedError):
    """The prompt and the completion do not fit into the engine's context."""


class EngineDeadError(GenerationError):
    """The engine itself is gone: no request will succeed any more."""


class EngineSetupError(EngineDeadError):
    """An endpoint refuses every request until a setting changes: its address, key, model or route."""


class TrainingError(SteperError):
    """Training cannot start or continue."""
