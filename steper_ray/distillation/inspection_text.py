"""An inspected data set for the terminal and as a page: tables of counts and cost, trajectories to read.

The page loads nothing from outside, and every text that comes from data is escaped. Rich's own markup is off: a
passage that looks like markup is shown as it is.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from steper_ray.distillation.files import write_text
from steper_ray.distillation.inspection import KEPT, DataSet, Inspection, Seen, spread


def summary(data: DataSet, found: Inspection) -> RenderableType:
    """Counts, lengths, recall and cost."""
    counts = _table("", "number", "share")
    for fate, number in sorted(found.fates.items(), key=lambda pair: (pair[0] != KEPT, pair[0])):
        counts.add_row(fate.replace("_", " "), f"{number:,}", f"{number / found.trajectories:.1%}")
    examples = data.manifest["counts"]["examples"]
    for ability, number in examples.items():
        counts.add_row(
            f"examples: {ability}", f"{number:,}", f"{number / max(1, sum(examples.values())):.1%}"
        )
    hops = _table("hops", "trajectories", "kept")
    for hop, (asked, kept) in sorted(found.hops.items(), key=lambda pair: pair[0] or 0):
        hops.add_row("not known" if hop is None else str(hop), f"{asked:,}", f"{kept / asked:.1%}")
    lengths = _table("of kept trajectories", "median", "95 %", "most")
    for name, counted in (
        ("steps", found.steps_kept),
        ("passages", found.passages),
        ("words a step", found.words),
    ):
        if (three := spread(counted)) is not None:
            lengths.add_row(name, *map(str, three))
    asked = data.manifest["counts"]["questions"]
    notes = [
        Text("s: seconds that all requests waited, added up; many wait at the same time"),
        Text(f"{found.repeated_questions:,} of {asked:,} questions have a text that came before"),
        Text(f"code {data.manifest['code'][:12]}, written to {data.folder}"),
    ]
    return Group(counts, hops, lengths, _costs(data, found), *notes)


def trajectory(seen: Seen) -> RenderableType:
    """One trajectory in full."""
    question = seen.trajectory.question
    parts: list[RenderableType] = [
        Text.assemble((f"{seen.trajectory.id}  ", "dim"), (question.text, "bold")),
        Text.assemble(
            ("right ", "dim"), ", ".join(question.answers), ("   given ", "dim"), seen.trajectory.answer,
            ("   ", ""), (seen.fate.replace("_", " "), "green" if seen.fate == KEPT else "red"),
        ),
    ]  # fmt: skip
    if seen.error:
        parts.append(Text(seen.error, "red"))
    gold = set(question.gold_ids)
    for step in seen.trajectory.steps:
        parts.append(Text.assemble((f"{step.index} ", "dim"), (step.query, "italic dim")))
        for hit in step.hits:
            mark = "* " if hit.passage.id in gold else "  "
            line = Text.assemble(mark, (hit.passage.title, "cyan"), ("  " + hit.passage.text, "dim"))
            parts.append(Padding(line, (0, 0, 0, 4)))
        parts.append(Padding(Text(step.reasoning), (0, 0, 0, 2)))
    return Padding(Group(*parts), (1, 0, 0, 0))


def page(data: DataSet, found: Inspection, shown: Iterable[Seen], path: Path) -> None:
    """One self-contained HTML file: the summary, and the trajectories to unfold."""
    environment = Environment(
        loader=PackageLoader("steper_ray.distillation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("inspect.html").render(
        title=f"Data set of {data.folder.parent.name}",
        summary=plain(summary(data, found)),
        shown=shown,
        kept=KEPT,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def plain(shown: RenderableType, width: int = 100) -> str:
    """What a terminal of `width` columns shows, without colours."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, markup=False).print(shown)
    return out.getvalue()


def _costs(data: DataSet, found: Inspection) -> Table:
    recall: list[float] = next(
        (v["after_step"] for k, v in data.manifest.items() if k.startswith("recall@")), []
    )
    table = _table(
        "step", "taken", "recall", "prompt tokens", "cached", "written", "s retrieval", "s generation"
    )
    for number, cost in enumerate(found.costs):
        table.add_row(
            str(number + 1),
            f"{cost.n:,}",
            f"{recall[number]:.3f}" if number < len(recall) else "",
            f"{cost.prompt_tokens:,}",
            f"{cost.cached:.1%}",
            f"{cost.completion_tokens:,}",
            f"{cost.retrieval_seconds:,.1f}",
            f"{cost.generation_seconds:,.1f}",
        )
    return table


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table
