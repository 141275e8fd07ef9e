"""Trajectories as token ids: one Parquet file of trajectories makes one memory-mapped Arrow file.

- A row holds all that batches are made from, whatever the method, the steps and the packing: selecting needs no text.
- A token file is whole or not there: its note, written after it, holds its SHA-256, size, rows and highest token id.
- No bit is read that was not written: the SHA-256 is verified before training, each row's CRC whenever it is read.
- The same trajectories and tokenizer give the same bytes; ROWS trajectories are in memory at a time.

No Ray, no model.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steper_ray.config import PromptConfig
from steper_ray.core import chat, tokenizers
from steper_ray.core.copies import local
from steper_ray.core.errors import TrainingError
from steper_ray.core.files import file_sha256, write_file, write_text
from steper_ray.core.fingerprints import digest, file_fingerprint
from steper_ray.core.splits import draw, question_of
from steper_ray.core.tokenizers import Tokenizer
from steper_ray.frameworks import Layout, layout, layouts
from steper_ray.prompts import PromptEncoder, encoder, encoder_for, style_of
from steper_ray.schema import (
    TRAJECTORY_SCHEMA,
    Ability,
    StopReason,
    Trajectory,
    ability_of,
    trajectory_from_row,
)
from steper_ray.training.sources import Source

Ints = npt.NDArray[np.int32]

ROWS = 1024  # of one record batch
_IDS = pa.list_(pa.int32())
_LISTS = ("trunk", "question", "chain", "cuts", "ends", "tasks")
#: `draw` is the question's number of splits.py. A step's trunk is the first `cuts` ids of `trunk`, its target the first
#: `ends` ids of `chain` and the end of sequence. `crc` is the CRC-32 of the row's lists, in their order.
_SCHEMA = pa.schema(
    [("id", pa.string()), ("draw", pa.float64())] + [(name, _IDS) for name in _LISTS] + [("crc", pa.uint32())]
)
_TASK = {ability: number for number, ability in enumerate(Ability)}
_FIX = "Delete it and train again: it alone is made again"


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
                file_sha256(Path(str(module.__file__))) for module in (tokenizers, chat, layout, encoder)
            ],
            "rows": file_sha256(Path(__file__)),
            "layouts": {name: asdict(one) for name, one in layouts().items()},
        }
    )


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token files of the trajectories at `source`, one a Parquet file."""

    source: Path
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """The note of a whole token file."""

    sha256: str
    bytes: int
    rows: int
    highest: int


def note_of(file: Path) -> Note | None:
    """The note of a token file; None where it or its note is missing or cut short."""
    try:
        note = Note(**json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
        return note if file.stat().st_size == note.bytes else None
    except (OSError, ValueError, TypeError):
        return None


def is_whole(file: Path) -> bool:
    """Whether a token file is there and its bytes are those that were written."""
    note = note_of(file)
    return note is not None and file_fingerprint(file) == note.sha256


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
    rows, highest, sha256 = 0, -1, ""
    (end,) = {one.end for one in encoders.values()}

    def write(fresh: Path) -> None:
        nonlocal rows, highest, sha256
        schema = _SCHEMA.with_metadata({"eos": str(end)})
        with pa.OSFile(str(fresh), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in _encoded(source.path, encoders):
                writer.write_batch(batch)
                rows += batch.num_rows
                highest = max(highest, _highest(batch), end)
        sha256 = file_sha256(fresh)

    write_file(file, write)
    note = Note(sha256, file.stat().st_size, rows, highest)
    write_text(file.with_suffix(".json"), json.dumps(asdict(note)) + "\n")


def _highest(batch: pa.RecordBatch) -> int:
    highest = (pc.max(batch.column(name).flatten()).as_py() for name in ("trunk", "question", "chain"))
    return max((-1 if value is None else value for value in highest), default=-1)


def _encoded(path: Path, encoders: Mapping[str, PromptEncoder]) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    for trajectory in _trajectories(path):
        encoder = encoders.get(trajectory.framework)
        if encoder is None:
            raise TrainingError(
                f"{path}: trajectory {trajectory.id}: unknown framework '{trajectory.framework}': set "
                f"reasoning.framework to it (known: {', '.join(encoders)})"
            )
        rows.append(_row(trajectory, encoder))
        if len(rows) == ROWS:
            yield pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)
            rows.clear()
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)


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
    begin = encoder.trunk(())
    trunk, chain, cuts, ends = list(begin), list[int](), list[int](), list[int]()
    for step in trajectory.steps:
        for hit in step.hits:
            trunk += encoder.trunk((hit.passage,))[len(begin) :]
        chain += encoder.chain((step.reasoning,), begun=bool(chain))
        cuts.append(len(trunk))
        ends.append(len(chain))
    n_steps = len(trajectory.steps)
    tasks = [_TASK[ability_of(step, n_steps)] for step in range(1, n_steps + 1)]
    lists = (trunk, encoder.question(trajectory.question.text), chain, cuts, ends, tasks)
    arrays = [np.array(ids, np.int32) for ids in lists]
    return {
        "id": trajectory.id,
        "draw": draw(question_of(trajectory.id)),
        **dict(zip(_LISTS, arrays, strict=True)),
        "crc": _crc(arrays),
    }


def _crc(lists: Iterable[Ints]) -> int:
    return reduce(lambda crc, ids: zlib.crc32(ids.tobytes(), crc), lists, 0)


class Lists:
    """A column of lists, in place: row i is `values[offsets[i] : offsets[i + 1]]`."""

    def __init__(self, column: pa.ListArray) -> None:
        self.offsets: Ints = column.offsets.to_numpy()
        self.values: Ints = column.values.to_numpy()

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)

    def row(self, index: int) -> Ints:
        return self.values[self.offsets[index] : self.offsets[index + 1]]


class Chunk:
    """One record batch, in place."""

    def __init__(self, file: Path, batch: pa.RecordBatch) -> None:
        self._file = file
        self.ids: pa.StringArray = batch.column("id")
        self.draws: npt.NDArray[np.float64] = batch.column("draw").to_numpy()
        self.trunk, self.question, self.chain, self.cuts, self.ends, self.tasks = self._lists = [
            Lists(batch.column(name)) for name in _LISTS
        ]
        self._crc: npt.NDArray[np.uint32] = batch.column("crc").to_numpy()

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> list[Ints]:
        """Trunk, question, chain, cuts, ends and tasks of a trajectory. Raises TrainingError where a bit changed."""
        lists = [column.row(index) for column in self._lists]
        if _crc(lists) != self._crc[index]:
            raise TrainingError(
                f"{self._file}: damaged at trajectory {self.ids[index].as_py()} (its CRC-32 differs). {_FIX}"
            )
        return lists


class OpenTokens:
    """The token files of one source, memory-mapped: what is read is shared by all processes of a node.

    Rows are numbered over all files. Raises TrainingError for a file that is not whole.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.source = tokens.source
        self.chunks: list[Chunk] = []
        self.highest = self.eos = -1
        for file in tokens.files:
            self._open(file)
        self._starts = np.cumsum([0, *map(len, self.chunks)])

    def _open(self, file: Path) -> None:
        note = note_of(file)
        if note is None:
            raise TrainingError(f"{file}: this file of tokens is missing or not whole. {_FIX}")
        self.highest = max(self.highest, note.highest)
        try:
            # The mapping outlives the open file for as long as an array looks at it.
            with pa.memory_map(str(local(file))) as mapped, pa.ipc.open_file(mapped) as reader:
                self.eos = int(reader.schema.metadata[b"eos"])
                self.chunks += [Chunk(file, reader.get_batch(i)) for i in range(reader.num_record_batches)]
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise TrainingError(f"{file}: this file of tokens cannot be read: {error}. {_FIX}") from error

    def __len__(self) -> int:
        return int(self._starts[-1])

    def ids(self) -> pa.StringArray:
        """A copy of all ids."""
        return pa.concat_arrays([pa.array([], pa.string()), *(chunk.ids for chunk in self.chunks)])

    def place(self, row: int) -> tuple[Chunk, int]:
        """The chunk of a row and its index there."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.chunks[number], row - int(self._starts[number])

    def beyond(self, size: int) -> tuple[str, int] | None:
        """The first trajectory with a token id of at least `size`, and the id; None where there is none."""
        if self.highest < size:
            return None
        for chunk in self.chunks:
            for index, name in enumerate(chunk.ids):
                columns = (chunk.trunk, chunk.question, chunk.chain)
                highest = max((int(c.row(index).max(initial=-1)) for c in columns), default=-1)
                if highest >= size:
                    return name.as_py(), highest
        return "of any trajectory", self.highest
