"""What commands share: options, and how they run and stop."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from steper_ray.cluster import connect, leave
from steper_ray.config import Config
from steper_ray.config.file import load_config
from steper_ray.core.storage import as_path


def place(name: str) -> Path:
    """A path, or a URL of a store, from the command line. Raises typer.BadParameter."""
    try:
        return as_path(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def stoppable(work: Callable[[], None], *, needs_ray: bool) -> None:
    """Does the work of a command; Ctrl-C ends it with one line and exit status 130."""
    try:
        work()
    except KeyboardInterrupt:
        logging.disable()  # threads of Ray Data that lose their Ray log a traceback each
        typer.echo("stopped; the same command continues where it left off", err=True)
        if not needs_ray:
            sys.exit(130)
        leave(130)


ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", parser=place, help="YAML file that describes the run.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.FIELD=VALUE",
        help="Settings that replace those of the file, such as `train.epochs=3`. `--dry-run` shows all.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")]


def run_stage(
    stage: Callable[[Config], Any],
    config: Path | None,
    overrides: list[str] | None,
    dry_run: bool,
    *,
    needs_ray: bool = True,
) -> None:
    """Does `stage` with the resolved config, or prints it."""
    resolved = load_config(config, overrides or [])
    if dry_run:
        typer.echo(resolved.dump(), nl=False)
        return

    def work() -> None:
        if needs_ray:
            connect(resolved.run_dir)
        stage(resolved)

    stoppable(work, needs_ray=needs_ray)
