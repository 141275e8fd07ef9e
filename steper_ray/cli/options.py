"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of a run.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides, such as train.epochs=3.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")]
