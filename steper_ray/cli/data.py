"""The commands for a built data set: inspect, export, estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steper_ray.cli.options import ConfigFile, Overrides, place

RunDir = Annotated[Path, typer.Argument(parser=place, help="Folder of a run that was built.")]


def inspect_data(
    run_dir: RunDir,
    show: Annotated[int, typer.Option(help="Trajectories to print.")] = 0,
    fate: Annotated[
        str | None, typer.Option(help="Only trajectories that were `kept`, or dropped for this reason.")
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="Only this question id. May be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Show what a build made: counts, lengths, repeated steps, recall, the teacher's cost.

    With --show, also prints trajectories.
    """
    import json
    from itertools import islice

    from rich.console import Console

    from steper_ray.data.inspection import DataSet, inspect
    from steper_ray.data.inspection_json import as_object
    from steper_ray.data.inspection_text import summary, trajectory

    data = DataSet(run_dir)
    wanted = (
        s for s in data if fate in (None, s.fate) and (not question or s.trajectory.question.id in question)
    )
    chosen = islice(wanted, len(question) if question and not show else show)
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
    out: Annotated[
        Path, typer.Argument(parser=place, help="Folder to write. An earlier export there is replaced.")
    ],
    validation: Annotated[
        float, typer.Option(help="Share of the questions to hold out as the split `validation`.")
    ] = 0.0,
    language: Annotated[str, typer.Option(help="Language of the data, for the card.")] = "en",
) -> None:
    """Write the data set of a build as a folder that `datasets.load_dataset` reads, with a data card.

    It has prompts and completions for other trainers, and the trajectories.
    """
    from steper_ray.data.export import export as write

    typer.echo(write(run_dir, out, validation=validation, language=language).summary())


def estimate(
    config: ConfigFile = None,
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="Kind of GPU: A100, H100 or H200.")] = "H100",
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs. Default: those of build.engines engines.")
    ] = None,
    params: Annotated[
        float | None, typer.Option(min=1, help="Parameters of the model, if it is not on this disk.")
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(min=1e-9, help="Tokens one engine generates per second, prompt processing included."),
    ] = None,
    from_run: Annotated[
        Path | None, typer.Option("--from", parser=place, help="Earlier run to take speed and steps from.")
    ] = None,
) -> None:
    """Estimate what a build will take: generations, tokens and engine hours, and what the estimate assumes.

    Asks no model. Counts with the texts of the corpus, or with an earlier run (--from).
    """
    from steper_ray.config.file import load_config
    from steper_ray.data.estimate import Options, make_estimate, text

    options = Options(gpu, gpus, params, tokens_per_second, from_run)
    typer.echo(text(make_estimate(load_config(config, overrides or []), options)))
