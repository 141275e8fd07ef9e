"""The results document as one self-contained HTML page, and as a table for the terminal.

The page loads nothing from outside and every text that comes from data is escaped. A part that the results lack
(no sigma, no samples, one model alone) is omitted. Reads the document of `results` only: no files, no engines.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table

from steper_ray.core.files import write_text
from steper_ray.evaluation import figures
from steper_ray.evaluation.curves import sigma_optimum
from steper_ray.evaluation.figures import label
from steper_ray.evaluation.results import ModelScores, Results, thin
from steper_ray.evaluation.statistics import Comparison

Models = Mapping[str, Mapping[str, ModelScores]]

#: Columns of the table: key, heading, and what a value is multiplied by.
COLUMNS = (
    ("em", "EM", 100.0),
    ("f1", "F1", 100.0),
    ("acc", "Acc", 100.0),
    ("acc_words", "Acc, words", 100.0),
    ("recall", "Recall", 100.0),
    ("mean_steps", "Steps", 1.0),
)
#: Columns of paired comparisons; p is corrected for the comparisons of the table by Holm's method.
COMPARED = ("", "less", "unit", "", "points", "95 % interval", "p", "p, Holm", "n", "clusters")
_UNKNOWN = "\N{EN DASH}"
_NOT_RANKED = frozenset(("mean_steps",))
_WIDTH = 110  # of a table for the terminal
_SIGMA_POINTS = 7
_ROOT = "  \N{SQUARE ROOT} of its loss"
_LISTED = 12  # of a longer list the page shows the length alone
_REFERENCE = "teacher"  # shown, but no competitor for the best value of a column


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the table; `spread` is the standard deviation over seeds, empty for a single one."""

    text: str
    spread: str = ""
    tip: str = ""
    best: bool = False


def write_report(results: Results, folder: Path) -> Path:
    """Writes report.html into the folder and returns its path."""
    path = folder / "report.html"
    write_text(path, render(results))
    return path


def render(results: Results) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("steper_ray.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(label=label, percent=_percent, colour=figures.colour)
    rows = table_rows(results)
    return environment.get_template("report.html").render(
        title=results.provenance.get("title", "StepER, evaluated"),
        models=results.models,
        units=units(results),
        columns=COLUMNS,
        rows=rows,
        several=_several(rows),
        facts=_facts(results),
        figures=figures.figures(results),
        comparisons=comparison_rows(results.comparisons),
        endings=_endings(results),
        steps=_steps_used(results),
        samples=results.samples,
        provenance=[pair for pair in _flat(results.provenance) if pair[0] != "title"],
        data=_flat(results.data),
        config=yaml.safe_dump(results.config, sort_keys=False) if results.config else "",
        css=Markup((Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")),
    )


def format_table(results: Results) -> str:
    """The table as plain text, one line a model and unit; "" without models."""
    if not results.models:
        return ""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    table.add_column("unit")
    for _, heading, _ in COLUMNS:
        table.add_column(heading, justify="right")
    rows = table_rows(results)
    for unit in units(results):
        for model, cells in rows.items():
            if unit in cells:
                texts = [f"{cell.text} {cell.spread}".rstrip() for cell in cells[unit]]
                table.add_row(label(model), unit, *texts)
        table.add_section()
    note = "EM, F1, Acc (the answer is contained) and retrieval recall in %" + (
        "; ± standard deviation over seeds, where there are several" if _several(rows) else ""
    )
    return f"{_plain(table)}{note}\n"


def format_comparisons(comparisons: Sequence[Comparison]) -> str:
    """The paired comparisons as plain text, one line each; "" without any."""
    rows = comparison_rows(comparisons)
    if not rows:
        return ""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COMPARED[:4]:
        table.add_column(name)
    for name in COMPARED[4:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return _plain(table)


def comparison_rows(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """A row of COMPARED for each comparison, the difference in points."""
    return [
        (
            label(one.model),
            label(one.other),
            one.unit,
            one.metric.upper(),
            f"{100 * one.difference:+.1f}",
            f"{100 * one.low:+.1f} to {100 * one.high:+.1f}",
            p_text(one.p),
            _UNKNOWN if one.p_holm is None else p_text(one.p_holm),
            str(one.n),
            str(one.clusters),
        )
        for one in comparisons
    ]


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def format_sigma(results: Results) -> str:
    """The path of sigma as plain text: each ability at some of the steps, the mean of the seeds, and below it the
    square root of its smoothed loss, where sigma is drawn to; "" without one."""
    curves = results.sigma
    if not curves:
        return ""
    points = thin(range(min(len(curve.steps) for curve in curves)), _SIGMA_POINTS)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("sigma at step")
    for at in points:
        table.add_column(str(curves[0].steps[at]), justify="right")
    optimum = sigma_optimum(results)
    for ability in curves[0].values:
        means = [fmean(curve.values[ability][at] or 0.0 for curve in curves) for at in points]
        table.add_row(ability, *(f"{mean:.3f}" for mean in means))
        if ability in optimum:
            roots = [optimum[ability][at] for at in points]
            table.add_row(_ROOT, *(_UNKNOWN if root is None else f"{root:.3f}" for root in roots))
    return _plain(table)


def units(results: Results) -> list[str]:
    """The step units of the results, in the order they came."""
    return list(dict.fromkeys(unit for scores in results.models.values() for unit in scores))


def table_rows(results: Results) -> dict[str, dict[str, list[Cell]]]:
    """Model -> unit -> one cell a column."""
    models = results.models
    best = {
        (unit, key): max((_shown(models, m, unit, key) for m in models if m != _REFERENCE), default="")
        for unit in units(results)
        for key, _, _ in COLUMNS
        if key not in _NOT_RANKED
    }
    return {
        model: {
            unit: [_cell(models, model, unit, column, best.get((unit, column[0]))) for column in COLUMNS]
            for unit in scores
        }
        for model, scores in models.items()
    }


def _plain(table: Table) -> str:
    out = io.StringIO()
    Console(file=out, width=_WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n")).strip("\n") + "\n"


def _several(rows: Mapping[str, Mapping[str, Sequence[Cell]]]) -> bool:
    """Whether any number is a mean over seeds."""
    return any(cell.spread for by_unit in rows.values() for cells in by_unit.values() for cell in cells)


def _shown(models: Models, model: str, unit: str, key: str) -> float:
    """A value as the table rounds it: what looks equal is equally good."""
    value = getattr(models[model][unit], key) if unit in models[model] else None
    return -1.0 if value is None else round(100 * value, 1)


def _cell(models: Models, model: str, unit: str, column: tuple[str, str, float], best: object) -> Cell:
    key, _, factor = column
    scores = models[model][unit]
    value, spreads = getattr(scores, key), scores.spread
    digits = 1 if factor > 1 else 2
    if value is None:
        return Cell(_UNKNOWN)
    text = f"{factor * value:.{digits}f}"
    ranked = len(models) > 1 and model != _REFERENCE and best == _shown(models, model, unit, key)
    if key not in spreads or (spread := spreads[key]).n < 2:
        return Cell(text, best=ranked)
    low, high = (f"{factor * end:.{digits}f}" for end in (spread.min, spread.max))
    return Cell(text, f"±{factor * spread.std:.{digits}f}", f"{low} to {high} over {spread.n} seeds", ranked)


def _facts(results: Results) -> list[str]:
    """The line below the title."""
    if not results.models:
        steps = [curve.steps[-1] for curve in results.loss]
        return [f"{len(steps)} training{'s' * (len(steps) > 1)}", f"{max(steps, default=0)} optimiser steps"]
    all_scores = [scores for model in results.models.values() for scores in model.values()]
    questions = sorted({scores.n for scores in all_scores})
    seeds = max((len(scores.seeds) for scores in all_scores), default=0)
    models = len(results.models)
    facts = [f"{' / '.join(map(str, questions))} test questions", f"{models} model{'s' * (models > 1)}"]
    return [*facts, f"{seeds} seeds"] if seeds > 1 else facts


def _endings(results: Results) -> list[dict[str, Any]]:
    """For each model and unit: how trajectories ended and the steps they took, over all seeds."""
    return [
        {
            "model": model,
            "unit": unit,
            "errors": scores.errors,
            "reasons": scores.stop_reasons,
            "by_steps": scores.by_steps,
        }
        for model, by_unit in results.models.items()
        for unit, scores in by_unit.items()
    ]


def _steps_used(results: Results) -> list[str]:
    """All numbers of steps that any trajectory took."""
    all_scores = [scores for by_unit in results.models.values() for scores in by_unit.values()]
    return sorted({steps for scores in all_scores for steps in scores.by_steps}, key=int)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as (dotted name, text)."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs.extend(_flat(value, f"{prefix}{key}."))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            listed = ", ".join(str(item) for item in value)
            pairs.append((f"{prefix}{key}", listed if len(value) <= _LISTED else f"{len(value):,} entries"))
        else:
            pairs.append((f"{prefix}{key}", _text(value)))
    return pairs


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _percent(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{100 * value:.1f}"
