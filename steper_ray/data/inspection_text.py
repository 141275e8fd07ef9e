"""An inspected data set for the terminal: tables of counts and cost, trajectories to read.

Rich's own markup is off: a passage that looks like markup is shown as it is.
"""

from __future__ import annotations

import io
from collections import Counter

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from steper_ray.data.inspection import KEPT, DataSet, Inspection, Seen
from steper_ray.data.measures import spread
from steper_ray.schema import Ability


def summary(data: DataSet, found: Inspection) -> RenderableType:
    """Counts, lengths, recall and cost."""
    counts = figures_table("", "number", "share")
    for fate, number in sorted(found.fates.items(), key=lambda pair: (pair[0] != KEPT, pair[0])):
        counts.add_row(fate.replace("_", " "), f"{number:,}", f"{number / found.trajectories:.1%}")
    hops = figures_table("hops", "trajectories", "kept")
    for hop, (asked, kept) in sorted(found.hops.items(), key=lambda pair: pair[0] or 0):
        hops.add_row("not known" if hop is None else str(hop), f"{asked:,}", f"{kept / asked:.1%}")
    lengths = figures_table("of kept trajectories", "median", "95 %", "most")
    for name, counted in (
        ("steps", found.steps_kept),
        ("passages", found.passages),
        ("words a step", found.words),
    ):
        if (three := spread(counted)) is not None:
            lengths.add_row(name, *map(str, three))
    repeats, asked = found.repeats, data.manifest["counts"]["questions"]
    notes = [
        Text(
            "examples: median (most), in words; tokens: what the teacher read at the step, and wrote up to there"
        ),
        *_bill(data, found),
        Text(
            f"repeated: the text of {repeats.texts:,} of {asked:,} questions, and {repeats.chains:,} of "
            f"{found.fates[KEPT]:,} kept chains"
        ),
        Text(f"code {data.manifest['code'][:12]}, written to {data.folder}"),
    ]
    return Group(counts, hops, lengths, _examples(found), _costs(data, found), *notes)


def trajectory(seen: Seen) -> RenderableType:
    """One trajectory in full."""
    question = seen.trajectory.question
    parts: list[RenderableType] = [
        Text.assemble((f"{seen.trajectory.id}  ", "dim"), (question.text, "bold")),
        Text.assemble(
            ("right ", "dim"), ", ".join(question.answers), ("   given ", "dim"), seen.trajectory.answer,
            ("   ", ""), (seen.fate.replace("_", " "), "green" if seen.fate == KEPT else "red"),
            (f"   {seen.trajectory.source}{', second chance' if seen.trajectory.attempt else ''}", "dim"),
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


def plain(shown: RenderableType, width: int = 100) -> str:
    """The text for a terminal of `width` columns, without colours."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, markup=False).print(shown)
    return out.getvalue()


def _examples(found: Inspection) -> Table:
    table = figures_table(
        "examples", "number", "share", "passages", "prompt words", "target words", "tokens read",
        "written",
    )  # fmt: skip
    total = sum(of.n for of in found.lengths.values())
    for ability in Ability:
        of = found.lengths.get(ability)
        if of is None:
            table.add_row(ability.value, "0")
            continue
        counted = (of.passages, of.prompt_words, of.target_words, of.tokens_read, of.tokens_written)
        table.add_row(ability.value, f"{of.n:,}", f"{of.n / total:.1%}", *map(_median_most, counted))
    return table


def _median_most(counted: Counter[int]) -> str:
    three = spread(counted)
    return "" if three is None else f"{three[0]:,} ({three[2]:,})"


def _bill(data: DataSet, found: Inspection) -> list[Text]:
    """Total work of the teacher's engine."""
    cost = found.cost
    if not cost.n:
        return []
    waits = f"{duration(cost.generation_seconds)} for generation, {duration(cost.retrieval_seconds)} for retrieval"
    return [
        Text(
            f"read {cost.prompt_tokens:,} tokens: {cost.fresh_tokens:,} fresh, {cost.cached_tokens:,} from the prefix "
            f"cache; wrote {cost.completion_tokens:,}"
            + (f", {cost.thinking_tokens:,} of them thinking" if cost.thinking_tokens else "")
        ),
        Text(
            f"waited {waits} ({cost.retrieval_share:.1%}): at least {duration(cost.engine_seconds(data.in_flight))} of "
            f"one engine, with always {data.in_flight} trajectories in flight"
        ),
    ]


def duration(seconds: float) -> str:
    """In the unit that leaves it readable."""
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _costs(data: DataSet, found: Inspection) -> Table:
    recall = data.recall
    table = figures_table(
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


def figures_table(*headings: str) -> Table:
    """The first column is for names, the others are for numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        made.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    return made
