"""Dropped trajectories, for people to read: each in one line, and a few of each reason in full."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from steper_ray.core.files import write_text
from steper_ray.schema import StepScore, Trajectory

SAMPLES = 5  # trajectories of each reason that are written out in full


class Dropped:
    """Collects dropped trajectories; `write` makes dropped.jsonl (all) and dropped.md (the first of each reason)."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._samples: dict[str, list[str]] = {}

    def add(self, trajectory: str, reason: str, error: str | None, page: Callable[[], str]) -> None:
        """One trajectory by its id; `page` writes it in full, which is done for the first few of each reason."""
        row = {"id": trajectory, "reason": reason, "error": error}
        self._lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        samples = self._samples.setdefault(reason, [])
        if len(samples) < SAMPLES:
            samples.append(page())

    def extend(self, other: Dropped) -> None:
        """Adds what another part dropped, behind what is here."""
        self._lines.extend(other._lines)
        for reason, pages in other._samples.items():
            samples = self._samples.setdefault(reason, [])
            samples.extend(pages[: SAMPLES - len(samples)])

    def write(self, folder: Path) -> None:
        write_text(folder / "dropped.jsonl", "".join(self._lines))
        parts = [f"# {reason}\n\n" + "".join(pages) for reason, pages in sorted(self._samples.items())]
        write_text(folder / "dropped.md", "\n".join(parts))


def page(trajectory: Trajectory, error: str | None, scores: Sequence[StepScore]) -> str:
    """One trajectory in full, as Markdown."""
    question = trajectory.question
    lines = [f"## {trajectory.id}: {question.text}", f"right: {', '.join(question.answers)}"]
    lines += [f"given: {trajectory.answer} ({trajectory.stop_reason.value})"]
    lines += [error] if error else []
    for step in trajectory.steps:
        shown = ", ".join(
            f"{s.verifier} {s.score:.3f}" for s in scores if s.step == step.index and s.score is not None
        )
        lines.append(f"- step {step.index}{f' [{shown}]' if shown else ''}: {step.reasoning}")
        lines += [f"  - {hit.passage.title}: {hit.passage.text}" for hit in step.hits]
    return "\n".join(lines) + "\n\n"
