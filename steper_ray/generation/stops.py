"""Stop strings in a growing text. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Looks for stop strings in a growing text. Text that may be the start of one is held back."""

    __slots__ = ("_held", "_stop")

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(string for string in stop if string)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text to give out, and whether a stop string came (it and what follows are not given out)."""
        if not self._stop or not text:
            return text, False
        text = self._held + text
        found = [at for string in self._stop if (at := text.find(string)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        cut = len(text) - max(_overlap(text, string) for string in self._stop)
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """The text held back, when no more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """The length of the longest end of `text` with which `string` begins."""
    for size in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:size]):
            return size
    return 0
