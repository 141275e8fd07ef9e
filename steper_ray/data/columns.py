"""A table of trajectories by its columns: what the filter and the counts need, without a Python object a passage.

Rows are numbered from 0. Pure Arrow and numpy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steper_ray.schema import TRAJECTORY_SCHEMA, StopReason, Trajectory, trajectory_from_row
from steper_ray.schema.types import trajectory_id as id_of

#: What differs between two runs over the same inputs, and what it becomes in trajectories that are learned from.
_VOLATILE = {"retrieval_seconds": 0.0, "generation_seconds": 0.0, "mean_logprob": None, "confidence": None}


class Columns:
    """The rows of one or more shards, in the order they were given."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self.table: pa.Table = pa.concat_tables(tables).combine_chunks()
        steps = self._column("steps")
        self._steps = np.asarray(steps.offsets)
        self._step = steps.values

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def questions(self) -> list[str]:
        """The question's id of each row."""
        return self._question("id")

    @cached_property
    def answers(self) -> list[list[str]]:
        return self._question("answers")

    @cached_property
    def stop_reasons(self) -> list[StopReason]:
        reasons = {reason.value: reason for reason in StopReason}
        return [reasons[value] for value in self._column("stop_reason").to_pylist()]

    @cached_property
    def plain(self) -> dict[str, list[Any]]:
        """The columns answer, error, source, sample and attempt."""
        return {n: self._column(n).to_pylist() for n in ("answer", "error", "source", "sample", "attempt")}

    @cached_property
    def n_steps(self) -> list[int]:
        """Steps of each row."""
        counts: list[int] = np.diff(self._steps).tolist()
        return counts

    @cached_property
    def took_back(self) -> list[bool]:
        """Whether a step of the row took back what it wrote."""
        some = np.asarray(pc.not_equal(self._step.field("taken_back"), ""))
        before = np.concatenate([[0], np.cumsum(some)])
        found: list[bool] = (before[self._steps[1:]] > before[self._steps[:-1]]).tolist()
        return found

    @cached_property
    def found_nothing(self) -> list[bool]:
        """Whether the row's first search found no passage."""
        ends, first = np.asarray(self._step.field("hits").offsets), self._steps[:-1]
        has_steps = self._steps[1:] > first
        last = max(len(ends) - 2, 0)
        counts = np.diff(ends)[np.minimum(first, last)] if len(ends) > 1 else np.zeros(len(first), np.int64)
        found: list[bool] = (has_steps & (counts == 0)).tolist()
        return found

    def recalls(self) -> list[tuple[float, ...] | None]:
        """The share of each row's gold passages after each step; None without gold ids or steps."""
        hits = self._step.field("hits")
        ids = hits.values.field("passage").field("id").to_pylist()
        ends = np.asarray(hits.offsets).tolist()
        steps = self._steps.tolist()
        return [
            _recall(set(gold), ids, ends[steps[row] : steps[row + 1] + 1])
            if gold and steps[row + 1] > steps[row]
            else None
            for row, gold in enumerate(self._question("gold_ids"))
        ]

    def supported(self, row: int) -> list[bool | None]:
        """Whether the fact of each step has its passage in the prompt; None where no fact is annotated."""
        return self._marks[0][self._steps[row] : self._steps[row + 1]]

    def injected(self, row: int) -> int:
        """Steps with a passage that was put among their hits."""
        return sum(id is not None for id in self._marks[1][self._steps[row] : self._steps[row + 1]])

    @cached_property
    def _marks(self) -> tuple[list[bool | None], list[str | None]]:
        """`supported` and `injected` of every step."""
        return self._step.field("supported").to_pylist(), self._step.field("injected").to_pylist()

    def chain(self, row: int) -> tuple[str, ...]:
        """The reasoning of each step."""
        return tuple(self._step.field("reasoning")[self._steps[row] : self._steps[row + 1]].to_pylist())

    def trajectory_id(self, row: int) -> str:
        """As `Trajectory.id`."""
        return id_of(self.questions[row], self.plain["sample"][row], self.plain["attempt"][row])

    def trajectory(self, row: int) -> Trajectory:
        """The whole row as an object."""
        return trajectory_from_row(self.table.slice(row, 1).to_pylist()[0])

    def settled(self, rows: Sequence[int]) -> pa.Table:
        """Some rows without what differs between two runs over the same inputs: times, log-probabilities, tokens."""
        table = self.table.take(pa.array(rows, pa.int64())).combine_chunks()
        steps = (
            table.column("steps").chunk(0)
            if table.num_rows
            else pa.array([], table.schema.field("steps").type)
        )
        values, kind = steps.values, steps.type.value_type
        arrays = []
        for field in kind:
            if field.name == "usage":
                zeros = pa.array(np.zeros(len(values), np.int64))
                arrays.append(
                    pa.StructArray.from_arrays([zeros] * field.type.num_fields, fields=list(field.type))
                )
            elif field.name in _VOLATILE:
                value = pa.scalar(_VOLATILE[field.name], field.type)
                arrays.append(pa.repeat(value, len(values)))
            else:
                arrays.append(values.field(field.name))
        fresh = pa.ListArray.from_arrays(steps.offsets, pa.StructArray.from_arrays(arrays, fields=list(kind)))
        number = table.schema.get_field_index("steps")
        return table.set_column(number, "steps", fresh).cast(TRAJECTORY_SCHEMA)

    def _column(self, name: str) -> Any:
        column = self.table.column(name)
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    def _question(self, name: str) -> list[Any]:
        values: list[Any] = self._column("question").field(name).to_pylist()
        return values


def _recall(gold: set[str], ids: Sequence[str], ends: Sequence[int]) -> tuple[float, ...]:
    found: set[str] = set()
    recalls = []
    for start, end in itertools.pairwise(ends):
        found |= gold.intersection(ids[start:end])
        recalls.append(len(found) / len(gold))
    return tuple(recalls)
