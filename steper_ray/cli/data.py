"""The commands for a built data set: inspect, export, estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steper_ray.cli.options import ConfigFile, Overrides

RunDir = Annotated[Path, typer.Argument(help="Folder of a run that was built.")]


def inspect_data(
    run_dir: RunDir,
    show: Annotated[int, typer.Option(help="Trajectories to print, or to put into the page.")] = 0,
    fate: Annotated[
        str | None, typer.Option(help="Only those that were `kept`, or dropped for this.")
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="Only this question id; may be repeated.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page instead of printing.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """What a built data set holds: counts, lengths, repeats, recall, the teacher's cost, trajectories to read."""
    import json
    from itertools import islice

    from rich.console import Console

    from steper_ray.data.inspection import DataSet, inspect
    from steper_ray.data.inspection_json import as_object
    from steper_ray.data.inspection_text import page, summary, trajectory

    if html is not None and as_json:
        raise typer.BadParameter("--html and --json exclude each other")
    data = DataSet(run_dir)
    wanted = (
        s for s in data if fate in (None, s.fate) and (not question or s.trajectory.question.id in question)
    )
    chosen = islice(wanted, len(question) if question and not show else show)
    if html is not None:
        page(data, inspect(data), chosen, html)
        typer.echo(f"written to {html}")
        return
    if as_json:
        typer.echo(json.dumps(as_object(data, inspect(data), chosen), ensure_ascii=False))
        return
    console = Console(markup=False, highlight=False)
    if not question:
        console.print(summary(data, inspect(data)))
    for seen in chosen:
        console.print(trajectory(seen))


def export(
    run_dir: RunDir,
    out: Annotated[Path, typer.Argument(help="Folder to write; an export that is there is replaced.")],
    validation: Annotated[
        float, typer.Option(help="Share of the questions to hold out as a split of their own.")
    ] = 0.0,
    language: Annotated[str, typer.Option(help="Language of the data, for the card.")] = "en",
) -> None:
    """The data set as a folder that `datasets.load_dataset` reads, with a data card."""
    from steper_ray.data.export import export as write

    typer.echo(write(run_dir, out, validation=validation, language=language).summary())


def estimate(
    config: ConfigFile = None,
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="Kind of GPU: A100, H100 or H200.")] = "H100",
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs in all; by default build.engines engines.")
    ] = None,
    params: Annotated[
        float | None, typer.Option(min=1, help="Parameters of a model not on this disk.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1e-9, help="Tokens that one engine writes, reading included.")
    ] = None,
    from_run: Annotated[
        Path | None, typer.Option("--from", help="Run whose speed and steps are taken.")
    ] = None,
) -> None:
    """What a build will take, before it runs: generations, tokens and engine hours, with what they assume."""
    from steper_ray.config.file import load_config
    from steper_ray.data.estimate import Options, make_estimate, text

    options = Options(gpu, gpus, params, tokens_per_second, from_run)
    typer.echo(text(make_estimate(load_config(config, overrides or []), options)))
