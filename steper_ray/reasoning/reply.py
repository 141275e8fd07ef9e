"""A chat model's reply as it comes: its thinking is set apart, and the framework's stop strings end what follows.

A model may think aloud (<think> ... </think>) before it replies: that is neither chain nor query, and is counted. Stop
strings hold for the reply alone, so they are looked for here and not by the engine. Pure: chunks in, chunks out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from steper_ray.generation.base import Chunk
from steper_ray.generation.stops import StopStrings

#: How models open and close their thoughts.
_THOUGHTS = {"<think>": "</think>", "<thinking>": "</thinking>", "[THINK]": "[/THINK]"}


class Reply:
    """Takes a stream's chunks and gives back what is reply. Blanks in front of it are dropped."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = StopStrings(stop)
        self._held = ""  # text that may be thought or reply
        self._close = ""  # what ends the thought at hand
        self._begun = False  # the reply has
        self.stopped = False
        """Whether a stop string came: what follows is no part of the reply."""
        self.thought = 0
        """Tokens of thinking, or chunks where the engine gives no token ids."""

    @property
    def thinking(self) -> bool:
        """Whether it thinks, and has not replied yet."""
        return not self._begun and (bool(self._close) or self.thought > 0)

    def push(self, chunk: Chunk) -> Chunk:
        """The chunk with the part of its text that is reply; without tokens where none is."""
        if chunk.thinking:
            self.thought += len(chunk.token_ids) or 1
            return replace(chunk, text="", token_ids=(), logprobs=(), top=())
        if self._begun:
            text = chunk.text
        elif not (text := self._opened(chunk.text)):
            if self._close:
                self.thought += len(chunk.token_ids) or bool(chunk.text)
                return replace(chunk, text="", token_ids=(), logprobs=(), top=())
            return replace(chunk, text="")
        shown, self.stopped = self._stop.push(text)
        return replace(chunk, text=shown)

    def flush(self) -> str:
        """The text held back, when no more chunks come."""
        held = "" if self._begun or self._close else self._held.lstrip()
        self._held = ""
        shown, stopped = self._stop.push(held)
        self.stopped |= stopped
        return shown + ("" if self.stopped else self._stop.flush())

    def _opened(self, text: str) -> str:
        """The text from where the reply begins; empty as long as it has not."""
        self._held += text
        while True:
            if self._close:
                _, closed, rest = self._held.partition(self._close)
                if not closed:
                    self._held = self._held[-len(self._close) :]
                    return ""
                self._held, self._close = rest, ""
            held = self._held.lstrip()
            opener = next((opener for opener in _THOUGHTS if held.startswith(opener)), None)
            if opener is not None:
                self._held, self._close = held[len(opener) :], _THOUGHTS[opener]
                continue
            if not held or any(opener.startswith(held) for opener in _THOUGHTS):
                return ""
            self._held, self._begun = "", True
            return held
