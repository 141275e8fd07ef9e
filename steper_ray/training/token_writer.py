"""Writes the token file of a Parquet file of trajectories.

The same trajectories and tokenizer give the same bytes; ROWS trajectories are in memory at a time. No Ray, no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steper_ray.config import PromptConfig
from steper_ray.core import chat, tokenizers
from steper_ray.core.copies import local
from steper_ray.core.errors import TrainingError
from steper_ray.core.files import file_sha256, write_file, write_text
from steper_ray.core.fingerprints import digest
from steper_ray.core.splits import draw, question_of
from steper_ray.core.tokenizers import Tokenizer
from steper_ray.frameworks import Layout, layout, layouts
from steper_ray.prompts import PromptEncoder, encoder, encoder_for, style_of
from steper_ray.schema import TRAJECTORY_SCHEMA, StopReason, Trajectory, trajectory_from_row
from steper_ray.training import alignment, encoding, tokens
from steper_ray.training.alignment import NONE
from steper_ray.training.encoding import encode
from steper_ray.training.sources import Source
from steper_ray.training.tokens import LISTS, SCHEMA, Note, crc

ROWS = 1024  # of one record batch


def tokens_key(tokenizer: Any, prompt: PromptConfig | None = None) -> str:
    """The key of what decides the ids besides the trajectories: tokenizer, libraries, layouts, prompts, this code."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    style = style_of(tokenizer, prompt or PromptConfig())
    template = {"template": tokenizer.chat_template} if style.format == "chat" else {}
    return digest(
        {
            "prompt": style.model_dump(mode="json") | template,
            "tokenizer": sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str(),
            "class": type(tokenizer).__name__,
            "ends": [tokenizer.bos_token_id, tokenizer.eos_token_id],
            "libraries": [version("tokenizers"), version("transformers")],
            "code": [
                file_sha256(Path(str(module.__file__)))
                for module in (tokenizers, chat, layout, encoder, alignment, encoding, tokens)
            ],
            "rows": file_sha256(Path(__file__)),
            "layouts": {name: asdict(one) for name, one in layouts().items()},
        }
    )


def write_tokens(
    source: Source,
    file: Path,
    tokenizer: Tokenizer,
    known: Mapping[str, Layout] | None = None,
    prompt: PromptConfig | None = None,
) -> None:
    """Writes the token file of one Parquet file; `known` are the layouts by framework.

    Raises TrainingError, naming file, trajectory and fix, or ModelError for a chat template that does not work.
    """
    if file_sha256(source.path) != source.sha256:
        raise TrainingError(f"{source.path}: changed since the training began: train again")
    encoders = {
        name: encoder_for(tokenizer, one, prompt or PromptConfig())
        for name, one in (known or layouts()).items()
    }
    rows, highest, words, soft, sha256 = 0, -1, 0, 0, ""
    (end,) = {one.end for one in encoders.values()}

    def write(fresh: Path) -> None:
        nonlocal rows, highest, words, soft, sha256
        schema = SCHEMA.with_metadata({"eos": str(end)})
        with pa.OSFile(str(fresh), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in _encoded(source.path, encoders):
                writer.write_batch(batch)
                rows += batch.num_rows
                highest = max(highest, _highest(batch), end)
                words += len(batch.column("chain").flatten())
                soft += _soft(batch)
        sha256 = file_sha256(fresh)

    write_file(file, write)
    note = Note(sha256, file.stat().st_size, rows, highest, words, soft)
    write_text(file.with_suffix(".json"), json.dumps(asdict(note)) + "\n")


def _highest(batch: pa.RecordBatch) -> int:
    highest = (pc.max(batch.column(name).flatten()).as_py() for name in ("trunk", "question", "chain"))
    return max((-1 if value is None else value for value in highest), default=-1)


def _soft(batch: pa.RecordBatch) -> int:
    """Tokens of its chains that have soft targets."""
    found = 0
    for ids, chain in zip(batch.column("soft_ids"), batch.column("chain"), strict=True):
        if len(ids):
            found += int((ids.values.to_numpy().reshape(len(chain), -1) != NONE).any(axis=1).sum())
    return found


def _encoded(path: Path, encoders: Mapping[str, PromptEncoder]) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    for trajectory in _trajectories(path):
        encoder = encoders.get(trajectory.framework)
        if encoder is None:
            raise TrainingError(
                f"{path}: trajectory {trajectory.id}: unknown framework '{trajectory.framework}': set "
                f"reasoning.framework to it (known: {', '.join(encoders)})"
            )
        try:
            rows.append(_row(trajectory, encoder))
        except ValueError as error:
            raise TrainingError(f"{path}: trajectory {trajectory.id}: {error}. Build again") from error
        if len(rows) == ROWS:
            yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
            rows.clear()
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def _trajectories(path: Path) -> Iterator[Trajectory]:
    """The rows of a Parquet file. Raises TrainingError for what cannot be learned from."""
    try:
        with pq.ParquetFile(local(path)) as parquet:
            _check_columns(path, parquet.schema_arrow.names)
            for batch in parquet.iter_batches(256, columns=TRAJECTORY_SCHEMA.names, use_threads=False):
                for row in batch.to_pylist():
                    trajectory = trajectory_from_row(row)
                    _check(path, trajectory)
                    yield trajectory
    except (pa.ArrowException, OSError) as error:
        raise TrainingError(f"{path}: not a readable Parquet file: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise TrainingError(f"{path}: a row does not fit the trajectory schema: {error}") from error


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if {"question_id", "passages", "chain"} <= set(names):
        raise TrainingError(
            f"{path}: holds flat examples; training reads trajectories. Build again (finished shards are kept) and "
            "train on data/kept; of an export, train on data/trajectories"
        )
    missing = [name for name in TRAJECTORY_SCHEMA.names if name not in names]
    if missing:
        raise TrainingError(f"{path}: no column {missing[0]!r}: this is no file of trajectories")


def _check(path: Path, trajectory: Trajectory) -> None:
    if trajectory.stop_reason is not StopReason.ANSWERED:
        raise TrainingError(
            f"{path}: trajectory {trajectory.id} has no answer ({trajectory.stop_reason.value}): this is no file of "
            "kept trajectories. Train on the build's data/kept"
        )
    if any(step.taken_back for step in trajectory.steps):
        raise TrainingError(
            f"{path}: trajectory {trajectory.id}: a step took back what it wrote, so its steps are not those of its "
            "chain: make trajectories to learn from with reasoning.stop=fixed"
        )


def _row(trajectory: Trajectory, encoder: PromptEncoder) -> dict[str, Any]:
    ids = encode(trajectory, encoder)
    arrays = [np.asarray(getattr(ids, name)).ravel() for name in LISTS]
    arrays = [a if a.dtype == np.float16 else a.astype(np.int32) for a in arrays]
    return {
        "id": trajectory.id,
        "draw": draw(question_of(trajectory.id)),
        **dict(zip(LISTS, arrays, strict=True)),
        "crc": crc(arrays),
    }
