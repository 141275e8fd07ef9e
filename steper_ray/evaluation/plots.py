"""The report's figures as SVG text, drawn by matplotlib. Pure: numbers in, SVG out, the same bytes each time.

Colours are names of CSS variables of the page (--c0 .. --c7, --rule) and text takes the page's font and ink, so a
figure follows the page into its dark scheme. Every text is plain: `$` of a model's name starts no formula.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

N_COLOURS = 8
_WIDTH, _HEIGHT = 9.2, 2.7  # inches of a figure: the page shows all figures of several panels equally wide
_PANEL = 4.6  # inches of a single panel
# Matplotlib has no CSS variables: each stands for one, and is replaced in the finished SVG.
_SERIES = [f"#00fe{number:02x}" for number in range(N_COLOURS)]
_RULE, _INK = "#00fefe", "#00feff"
_CSS = {colour: f"var(--c{number})" for number, colour in enumerate(_SERIES)} | {
    _RULE: "var(--rule)",
    _INK: "var(--muted)",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "steper",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.7,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "ytick.major.pad": 6,
}


@dataclass(frozen=True, slots=True)
class Line:
    """One curve; None in `ys` is a gap. Faint lines are single seeds behind their mean; a dashed one is what the
    others are held against."""

    xs: Sequence[float]
    ys: Sequence[float | None]
    colour: int
    faint: bool = False
    dashed: bool = False
    label: str = ""
    """Its name in the key of a figure outside the page; the page has separate keys."""


@dataclass(frozen=True, slots=True)
class LinePanel:
    title: str
    lines: Sequence[Line]
    x_label: str
    log: bool = False
    markers: bool = False
    y_limits: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Bars:
    """One series of a grouped bar chart: a height for each group (None: no bar)."""

    heights: Sequence[float | None]
    colour: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class BarPanel:
    title: str
    groups: Sequence[str]
    series: Sequence[Bars]
    x_label: str


@dataclass(frozen=True, slots=True)
class DotPanel:
    """For each row (a model) the values of its seeds: seeds as rings, their mean as a bar across them."""

    title: str
    rows: Mapping[str, Sequence[float]]
    colours: Sequence[int]
    x_label: str


Panel = LinePanel | BarPanel | DotPanel


def draw(panels: Sequence[Panel], height: float = _HEIGHT) -> str:
    """The panels side by side as one `<svg>` element, `height` in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            figsize=(_PANEL if len(panels) == 1 else _WIDTH, height),
            layout=ConstrainedLayoutEngine(wspace=0.06),
        )
        share = all(
            isinstance(panel, DotPanel) or (isinstance(panel, LinePanel) and panel.log) for panel in panels
        )
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=share)[0]
        for axis, panel in zip(axes, panels, strict=True):
            axis.set_title(panel.title)
            axis.set_xlabel(panel.x_label)
            _paint(axis, panel)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _for_page(out.getvalue())


def standalone(svg: str) -> str:
    """An SVG of `draw` as a separate file, with the page's colours, light and dark."""
    css = (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    colours = css[: css.index("\n*")]
    font = "text { font-family: system-ui, sans-serif; }"
    return re.sub(r"(<svg[^>]*>)", lambda match: f"{match[1]}<style>{colours}\n{font}</style>", svg, count=1)


def _paint(axis: Axes, panel: Panel) -> None:
    match panel:
        case LinePanel():
            _lines(axis, panel)
        case BarPanel():
            _bars(axis, panel)
        case DotPanel():
            _dots(axis, panel)


def _lines(axis: Axes, panel: LinePanel) -> None:
    axis.grid(axis="x", visible=False)
    for line in sorted(panel.lines, key=lambda one: not one.faint):
        ys = [float("nan") if y is None else y for y in line.ys]
        axis.plot(
            line.xs,
            ys,
            color=_SERIES[line.colour],
            linewidth=0.8 if line.faint else 1.2 if line.dashed else 1.9,
            linestyle="--" if line.dashed else "-",
            alpha=0.35 if line.faint else 1.0,
            marker="o" if panel.markers else None,
            markersize=4,
            solid_capstyle="round",
            label=line.label or None,
        )
    _legend(axis, [line.label for line in panel.lines])
    if panel.log:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(FixedLocator(_log_ticks(*axis.get_ylim())))
    if panel.y_limits is not None:
        axis.set_ylim(*panel.y_limits)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _legend(axis: Axes, labels: Sequence[str]) -> None:
    if any(labels):
        axis.legend(frameon=False, labelcolor=_INK, fontsize=8.5)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade: few enough to be read, and always more than one."""
    ticks = [digit * 10.0**power for power in range(-6, 5) for digit in (1, 2, 5)]
    return [round(tick, 9) for tick in ticks if low <= tick <= high]


def _bars(axis: Axes, panel: BarPanel) -> None:
    axis.grid(axis="x", visible=False)
    width = 0.8 / max(len(panel.series), 1)
    for number, bars in enumerate(panel.series):
        shown = [(at, height) for at, height in enumerate(bars.heights) if height is not None]
        xs = [at - 0.4 + width * (number + 0.5) for at, _ in shown]
        axis.bar(
            xs,
            [height for _, height in shown],
            width * 0.86,
            color=_SERIES[bars.colour],
            label=bars.label or None,
        )
    _legend(axis, [bars.label for bars in panel.series])
    axis.set_xticks(range(len(panel.groups)), panel.groups)
    axis.set_ylim(0, 100)


def _dots(axis: Axes, panel: DotPanel) -> None:
    axis.grid(axis="y", visible=False)
    for row, (values, colour) in enumerate(zip(panel.rows.values(), panel.colours, strict=True)):
        axis.hlines(row, 0, 100, color=_RULE, linewidth=0.7)
        axis.plot(
            values,
            [row] * len(values),
            "o",
            color=_SERIES[colour],
            markersize=7,
            alpha=0.4,
            markeredgewidth=0,
        )
        mean = sum(values) / len(values)
        axis.vlines(mean, row - 0.28, row + 0.28, color=_SERIES[colour], linewidth=2.4)
    axis.set_yticks(range(len(panel.rows)), list(panel.rows))
    axis.set_ylim(len(panel.rows) - 0.4, -0.6)
    axis.set_xlim(-2, 102)


def _for_page(svg: str) -> str:
    """The `<svg>` element alone, scaling with the page, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1 role="img"', svg, count=1)
    svg = re.sub(r' id="(?:figure|axes|patch|line2d|text|xtick|ytick|matplotlib)[^"]*"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in _CSS.items():
        svg = svg.replace(colour, variable)
    return svg
