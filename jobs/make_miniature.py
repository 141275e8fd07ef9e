"""Makes the shipped miniature again: tokenizer, base and teacher, from seeds (an hour and a half on two cores).

    python jobs/make_miniature.py --work runs/miniature               # train; look at the models
    python jobs/make_miniature.py --work runs/miniature --ship        # and replace those in the package

A rerun keeps what is finished: phases of the base, the teacher. Few steps (`--steps 50`) try the path, not the models.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from steper_ray.cli.main import run_job


def make_miniature(
    work: Annotated[Path, typer.Option(help="Folder of the models as they are trained.")],
    steps: Annotated[int | None, typer.Option(help="Steps of both, instead of the recipe's.")] = None,
    ship: Annotated[bool, typer.Option("--ship", help="Replace the models of the package.")] = False,
) -> None:
    """Train the miniature's base and teacher."""
    from steper_ray.cluster import connect
    from steper_ray.miniature import make
    from steper_ray.models import ASSETS

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    base, teacher = work / "base", work / "teacher"
    if not (base / make.DONE).exists():
        make.make_base(make.make_tokenizer(), base, steps)
    if not (teacher / make.DONE).exists():
        connect()
        make.make_teacher(base, teacher, work / "run", steps or make.TEACHER_STEPS)
    if ship:
        for folder in (base, teacher):
            make.ship(folder, ASSETS / folder.name)


if __name__ == "__main__":
    run_job(make_miniature)
