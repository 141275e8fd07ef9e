"""The command `steper paper`: data sets of a scale, the plan of a dry run, and the files that it writes.

- Writes ROOT/paper/NAME.md and, where the paper has a figure, NAME.svg.
- Each data set is a run below ROOT with the settings of its YAML file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from steper_ray.config import Config
from steper_ray.config.file import CONFIGS, load_config
from steper_ray.core.errors import SteperError
from steper_ray.core.files import write_text
from steper_ray.evaluation.power import power
from steper_ray.experiments.cost import cost
from steper_ray.experiments.plan import Experiment, choose, experiments
from steper_ray.experiments.run import Paper
from steper_ray.experiments.tables import figure, markdown

Say = Callable[[str], None]
#: Fig. 4's students in the paper.
_SIZES = {size: f"Qwen/Qwen2.5-{size}" for size in ("0.5B", "1.5B", "3B", "7B")}


class Scale(StrEnum):
    """`mini`: the made-up worlds; `full`: the paper's models and data."""

    mini = "mini"
    full = "full"


def run_paper(
    names: Sequence[str],
    scale: Scale,
    files: Sequence[Path],
    overrides: Sequence[str],
    students: Sequence[str],
    *,
    dry_run: bool,
    say: Say,
) -> None:
    """Runs the named experiments over the data sets of `files`, by default the scale's, and says their tables.

    Raises SteperError; the same call continues where it stopped.
    """
    root = _root(scale, overrides)
    configs, abroad = _datasets(scale, files, overrides)
    sizes = _sizes(students) or (_SIZES if scale is Scale.full else {})
    chosen = [
        (experiment, data)
        for experiment in choose(experiments(sizes, list(abroad)), names)
        for data in _data_of(experiment, configs, abroad)
    ]
    paper = Paper(root, {**abroad, **configs}, sizes)
    say(plan(paper, chosen))
    if dry_run:
        if scale is Scale.full:
            say(cost(paper, chosen))
        return
    for outcome in paper.run(chosen):
        text = markdown(outcome)
        write_text(root / "paper" / f"{outcome.experiment.name}.md", text)
        if (svg := figure(outcome)) is not None:
            write_text(root / "paper" / f"{outcome.experiment.name}.svg", svg)
        say(text)
    say(f"tables   {root / 'paper'}")


def plan(paper: Paper, chosen: Sequence[tuple[Experiment, str]]) -> str:
    """What a run will do, and the differences that its test sets can show."""
    trainings, asked = paper.students(chosen), paper.jobs(chosen)
    lines = [f"experiments  {', '.join(dict.fromkeys(experiment.name for experiment, _ in chosen))}"]
    for setting in dict.fromkeys([*(one.setting for one in trainings), *asked]):
        config = paper.config(setting)
        lines.append(f"{setting.folder}  {config.run_dir}")
        if own := [one for one in trainings if one.setting == setting]:
            names = dict.fromkeys(one.name.rpartition("-")[0] for one in own)
            lines.append(f"  teacher      {_teacher(config)}")
            lines.append(
                f"  trainings    {len(own)}: {', '.join(names)}; seeds {', '.join(map(str, config.demo.seeds))}"
            )
        if jobs := asked.get(setting):
            lines.append(f"  evaluations  {len(jobs)} over {power(config)}")
    return "\n".join(lines) + "\n"


def _teacher(config: Config) -> str:
    who = config.engine.model if config.build.teacher == "engine" else "annotated chains"
    return f"{who}, {config.reasoning.framework}, at most {config.reasoning.max_steps} steps"


def _root(scale: Scale, overrides: Sequence[str]) -> Path:
    config = load_config(None, [one for one in overrides if one.startswith("run_dir=")])
    named = any(one.startswith("run_dir=") for one in overrides)
    return config.run_dir if named else Path("runs") / f"paper-{scale}"


def _datasets(
    scale: Scale, files: Sequence[Path], overrides: Sequence[str]
) -> tuple[dict[str, Config], dict[str, Config]]:
    """The data sets by name, and those for students out of their domain."""
    if not files and scale is Scale.mini:
        file = CONFIGS / "miniature.yaml"
        halves = {
            half: [
                f"corpus.miniature.relations={half}",
                f"evaluate.corpus.miniature.relations={half}",
                "build.teacher=annotation",
            ]
            for half in ("first", "second")
        }
        own = {"miniature": load_config(file, overrides)}
        return own, {half: load_config(file, [*given, *overrides]) for half, given in halves.items()}
    found = files or [CONFIGS / f"paper_{data}.yaml" for data in ("2wiki", "hotpotqa", "musique")]
    configs = {file.stem.removeprefix("paper_"): load_config(file, overrides) for file in found}
    if len(configs) < len(found):
        raise SteperError("two data sets have one name: give their YAML files different names")
    return configs, configs if len(configs) > 1 else {}


def _data_of(
    experiment: Experiment, configs: Mapping[str, Config], abroad: Mapping[str, Config]
) -> Sequence[str]:
    """The data sets of an experiment: the paper's where they are among those given, else all of them."""
    if experiment.abroad:
        return list(abroad)
    return [data for data in configs if data in experiment.datasets] or list(configs)


def _sizes(students: Sequence[str]) -> dict[str, str]:
    sizes = {}
    for student in students:
        name, equals, model = student.partition("=")
        if not (name and equals and model):
            raise SteperError(f"--student {student}: give NAME=FOLDER or NAME=HUB_NAME")
        sizes[name] = model
    return sizes
