"""The command line: one command a stage, the same functions as jobs/.

Every command takes `--config FILE`, any number of `section.field=value` overrides and `--dry-run`, which prints the
resolved config and does nothing else. An error that a user can correct is one message and exit status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from steper_ray.cli.data import estimate, export, inspect_data
from steper_ray.cli.options import ConfigFile, DryRun, Overrides, run_stage
from steper_ray.cli.results import compare, judge, paper, report, tune
from steper_ray.config import Config
from steper_ray.config.file import CONFIGS, load_config
from steper_ray.core.errors import SteperError

DEFAULT = CONFIGS / "miniature.yaml"
_HELP = """Distil a multi-step RAG teacher into a small student, on Ray.

A run is one YAML file (--config); any setting may be replaced as SECTION.FIELD=VALUE. Every command continues where it
was stopped. Exit status: 0 done; 2 correct what the message names; 75 an endpoint was down, run it again; 130 stopped.
"""
_STYLE: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "markdown",
}
app = typer.Typer(no_args_is_help=True, help=_HELP, **_STYLE)


@app.command()
def doctor(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Check a config before hours are spent.

    Looks at the disk, the corpus, the index, Java and GPUs, and asks the model one question. Prints the prompt, the
    reply, the speed, and the fix for each fault. Changes nothing. Exits with status 2 if a check fails.
    """

    def stage(resolved: Config) -> None:
        from steper_ray.recipes.doctor import examine

        if faults := examine(resolved, typer.echo):
            raise SteperError(f"{faults} {'check' if faults == 1 else 'checks'} failed: see FAULT above")

    run_stage(stage, config, overrides, dry_run, needs_ray=False)


@app.command()
def index(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Build the BM25 index of the corpus, in RUN_DIR/index.

    Other commands build it themselves where it is missing.
    """

    def stage(resolved: Config) -> None:
        folder = stages().index(resolved)
        typer.echo(f"index: {folder}")
        if long := stages().long_passages(resolved, folder):
            typer.echo(f"passages: {long}")

    run_stage(stage, config, overrides, dry_run, needs_ray=False)


@app.command()
def build(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Ask the teacher every question and keep the trajectories to learn from, in RUN_DIR/data.

    Run it again to continue where it stopped and to ask questions that an outage left owed (exit status 75). Read the
    result with `steper inspect RUN_DIR`.
    """

    def stage(resolved: Config) -> None:
        typer.echo(stages().build(resolved).summary())

    run_stage(stage, config, overrides, dry_run)


app.command("inspect")(inspect_data)
app.command()(export)
app.command()(estimate)


@app.command()
def train(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Train one student on the kept trajectories; it becomes a Hugging Face folder, RUN_DIR/models/NAME.

    Run it again to continue from the last checkpoint. With --dry-run, also prints the estimated memory of a worker.
    """

    def stage(resolved: Config) -> None:
        result = stages().train(resolved)
        typer.echo(f"{result.name}: {result.steps} optimiser steps, model in {result.model_dir}")

    run_stage(stage, config, overrides, dry_run)
    if dry_run:
        stages().train_memory(load_config(config, overrides or []))


@app.command()
def evaluate(
    config: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to score: NAME=FOLDER, a folder or a hub name. May be repeated. Default: engine.model."
        ),
    ] = None,
) -> None:
    """Score models on the test set (`evaluate.corpus`, or `corpus`): EM, F1, accuracy, recall, steps.

    Scores and trajectories are in RUN_DIR/eval. Run it again to continue where it stopped.
    """

    def stage(resolved: Config) -> None:
        from steper_ray.evaluation.pipeline import format_scores

        typer.echo(format_scores(stages().evaluate(resolved, model or [])))

    run_stage(stage, config, overrides, dry_run)


@app.command()
def predict(
    config: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    model: Annotated[
        str | None,
        typer.Option(help="Model to ask: NAME=FOLDER, a folder or a hub name. Default: engine.model."),
    ] = None,
) -> None:
    """Answer the questions of the test set, which need no gold answers, in RUN_DIR/predictions.

    Writes JSON lines with chains and passages, and the submission files of HotpotQA, 2WikiMultiHopQA and MuSiQue.
    """

    def stage(resolved: Config) -> None:
        typer.echo(stages().predict(resolved, model).summary())

    run_stage(stage, config, overrides, dry_run)


@app.command()
def self_distil(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Train a student on its own right trajectories, in rounds and without a teacher, in RUN_DIR/rounds.

    The first student is `self_distil.student`. Run it again to continue where it stopped.
    """

    def stage(resolved: Config) -> None:
        from steper_ray.recipes.self_distillation import format_rounds
        from steper_ray.recipes.self_distillation import self_distil as run

        typer.echo(format_rounds(run(resolved)))

    run_stage(stage, config, overrides, dry_run)


app.command()(report)
app.command()(compare)
app.command()(paper)
app.command()(judge)
app.command()(tune)


@app.command()
def serve(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Serve the model of `engine` as an HTTP endpoint with a page to ask questions, until Ctrl-C.

    Without a token (STEPER_API_TOKEN) it answers this machine alone.
    """

    def stage(resolved: Config) -> None:
        from steper_ray.serving.app import run

        run(resolved)

    run_stage(stage, config, overrides, dry_run, needs_ray=False)


@app.command()
def demo(config: ConfigFile = DEFAULT, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Run the whole path on a small made-up world: teacher, students, evaluation and report, in about 10 minutes.

    Run it again to continue where it stopped.
    """

    def stage(resolved: Config) -> None:
        from steper_ray.evaluation.power import power
        from steper_ray.recipes.demo import run_demo, student_folder

        typer.echo(f"test set: {power(resolved)}")
        run_demo(resolved)
        typer.echo(stages().report(resolved.run_dir))
        program = Path(sys.argv[0])
        shown = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
        student = f"engine.model={student_folder(resolved)}"
        typer.echo(f"\nreport   {resolved.run_dir / 'report.html'}")
        typer.echo(f"service  {shown} serve {f'--config {config} ' if config else ''}{student}")

    run_stage(stage, config, overrides, dry_run)


def run_job(command: Callable[..., None]) -> None:
    """One command as a script, with the same options and errors."""
    script = typer.Typer(**_STYLE)
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
