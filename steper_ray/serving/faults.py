"""Log lines for unexpected errors: where they were raised, never their messages, which may repeat a question."""

from __future__ import annotations

import traceback

_CAUSES = 4  # most errors of one chain that are shown


def trace_of(error: BaseException) -> str:
    """The error's kind and stack, then those of its causes. No message and no value."""
    shown: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(shown) < _CAUSES:
        shown.append(f"{type(cause).__name__}\n{''.join(traceback.format_tb(cause.__traceback__))}".rstrip())
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\ncaused by ".join(shown)
