"""Commands that read or make results: `report`, `compare`, `paper`, `judge` and `tune`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from steper_ray.cli.options import ConfigFile, DryRun, Overrides, place, run_stage, stoppable
from steper_ray.config import Config


def report(run_dir: Annotated[Path, typer.Argument(parser=place, help="Folder of a run.")]) -> None:
    """Write RUN_DIR/report.html again and print its table.

    It is made from the run's results.json, or from the logs of its trainings where there is none.
    """
    from steper_ray import stages

    typer.echo(stages.report(run_dir))


def compare(
    run_dir: Annotated[Path, typer.Argument(parser=place, help="Folder of a run.")],
    one: Annotated[str, typer.Argument(help="Name of an evaluation; of several seeds with commas between.")],
    other: Annotated[str, typer.Argument(help="The evaluation to compare it with.")],
    show: Annotated[int, typer.Option(help="Questions to print that one alone got right, a step unit.")] = 0,
) -> None:
    """Compare two evaluations question by question: difference, 95 % interval, p value, and where they part.

    Names are those of `steper evaluate --model NAME=FOLDER`.
    """
    from steper_ray import stages

    typer.echo(stages.compare(run_dir, one, other, show))


def paper(
    wanted: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EXPERIMENT... SECTION.FIELD=VALUE...",
            help="`table1`, `table2`, `table3`, `table5`, `table6`, `table7`, `fig3`, `fig4`, `fig5`, `fig7` or `all`.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        Literal["mini", "full"], typer.Option(help="The made-up worlds, or the paper's models and data.")
    ] = "mini",
    config: Annotated[
        list[Path] | None,
        typer.Option(
            "--config", "-c", parser=place, help="Data sets instead of the scale's: a YAML file each."
        ),
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(help="A student of fig4: NAME=FOLDER or NAME=HUB_NAME. May be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would do, and stop.")] = False,
) -> None:
    """Make tables and figures of the StepER paper, beside its values, in RUN_DIR/paper.

    Experiments share what they train and ask. Run it again to continue where it stopped.
    """
    from steper_ray.experiments.paper import Scale, run_paper

    given = wanted or []
    names = [one for one in given if "=" not in one]
    overrides = [one for one in given if "=" in one]
    settings = (names, Scale(scale), config or [], overrides, student or [])
    stoppable(partial(run_paper, *settings, dry_run=dry_run, say=typer.echo), needs_ray=not dry_run)


def judge(
    wanted: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ONE OTHER SECTION.FIELD=VALUE...",
            help="Names of two evaluations; of several seeds with commas between.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    planted: Annotated[
        bool, typer.Option("--planted", help="Of one evaluation: does the judge see faults planted in it?")
    ] = False,
) -> None:
    """Have the chains of two evaluations rated by the model of `evaluate.judge`: beginning, expansion, aggregation.

    Each pair is asked in both orders. Replies are kept in RUN_DIR/eval/judged: run it again to continue.
    """
    names = [one for one in wanted or [] if "=" not in one]
    overrides = [one for one in wanted or [] if "=" in one]

    def stage(resolved: Config) -> None:
        from steper_ray import stages

        typer.echo(stages.judge_chains(resolved, names, planted=planted))

    run_stage(stage, config, overrides, dry_run, needs_ray=False)


def tune(
    config: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    model: Annotated[
        str | None,
        typer.Option(help="Model to ask: NAME=FOLDER, a folder or a hub name. Default: engine.model."),
    ] = None,
) -> None:
    """Try every combination of `tune.settings` on held-out questions, and keep the best, in RUN_DIR/tune.

    Run it again to continue where it stopped.
    """

    def stage(resolved: Config) -> None:
        from steper_ray.recipes.tuning import tune as run

        typer.echo(run(resolved, model).summary())

    run_stage(stage, config, overrides, dry_run)
