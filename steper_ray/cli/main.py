"""The command line: one command a stage, the same functions as jobs/.

Every command takes `--config FILE`, any number of `section.field=value` overrides and `--dry-run`, which prints the
resolved config and does nothing else. An error that a user can correct is one message and exit status 2.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from steper_ray.cli.data import estimate, export, inspect_data
from steper_ray.cli.options import ConfigFile, DryRun, Overrides
from steper_ray.config import Config
from steper_ray.config.file import load_config
from steper_ray.core.errors import SteperError

DEFAULT = Path("jobs/configs/miniature.yaml")
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def _run(
    stage: Callable[[Config], Any],
    config: Path | None,
    overrides: list[str] | None,
    dry_run: bool,
    *,
    needs_ray: bool = True,
) -> None:
    resolved = load_config(config, overrides or [])
    if dry_run:
        typer.echo(resolved.dump(), nl=False)
        return
    try:
        if needs_ray:
            from steper_ray.cluster import connect

            connect(resolved.run_dir)
        stage(resolved)
    except KeyboardInterrupt:
        logging.disable()  # threads of Ray Data that lose their Ray log a traceback each
        typer.echo("stopped; the same command continues where it left off", err=True)
        sys.exit(130)


@app.command()
def doctor(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Check a config before hours are spent: files, index, disk, Java, GPUs, and one question to its model."""

    def stage(resolved: Config) -> None:
        from steper_ray.recipes.doctor import examine

        if faults := examine(resolved, typer.echo):
            raise SteperError(f"{faults} {'check' if faults == 1 else 'checks'} failed: see FAULT above")

    _run(stage, config, overrides, dry_run, needs_ray=False)


@app.command()
def index(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Build the BM25 index of the corpus (the other stages build it when it is missing)."""

    def stage(resolved: Config) -> None:
        folder = stages().index(resolved)
        typer.echo(f"index: {folder}")
        if long := stages().long_passages(resolved, folder):
            typer.echo(f"passages: {long}")

    _run(stage, config, overrides, dry_run, needs_ray=False)


@app.command()
def build(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Teacher rollouts, filters, and the trajectories that are kept."""

    def stage(resolved: Config) -> None:
        typer.echo(stages().build(resolved).summary())

    _run(stage, config, overrides, dry_run)


app.command("inspect")(inspect_data)
app.command()(export)
app.command()(estimate)


@app.command()
def train(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Train one student on the kept trajectories under run_dir and export it. A dry run prints its memory, too."""

    def stage(resolved: Config) -> None:
        result = stages().train(resolved)
        typer.echo(f"{result.name}: {result.steps} optimiser steps, model in {result.model_dir}")

    _run(stage, config, overrides, dry_run)
    if dry_run:
        stages().train_memory(load_config(config, overrides or []))


@app.command()
def evaluate(
    config: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER, a folder or a hub name; may be repeated. By default engine.model."),
    ] = None,
) -> None:
    """Score models over the test set, in every step unit of the config."""

    def stage(resolved: Config) -> None:
        from steper_ray.evaluation.pipeline import format_scores

        typer.echo(format_scores(stages().evaluate(resolved, model or [])))

    _run(stage, config, overrides, dry_run)


@app.command()
def predict(
    config: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    model: Annotated[
        str | None, typer.Option(help="NAME=FOLDER, a folder or a hub name. By default engine.model.")
    ] = None,
) -> None:
    """Answer the test set's questions, with or without gold answers: JSONL, and the official submission formats."""

    def stage(resolved: Config) -> None:
        typer.echo(stages().predict(resolved, model).summary())

    _run(stage, config, overrides, dry_run)


@app.command()
def self_distil(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Rounds in which a student learns from its own right trajectories, without a teacher."""

    def stage(resolved: Config) -> None:
        from steper_ray.recipes.self_distillation import format_rounds
        from steper_ray.recipes.self_distillation import self_distil as run

        typer.echo(format_rounds(run(resolved)))

    _run(stage, config, overrides, dry_run)


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Write report.html again from a run's results.json, or from its trainings' logs, and print its table."""
    typer.echo(stages().report(run_dir))


@app.command()
def serve(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Serve the reasoner and its page with the config's engine; Ctrl-C ends it."""

    def stage(resolved: Config) -> None:
        from steper_ray.serving.app import run

        run(resolved)

    _run(stage, config, overrides, dry_run, needs_ray=False)


@app.command()
def demo(config: ConfigFile = DEFAULT, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """The whole path on the miniature world: teacher, students, table and report."""

    def stage(resolved: Config) -> None:
        from steper_ray.recipes.demo import run_demo, student_folder

        run_demo(resolved)
        typer.echo(stages().report(resolved.run_dir))
        program = Path(sys.argv[0])
        shown = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
        student = f"engine.model={student_folder(resolved)}"
        typer.echo(f"\nreport   {resolved.run_dir / 'report.html'}")
        typer.echo(f"service  {shown} serve {f'--config {config} ' if config else ''}{student}")

    _run(stage, config, overrides, dry_run)


def run_job(command: Callable[..., None]) -> None:
    """One command as a script, with the same options and errors."""
    script = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    script.command()(command)
    _guarded(script)


def stages() -> Any:
    """The stages, imported late: `--help` answers at once."""
    from steper_ray import stages as module

    return module


def main() -> None:
    """The entry point of the `steper` command."""
    _guarded(app)


def _guarded(program: Callable[[], Any]) -> None:
    try:
        program()
    except SteperError as error:
        if error.report:
            typer.echo(error.report)
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
