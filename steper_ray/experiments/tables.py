"""Outcomes as Markdown tables beside the paper's values, and as figures. Pure: numbers in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from textwrap import fill

from steper_ray.evaluation.curves import shares_of
from steper_ray.evaluation.figures import ABILITY_COLOURS
from steper_ray.evaluation.plots import N_COLOURS, BarPanel, Bars, Line, LinePanel, draw, standalone
from steper_ray.evaluation.report import p_text
from steper_ray.evaluation.results import Curves, thin
from steper_ray.evaluation.spread import Spread
from steper_ray.evaluation.statistics import Comparison
from steper_ray.experiments.plan import Experiment
from steper_ray.experiments.published import JUDGED_FIG3, PUBLISHED, TABLE6
from steper_ray.experiments.run import Outcome, Row

_HEADINGS = {
    "em": "EM",
    "f1": "F1",
    "acc": "Acc",
    "recall": "recall",
    "duplicates": "duplicates",
    "sub_answers": "sub-questions",
    "started": "right start",
    "deviation": "steps off",
    "grounded": "grounded",
}
#: Shares from 0 to 1, as the paper has them, and steps.
_PLAIN = frozenset(("recall", "duplicates", "deviation"))
_VALID = (
    "\nsub-questions: the share of the gold decomposition's answers that the chain states; right start: the share of "
    "chains whose first step states one that needs no other (beside the paper's judged initialization); steps off: by "
    "how many steps the chain is longer or shorter than the decomposition (HotpotQA has none); grounded: the share of "
    "steps whose names, numbers and answer stand in the passages.\n"
)
_NONE = "\N{EN DASH}"
_POINTS = 9
_LABEL = 12  # characters of a line below a bar


def markdown(outcome: Outcome) -> str:
    """The experiment as a section of Markdown."""
    experiment = outcome.experiment
    if experiment.shows == "steps":
        body = [_by_steps(row) for row in outcome.rows]
    elif experiment.shows == "sigma":
        body = [_sigma(data, curves) for data, curves in outcome.sigma.items()]
    else:
        valid = _VALID if "sub_answers" in experiment.metrics else ""
        shown = _timed(outcome) if experiment.timed else _scores(outcome) + valid
        body = [shown, _comparisons(outcome.comparisons), _judged(outcome)]
    return "\n".join([f"## {experiment.title}", "", *(part for part in body if part)])


def figure(outcome: Outcome) -> str | None:
    """The experiment's figure as an SVG file; None where the paper has a table."""
    match outcome.experiment.name:
        case "fig3" | "fig4" | "fig5":
            units = list(dict.fromkeys(row.unit for row in outcome.rows))
            labels = list(dict.fromkeys(row.label for row in outcome.rows))
            accs = {(row.unit, row.label): 100 * row.acc.mean for row in outcome.rows}
            series = [
                Bars([accs.get((unit, label)) for label in labels], at + 1, unit)
                for at, unit in enumerate(units)
            ]
            return standalone(
                draw([BarPanel("Acc, %", [fill(label, _LABEL) for label in labels], series, "")])
            )
        case "fig6":
            points = {
                f"{row.label}, {row.unit}": (row.timing.seconds.mean, 100 * row.acc.mean)
                for row in outcome.rows
                if row.timing
            }
            lines = [
                Line([seconds], [acc], at % N_COLOURS, label=label)
                for at, (label, (seconds, acc)) in enumerate(points.items())
            ]
            return standalone(draw([LinePanel("Acc, %", lines, "seconds a question", markers=True)]))
        case "fig7":
            panels = [
                LinePanel(
                    f"share of sigma, {data}",
                    [
                        Line(steps, path, ABILITY_COLOURS[ability], label=ability)
                        for ability, (steps, path) in _paths(curves).items()
                    ],
                    "optimiser step",
                )
                for data, curves in outcome.sigma.items()
                if curves
            ]
            return standalone(draw(panels)) if panels else None
    return None


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    rules = ["---"] * left + ["---:"] * (len(headings) - left)
    lines = [headings, rules, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _scores(outcome: Outcome) -> str:
    experiment = outcome.experiment
    headings = ["data", "row", "unit"]
    headings += [f"paper: {_HEADINGS[metric]}" for metric in experiment.metrics]
    headings += [_HEADINGS[metric] for metric in experiment.metrics]
    rows, others = [], dict[str, str]()
    for row in outcome.rows:
        beside = _paper_data(experiment, row.data)
        paper = PUBLISHED.get((experiment.name, beside), {}).get(row.label, {})
        if paper and beside != row.data:
            others[row.data] = beside
        rows.append(
            [
                *(row.data, row.label, row.unit),
                *(_NONE if metric not in paper else f"{paper[metric]:g}" for metric in experiment.metrics),
                *(_cell(row, metric) for metric in experiment.metrics),
            ]
        )
    source = "".join(
        f" Beside {data} stand the paper's values of {beside}." for data, beside in others.items()
    )
    return f"{_table(headings, rows, left=3)}{_note(outcome.rows)}{source}\n"


def _timed(outcome: Outcome) -> str:
    """Fig. 6: what a question takes, and who is beaten by nobody in both seconds and accuracy."""
    headings = ["data", "row", "unit", "parameters", "paper: s", "paper: Acc", "seconds a question", "Acc"]
    rows, n = [], 0
    for row in outcome.rows:
        if (timing := row.timing) is None:
            continue
        paper = PUBLISHED.get((outcome.experiment.name, row.data), {}).get(row.label, {})
        seconds, n = timing.seconds, timing.seconds.n
        right = "not measured"
        if timing.joules is not None:
            right = f"{timing.joules / row.acc.mean:,.1f}" if row.acc.mean else "none right"
        best = not any(
            other.timing is not None
            and other.timing.seconds.mean <= seconds.mean
            and other.acc.mean >= row.acc.mean
            and (other.timing.seconds.mean, other.acc.mean) != (seconds.mean, row.acc.mean)
            for other in outcome.rows
            if other.data == row.data
        )
        rows.append(
            [
                *(row.data, row.label, row.unit),
                _NONE if row.parameters is None else f"{row.parameters / 1e6:,.1f} M",
                *(_NONE if name not in paper else f"{paper[name]:g}" for name in ("seconds", "acc")),
                f"{seconds.mean:.2f} [{seconds.low:.2f}, {seconds.high:.2f}]",
                _cell(row, "acc"),
                f"{timing.tokens:.0f}",
                right,
                "yes" if best else "",
            ]
        )
    table = _table([*headings, "tokens", "joules a right answer", "on the frontier"], rows, left=3)
    asked = (
        f" Seconds, tokens and joules are those of {n} questions, asked one after the other. Nobody is both faster and "
        "more accurate than who is on the frontier. The paper's teachers have 72 B parameters here."
    )
    return f"{table}{_note(outcome.rows)}{asked}\n"


def _paper_data(experiment: Experiment, data: str) -> str:
    """The data set whose values stand beside ours: the same one, else the paper's first of this experiment."""
    known = [name for experiment_, name in PUBLISHED if experiment_ == experiment.name]
    return data if data in known or not known else known[0]


def _cell(row: Row, metric: str) -> str:
    """Mean, spread over seeds, and for accuracy the interval over questions."""
    spread: Spread | None = row.scores.get(metric)
    if spread is None:
        return _NONE
    share = metric in _PLAIN
    text = f"{spread.mean:.2f}" if share else f"{100 * spread.mean:.1f}"
    if spread.n > 1:
        text += f" ±{spread.std:.2f}" if share else f" ±{100 * spread.std:.1f}"
    if metric == "acc":
        text += f" [{100 * row.acc.low:.1f}, {100 * row.acc.high:.1f}]"
    return text


def _note(rows: Sequence[Row]) -> str:
    sizes = dict.fromkeys((row.data, row.acc.n, row.acc.clusters) for row in rows)
    asked = "; ".join(f"{data}: {n} questions in {clusters} clusters" for data, n, clusters in sizes)
    seeds = max((spread.n for row in rows for spread in row.scores.values()), default=1)
    spread = f"; ± standard deviation over {seeds} training seeds" if seeds > 1 else "; one training seed"
    return f"\n{asked}{spread}; [ ] 95 % interval over clusters of questions."


def _comparisons(comparisons: Sequence[tuple[str, Comparison]]) -> str:
    if not comparisons:
        return ""
    headings = ["data", "row", "less", "unit", "Acc, points", "95 % interval", "p", "p, Holm"]
    rows = [
        [
            *(data, one.model, one.other, one.unit),
            *(f"{100 * one.difference:+.1f}", f"{100 * one.low:+.1f} to {100 * one.high:+.1f}"),
            *(p_text(one.p), _NONE if one.p_holm is None else p_text(one.p_holm)),
        ]
        for data, one in comparisons
    ]
    return "\n" + _table(headings, rows, left=4)


def _judged(outcome: Outcome) -> str:
    """Ratings by an LLM judge, from 0 to 100."""
    if not outcome.judged:
        return ""
    headings = [
        "data",
        "row",
        "less",
        "unit",
        "rated",
        "paper: row",
        "paper: less",
        "here: row",
        "here: less",
    ]
    rows = []
    for data, one, other, said in outcome.judged:
        compared = {comparison.metric: comparison for comparison in said.comparisons}
        for ability, ratings in said.ratings.items():
            paper = [JUDGED_FIG3.get(row, {}).get(ability) for row in (one, other)]
            difference = compared[ability]
            rows.append(
                [
                    *(data, one, other, said.unit, ability),
                    *(_NONE if value is None else f"{value:g}" for value in paper),
                    *(f"{100 * rating.mean:.1f}" for rating in ratings),
                    f"{100 * difference.difference:+.1f}",
                    f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}",
                    _NONE if difference.p_holm is None else p_text(difference.p_holm),
                ]
            )
    note = "\nRatings by a judge, from 0 to 100, both orders of each pair; the paper's judge and scale are its own.\n"
    return "\n" + _table([*headings, "points", "95 % interval", "p, Holm"], rows, left=5) + note


def _by_steps(row: Row) -> str:
    """Table 6: of the questions that used a number of steps, the share that was answered right."""
    total = sum(group.n for group in row.by_steps.values())
    rows = []
    for steps in sorted({*TABLE6, *row.by_steps}, key=int):
        count, accuracy = TABLE6.get(steps, (0, None))
        group = row.by_steps.get(steps)
        rows.append(
            [
                *(steps, str(count), _NONE if accuracy is None else f"{accuracy:g}"),
                *(str(group.n if group else 0), f"{100 * group.acc:.1f}" if group else _NONE),
            ]
        )
    mean = sum(int(steps) * group.n for steps, group in row.by_steps.items()) / max(total, 1)
    headings = ["steps", "paper: questions", "paper: Acc", "questions", "Acc"]
    return (
        f"{row.label} on {row.data}, unit {row.unit}, {total} answers over all seeds; mean {mean:.2f} steps (paper: "
        f"4.02 of 500 questions).\n\n{_table(headings, rows)}"
    )


def _paths(curves: Sequence[Curves]) -> dict[str, tuple[list[int], list[float]]]:
    """The share of each ability's sigma in the sum of the three, averaged over seeds, at the first seed's steps."""
    size = min(len(curve.steps) for curve in curves)
    shares = [shares_of(curve).values for curve in curves]
    return {
        ability: (
            list(curves[0].steps[:size]),
            [fmean(one[ability][at] or 0.0 for one in shares) for at in range(size)],
        )
        for ability in curves[0].values
    }


def _sigma(data: str, curves: Sequence[Curves]) -> str:
    if not curves:
        return f"{data}: no sigma was learned.\n"
    paths = _paths(curves)
    steps = next(iter(paths.values()))[0]
    points = thin(range(len(steps)), _POINTS)
    rows = [[ability, *(f"{path[at]:.3f}" for at in points)] for ability, (_, path) in paths.items()]
    note = (
        f"{data}, {len(curves)} seeds: the share of each sigma in the sum of the three. The paper's plot (about 3,200 "
        "steps) ends with aggregation the largest and expansion the smallest.\n\n"
    )
    return note + _table(["at step", *(str(steps[at]) for at in points)], rows)
