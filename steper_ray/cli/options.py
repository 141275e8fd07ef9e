"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steper_ray.core.storage import as_path


def place(name: str) -> Path:
    """A path, or a URL of a store, from the command line. Raises typer.BadParameter."""
    try:
        return as_path(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


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
