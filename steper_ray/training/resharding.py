"""A checkpoint of one number of workers made loadable by any other.

ZeRO's shards are bound to the number of workers that wrote them. DeepSpeed's universal format holds every parameter
and its optimiser state whole, in one file, and each worker reads its part. Knows DeepSpeed's files alone.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from argparse import Namespace
from pathlib import Path

from steper_ray.core.copies import local, scratch
from steper_ray.core.files import put_folder
from steper_ray.core.storage import is_remote
from steper_ray.training.engine import TAG


def to_any_world(folder: Path, out: Path) -> str | None:
    """Writes the checkpoint in `folder` to `out` in the universal format; returns why it cannot, or None.

    Needs room for one more copy, and no more memory than one parameter and one worker's shard take.
    """
    if not is_remote(out):
        return _convert(folder, out)
    fresh = scratch(out.name)
    try:
        if (message := _convert(local(folder), fresh)) is None:
            put_folder(fresh, out)
        return message
    finally:
        shutil.rmtree(fresh.parent, ignore_errors=True)


def _convert(folder: Path, out: Path) -> str | None:
    from deepspeed.checkpoint.ds_to_universal import main

    shutil.rmtree(out, ignore_errors=True)
    settings = Namespace(
        input_folder=str(folder / TAG),
        output_folder=str(out / TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main(settings)
    except (
        Exception
    ) as error:  # a converter raises what it likes, and the other workers are waiting for an answer
        return f"{type(error).__name__}: {error}"
    return None
