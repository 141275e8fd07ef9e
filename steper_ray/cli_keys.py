"""The command line's `steper key`: a new key for the reasoner endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steper_ray.serving.keys import add_key, entry_yaml, new_key

_Limit = Annotated[int | None, typer.Option(min=1, show_default="serve.limits")]


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is, in logs and metrics.")],
    file: Annotated[
        Path | None,
        typer.Option(help="File to add the entry to (serve.keys_file); by default it is printed."),
    ] = None,
    requests_per_minute: _Limit = None,
    concurrent: _Limit = None,
    max_question_chars: _Limit = None,
) -> None:
    """Make a random API key for the service. It is shown once: its entry holds nothing but its hash."""
    secret, entry = new_key(
        name,
        requests_per_minute=requests_per_minute,
        concurrent=concurrent,
        max_question_chars=max_question_chars,
    )
    if file is None:
        typer.echo(f"# an entry for serve.keys_file\n{entry_yaml(entry)}", err=True, nl=False)
    else:
        add_key(file, entry)
        typer.echo(f"added to {file}; running services read it in a second", err=True)
    typer.echo(secret)
