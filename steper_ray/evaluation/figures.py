"""The figures of a results document: from its numbers to panels, keys and captions. Pure.

A figure whose numbers are missing is omitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from steper_ray.evaluation.curves import by_model, mean_of, shares_of, sigma_optimum, smoothed
from steper_ray.evaluation.plots import (
    N_COLOURS,
    BarPanel,
    Bars,
    DotPanel,
    Line,
    LinePanel,
    Panel,
    draw,
)
from steper_ray.evaluation.results import Curves, Results
from steper_ray.evaluation.scores import GroupScores
from steper_ray.schema import Ability

_LABELS = {
    "base": "Base",
    "vanilla_kd": "Vanilla-KD",
    "vanilla_kd_equal_steps": "Vanilla-KD, equal steps",
    "steper_uniform": "StepER, uniform",
    "steper": "StepER",
    "teacher": "Teacher",
}
# Of the demo's models. 5 to 7 are also the abilities', which have their own figures.
_COLOURS = {
    "base": 0,
    "vanilla_kd": 1,
    "vanilla_kd_equal_steps": 2,
    "steper": 3,
    "teacher": 4,
    "steper_uniform": 5,
}
ABILITY_COLOURS = {Ability.INITIALIZATION.value: 5, Ability.EXPANSION.value: 6, Ability.AGGREGATION.value: 7}
_SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Shown:
    """A figure of the page: its SVG, a key of (name, colour) and what it shows."""

    id: str
    title: str
    caption: str
    keys: Sequence[Key]
    svg: Markup
    single: bool


def _shown(
    id: str, title: str, caption: str, keys: Sequence[Key], panels: Sequence[Panel], **size: float
) -> Shown:
    return Shown(id, title, caption, keys, Markup(draw(panels, **size)), single=len(panels) == 1)


def label(model: str) -> str:
    """A model's name as the reader sees it."""
    return _LABELS.get(model, model)


def colour(model: str, models: Iterable[str]) -> int:
    """A model's colour: fixed for the demo's models, else by its place."""
    return _COLOURS.get(model, (_COLOURS["steper"] + list(models).index(model)) % N_COLOURS)


def figures(results: Results) -> list[Shown]:
    """The figures that the results have numbers for, in the order of the page."""
    makers: Sequence[Callable[[Results], Shown | None]] = (
        *(_scores, _hops, _recall),
        *(_sigma, _loss, _validation, _questions, _optimiser),
    )
    return [shown for maker in makers if (shown := maker(results)) is not None]


def _units(results: Results) -> list[str]:
    return list(dict.fromkeys(unit for scores in results.models.values() for unit in scores))


def _keys(models: Iterable[str]) -> list[Key]:
    names = list(models)
    return [(label(name), colour(name, names)) for name in names]


def _scores(results: Results) -> Shown | None:
    models = results.models
    panels: list[Panel] = []
    for unit in _units(results):
        shown = {name: scores[unit] for name, scores in models.items() if unit in scores}
        rows = {label(name): [100 * seed.em for seed in unit_.seeds] for name, unit_ in shown.items()}
        panels.append(DotPanel(f"unit: {unit}", rows, [colour(name, models) for name in shown], "EM, %"))
    if len(models) < 2:
        return None
    caption = (
        "Each disc is one training seed, the bar across them their mean. With unit “sentence” every "
        "generation is cut after its first sentence; with “chain” it runs to its own end of sequence."
    )
    return _shown("scores", "Exact match, seed by seed", caption, [], panels, height=0.9 + 0.36 * len(models))


def _hops(results: Results) -> Shown | None:
    models = results.models
    hops = sorted(
        {hop for units in models.values() for one in units.values() for hop in one.by_hops}, key=int
    )
    if not hops:
        return None
    panels: list[Panel] = []
    for unit in _units(results):
        series = [
            Bars([_percent(scores[unit].by_hops.get(hop)) for hop in hops], colour(name, models))
            for name, scores in models.items()
            if unit in scores
        ]
        panels.append(BarPanel(f"EM by hops, %, unit: {unit}", hops, series, "hops of the question"))
    caption = "Exact match by the number of hops a question takes, mean over seeds."
    return _shown("hops", "Harder questions", caption, _keys(models), panels)


def _recall(results: Results) -> Shown | None:
    models = results.models
    panels: list[Panel] = []
    for unit in _units(results):
        lines = [
            Line(range(1, len(ys) + 1), [100 * y for y in ys], colour(name, models))
            for name, scores in models.items()
            if unit in scores and (ys := scores[unit].recall_by_step)
        ]
        if lines:
            title = f"Recall after each step, %, unit: {unit}"
            panels.append(LinePanel(title, lines, "step", markers=True, y_limits=(0, 103)))
    if not panels:
        return None
    caption = (
        "Share of a question's gold passages found after each step. A question that ended earlier keeps the recall "
        "it ended with, so a curve that stays flat belongs to a model that stopped looking."
    )
    return _shown("recall", "What retrieval found", caption, _keys(models), panels)


def _sigma(results: Results) -> Shown | None:
    curves = results.sigma
    if not curves:
        return None
    roots = [
        Line(curves[0].steps, ys, ABILITY_COLOURS[ability], dashed=True)
        for ability, ys in sigma_optimum(results).items()
    ]
    panels: list[Panel] = [
        LinePanel(
            f"normalised {_SIGMA} (share of the three)",
            _seeded([shares_of(c) for c in curves]),
            "optimiser step",
        ),
        LinePanel(f"raw {_SIGMA}", [*_seeded(curves), *roots], "optimiser step", log=True),
    ]
    caption = (
        f"The learned difficulty of each ability (the form of the paper's Fig. 7): a higher {_SIGMA} makes its loss "
        f"count less. Thin lines are seeds, the thick line their mean. At its optimum {_SIGMA} is the square root of "
        "the loss: the dashed lines, of the mean of the seeds, smoothed (right, on a logarithmic scale)."
    )
    return _shown("sigma", "The path of sigma", caption, list(ABILITY_COLOURS.items()), panels)


def _loss(results: Results) -> Shown | None:
    trainings = by_model(results.loss)
    if not trainings:
        return None
    panels: list[Panel] = [
        LinePanel(label(name), _seeded(curves, smooth=True), "optimiser step", log=True)
        for name, curves in trainings.items()
    ]
    caption = (
        "Cross-entropy of the target by ability, on a logarithmic scale. Thin lines are the batches of each seed, the "
        "thick line is their mean, smoothed. A student that sees only whole trajectories has one ability to learn."
    )
    return _shown("loss", "Training loss by ability", caption, list(ABILITY_COLOURS.items()), panels)


def _validation(results: Results) -> Shown | None:
    trainings = by_model(results.validation)
    if not trainings:
        return None
    panels: list[Panel] = [
        LinePanel(label(name), _seeded(curves), "optimiser step", log=True, markers=True)
        for name, curves in trainings.items()
    ]
    caption = (
        "Cross-entropy of the target by ability on examples that are not learned from, on a logarithmic scale. Where "
        "it rises while the training loss falls, the student learns its examples by heart."
    )
    keys = list(ABILITY_COLOURS.items())
    return _shown("validation", "Loss on held-out examples", caption, keys, panels)


def _questions(results: Results) -> Shown | None:
    curves = results.questions
    if not curves:
        return None
    models = list(by_model(curves))
    shares: Sequence[tuple[str, str]] = (("em", "EM, %"), ("f1", "F1, %"))
    panels: list[Panel] = [
        LinePanel(title, _by_seed(curves, key, 100), "optimiser step", markers=True, y_limits=(0, 103))
        for key, title in shares
    ]
    panels.append(
        LinePanel("steps a question", _by_seed(curves, "mean_steps"), "optimiser step", markers=True)
    )
    caption = (
        f"{curves[0].values['n'][-1]} held-out questions, answered in the whole multi-step loop by the student of "
        "each of these steps. So few questions show the direction, not the score."
    )
    return _shown("questions", "Questions while learning", caption, _keys(models), panels)


def _optimiser(results: Results) -> Shown | None:
    curves = results.optimiser
    if not curves:
        return None
    panels: list[Panel] = [LinePanel("learning rate", _by_seed(curves, "lr"), "optimiser step")]
    if any(norm is not None for curve in curves for norm in curve.values["grad_norm"]):
        norms = _by_seed(curves, "grad_norm")
        panels.append(LinePanel("norm of the gradient", norms, "optimiser step", log=True))
    caption = "The gradient's norm is that before clipping, on a logarithmic scale. One line a training."
    keys = _keys(by_model(curves))
    return _shown("optimiser", "Learning rate and gradient", caption, keys, panels)


def _by_seed(curves: Sequence[Curves], key: str, factor: float = 1.0) -> list[Line]:
    """One line a training, in its model's colour."""
    models = list(by_model(curves))
    return [
        Line(
            curve.steps,
            [None if y is None else factor * y for y in curve.values[key]],
            colour(curve.model, models),
        )
        for curve in curves
    ]


def _seeded(curves: Sequence[Curves], *, smooth: bool = False) -> list[Line]:
    """For each ability the seeds' curves, faint, and their mean; the curves alone where their steps differ."""
    lines = []
    steps = list(curves[0].steps)
    same = all(list(curve.steps) == steps for curve in curves)
    for ability, number in ABILITY_COLOURS.items():
        seeds = [curve.values[ability] for curve in curves]
        if all(value is None for ys in seeds for value in ys):
            continue
        faint = same and (len(seeds) > 1 or smooth)
        for curve, ys in zip(curves, seeds, strict=True):
            lines.append(Line(curve.steps, ys, number, faint=faint))
        if faint:
            means = [mean_of(values) for values in zip(*seeds, strict=True)]
            lines.append(Line(steps, smoothed(means) if smooth else means, number))
    return lines


def _percent(group: GroupScores | None) -> float | None:
    return None if group is None else 100 * group.em
