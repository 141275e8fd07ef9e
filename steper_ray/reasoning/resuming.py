"""The events of a trajectory that were sent: where another engine continues, and what of its events is new. Pure.

- A step whose end was sent is not written again, unless the query of the next one is unknown.
- Text of an unfinished step is not sent twice. Where the other engine writes another text, nothing of it is sent
  before StepDone, which holds the text that counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from steper_ray.reasoning.events import Event, PassagesFound, ReasoningDelta, StepDone, StepStarted
from steper_ray.schema import Step


@dataclass(frozen=True, slots=True)
class Begun:
    """The steps of a trajectory that are done; `query` is that of the next one, None where the framework says it."""

    steps: tuple[Step, ...] = ()
    query: str | None = None


#: No step is written yet.
AT_START = Begun()


class SentEvents:
    """What a reader has of a question, by one engine after another."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._index = 0  # of the step that started last
        self._query: str | None = None  # of a step that has started and not ended
        self._found = False
        self._text = ""
        self._written = ""  # of the same step, by the engine that writes now

    @property
    def steps(self) -> int:
        """How many are done."""
        return len(self._steps)

    def begun(self) -> Begun:
        """Where another engine continues."""
        if self._steps and self._query is None:
            return Begun(tuple(self._steps[:-1]), self._steps[-1].query)
        return Begun(tuple(self._steps), self._query)

    def unsent(self, event: Event) -> Event | None:
        """The event as far as the reader lacks it."""
        match event:
            case StepStarted(index, query):
                self._written = ""
                if index <= self._index:
                    return None
                self._index, self._query, self._found, self._text = index, query, False, ""
            case PassagesFound(index):
                if index <= self.steps or self._found:
                    return None
                self._found = True
            case ReasoningDelta(index, text):
                return self._more(index, text)
            case StepDone(step):
                if step.index <= self.steps:
                    return None
                self._steps.append(step)
                self._query = None
        return event

    def _more(self, index: int, text: str) -> ReasoningDelta | None:
        if index <= self.steps:
            return None
        self._written += text
        if len(self._written) <= len(self._text) or not self._written.startswith(self._text):
            return None
        more, self._text = self._written[len(self._text) :], self._written
        return ReasoningDelta(index, more)
