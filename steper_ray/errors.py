"""Errors a user can mend: the message names the file, the line or field, and the fix.

The command line prints them without a traceback. Knows no other module.
"""

from __future__ import annotations


class SteperError(Exception):
    """Base of every error that the project raises on purpose."""


class DataError(SteperError):
    """A corpus, question or example file that cannot be used."""


class ModelError(SteperError):
    """A model folder or name that cannot be used."""


class RetrievalError(SteperError):
    """The index is missing, stale or broken, or a search failed."""


class GenerationError(SteperError):
    """The engine could not answer one request; the others are not concerned."""


class PromptTooLongError(GenerationError):
    """The prompt and the completion do not fit into the engine's context."""


class EngineDeadError(GenerationError):
    """The engine itself is gone: no request will succeed any more."""


class TrainingError(SteperError):
    """Training cannot start or go on."""
