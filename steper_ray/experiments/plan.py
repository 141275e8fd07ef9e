"""What each table and figure of the paper needs: its rows, the students they ask, and the settings they ask with. Pure.

- A student has one name and one recipe here, so experiments that need the same student train it once.
- A row is an `Arm`; its scores are those of one model, asked with the settings of `reasoning` that the arm names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from steper_ray.core.errors import SteperError

BASE, TEACHER = "base", "teacher"
#: Each student's settings of `train`.
STUDENTS: Mapping[str, Mapping[str, object]] = {
    "vanilla_kd": {"method": "vanilla_kd", "steps": "all"},
    "sail": {"method": "vanilla_kd", "steps": "all", "form": "sail"},
    "kard": {"method": "vanilla_kd", "steps": "all", "form": "kard"},
    "chain_of_note": {"method": "vanilla_kd", "steps": "all", "form": "chain_of_note"},
    "steper_first_final": {"method": "steper", "steps": "first_final"},
    "steper_first_mid_final": {"method": "steper", "steps": "first_mid_final"},
    "steper": {"method": "steper", "steps": "all", "weighting": "difficulty"},
    "steper_uniform": {"method": "steper", "steps": "all", "weighting": "uniform"},
    "steper_weight_first": {
        "method": "steper",
        "steps": "all",
        "weighting": "fixed",
        "fixed_weights": (1.5, 1.0, 0.5),
    },
    "steper_weight_last": {
        "method": "steper",
        "steps": "all",
        "weighting": "fixed",
        "fixed_weights": (0.5, 1.0, 1.5),
    },
}
Settings = tuple[tuple[str, object], ...]
_SHOWN = ("few_shot", True)  # who was not trained on the form is shown it
_CLOSED: Settings = (("k", 0), ("max_steps", 1), _SHOWN)
_ONCE: Settings = (("max_steps", 1), _SHOWN)


@dataclass(frozen=True, slots=True)
class Arm:
    """One row: `model` is BASE, TEACHER or a name of STUDENTS, asked with these settings of `reasoning`."""

    label: str
    model: str
    reasoning: Settings = ()
    units: tuple[str, ...] = ()
    """By default those of `evaluate.units`."""
    framework: str = ""
    """The framework it learned, where it is not the config's."""
    data: str = ""
    """The data set that it learned, where it is not the one that is asked."""
    size: str = ""
    """The name of the model it started from, where students of several sizes are compared."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One table or figure.

    `shows`: scores a row, accuracy by the steps that were used, or the path of sigma. `pairs` are the rows that are
    compared question by question, by their labels. `datasets` are those of the paper; `abroad` takes the data sets for
    students out of their domain instead.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    shows: Literal["scores", "steps", "sigma"] = "scores"
    metrics: tuple[str, ...] = ("acc",)
    pairs: tuple[tuple[str, str], ...] = ()
    datasets: tuple[str, ...] = ("hotpotqa",)
    abroad: bool = False
    judged: bool = False
    """Whether the pairs are also rated by the model of `evaluate.judge`, where one is set."""
    timed: bool = False
    """Whether each row is also asked some questions one by one, for their seconds, tokens and energy."""


def experiments(sizes: Mapping[str, str], abroad: Sequence[str]) -> dict[str, Experiment]:
    """Every experiment by its name. `sizes` are the students of Fig. 4, a model by name; `abroad` the data sets of
    Fig. 5."""
    steper, vanilla = Arm("StepER", "steper"), Arm("Vanilla-KD", "vanilla_kd")
    once = Arm("single-step RAG", BASE, _ONCE, ("chain",))
    closed = Arm(
        "StepER, no retrieval", "steper", _CLOSED[:2], ("chain",)
    )  # what it answers without passages
    found = (
        Experiment(
            "table1",
            "Answers of all methods (Table 1)",
            (
                Arm("no retrieval", BASE, _CLOSED, ("chain",)),
                once,
                Arm("IRCoT", BASE, (_SHOWN,)),
                Arm("Self-Ask", BASE, (("framework", "self_ask"), _SHOWN)),
                Arm("ReAct", BASE, (("framework", "react"), _SHOWN)),
                Arm("teacher, no retrieval", TEACHER, _CLOSED[:2], ("chain",)),
                Arm("teacher, single-step RAG", TEACHER, _ONCE[:1], ("chain",)),
                Arm(
                    "teacher, ITER-RETGEN",
                    TEACHER,
                    (("framework", "iter_retgen"), ("max_steps", 3)),
                    ("chain",),
                ),
                Arm("teacher, IRCoT", TEACHER),
                Arm("teacher, Self-Ask", TEACHER, (("framework", "self_ask"), _SHOWN)),
                Arm("SAIL", "sail", _ONCE[:1], ("chain",)),
                Arm("KARD", "kard", _ONCE[:1], ("chain",)),
                Arm("CoN", "chain_of_note", _ONCE[:1], ("chain",)),
                vanilla,
                steper,
                closed,
            ),
            metrics=("em", "f1", "acc"),
            pairs=_against(
                "StepER",
                *("Vanilla-KD", "SAIL", "KARD", "CoN", "teacher, IRCoT", "IRCoT", "single-step RAG"),
                "no retrieval",
            ),
            datasets=("2wiki", "hotpotqa", "musique"),
        ),
        Experiment(
            "table2",
            "Weights of the three tasks (Table 2)",
            (
                Arm("uniform", "steper_uniform"),
                Arm("weight-first", "steper_weight_first"),
                Arm("weight-last", "steper_weight_last"),
                Arm("difficulty-aware", "steper"),
                closed,
            ),
            pairs=_against("difficulty-aware", "uniform", "weight-first", "weight-last"),
            datasets=("hotpotqa", "musique"),
        ),
        Experiment(
            "table3",
            "The Self-Ask framework (Table 3)",
            (
                Arm("student as it was", BASE, (_SHOWN,), framework="self_ask"),
                Arm("Vanilla-KD", "vanilla_kd", framework="self_ask"),
                Arm("StepER", "steper", framework="self_ask"),
                replace(closed, framework="self_ask"),
                Arm("teacher", TEACHER, framework="self_ask"),
            ),
            pairs=_against("StepER", "Vanilla-KD", "student as it was", "teacher"),
            datasets=("hotpotqa", "musique"),
        ),
        Experiment(
            "table4",
            "How valid the chains are (Table 4)",
            (
                Arm("teacher", TEACHER),
                Arm("student as it was", BASE, (_SHOWN,)),
                vanilla,
                steper,
                closed,
            ),
            metrics=("acc", "sub_answers", "started", "deviation", "grounded"),
            pairs=_against("StepER", "Vanilla-KD", "student as it was", "teacher"),
            datasets=("2wiki", "hotpotqa", "musique"),
            judged=True,
        ),
        Experiment(
            "table5",
            "The teacher by the most steps it may take (Table 5)",
            tuple(Arm(f"S = {steps}", TEACHER, (("max_steps", steps),)) for steps in range(3, 8)),
            pairs=_against("S = 5", "S = 3", "S = 4", "S = 6", "S = 7"),
        ),
        Experiment("table6", "Accuracy by the steps that were used (Table 6)", (steper,), shows="steps"),
        Experiment(
            "table7",
            "Accuracy, recall and duplicates by steps (Table 7)",
            (
                *(Arm(f"StepER, S = {steps}", "steper", (("max_steps", steps),)) for steps in (3, 4, 5)),
                Arm("Vanilla-KD, S = 5", "vanilla_kd", (("max_steps", 5),)),
                once,
            ),
            metrics=("acc", "recall", "duplicates"),
            pairs=_against(
                "StepER, S = 5", "StepER, S = 3", "StepER, S = 4", "Vanilla-KD, S = 5", once.label
            ),
        ),
        Experiment(
            "fig3",
            "From vanilla-KD to StepER, example by example (Fig. 3)",
            (
                vanilla,
                Arm("+ first", "steper_first_final"),
                Arm("+ first + one mid", "steper_first_mid_final"),
                steper,
                closed,
            ),
            pairs=_against("StepER", "Vanilla-KD", "+ first", "+ first + one mid"),
            judged=True,
        ),
        Experiment(
            "fig4",
            "Students of several sizes (Fig. 4)",
            tuple(
                Arm(f"{label}, {size}", model, (_SHOWN,) if model == BASE else (), size=size)
                for size in sizes
                for label, model in (("IRCoT", BASE), ("Vanilla-KD", "vanilla_kd"), ("StepER", "steper"))
            ),
            pairs=tuple((f"StepER, {size}", f"Vanilla-KD, {size}") for size in sizes),
            datasets=("2wiki",),
        ),
        Experiment(
            "fig5",
            "Students out of their domain (Fig. 5)",
            tuple(
                Arm(f"{label}, learned on {data}", model, data=data)
                for data in abroad
                for label, model in (("Vanilla-KD", "vanilla_kd"), ("StepER", "steper"))
            ),
            pairs=tuple((f"StepER, learned on {data}", f"Vanilla-KD, learned on {data}") for data in abroad),
            datasets=tuple(abroad),
            abroad=True,
        ),
        Experiment(
            "fig6",
            "Accuracy and the seconds of a question (Fig. 6)",
            (
                *(Arm(f"StepER, {size}", "steper", size=size) for size in sizes),
                *(() if sizes else (steper,)),
                Arm("teacher, IRCoT", TEACHER),
                Arm("teacher, Self-Ask", TEACHER, (("framework", "self_ask"), _SHOWN)),
            ),
            pairs=tuple(
                (f"StepER, {size}" if size else "StepER", "teacher, IRCoT") for size in (sizes or ("",))
            ),
            datasets=("2wiki",),
            timed=True,
        ),
        Experiment("fig7", "The path of sigma (Fig. 7)", (steper,), shows="sigma"),
    )
    return {one.name: one for one in found}


def _against(row: str, *others: str) -> tuple[tuple[str, str], ...]:
    return tuple((row, other) for other in others)


def choose(known: Mapping[str, Experiment], names: Sequence[str]) -> list[Experiment]:
    """The experiments of these names, `all` for every one. Raises SteperError."""
    if not names:
        raise SteperError(f"name an experiment: {', '.join(known)}, or all")
    unknown = [name for name in names if name not in known and name != "all"]
    if unknown:
        raise SteperError(f"no experiment '{unknown[0]}': there are {', '.join(known)}, and all")
    wanted = list(known) if "all" in names else list(dict.fromkeys(names))
    if "fig4" in names and not known["fig4"].arms:
        raise SteperError("fig4 compares students of several sizes: name each with --student NAME=FOLDER")
    return [known[name] for name in wanted if known[name].arms]
