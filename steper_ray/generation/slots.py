"""A key-value cache of slots: each running sequence owns one row and writes its next token in place.

Rows have different lengths and are never padded to one another: sequence i lies in row i from column 0, and a
mask hides what is behind its end. So a sequence joins without touching the others, and leaves by having the last
row moved into its place. Only full attention is supported. It knows transformers' Cache interface and nothing of
requests, tokens or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

KeysValues = tuple[torch.Tensor, torch.Tensor]
_COLUMNS = 256  # columns are added in blocks, so that growth (a copy) is rare


class SlotCache(Cache):
    """`prefill`, `extend` or `decode` says what the next forward pass writes; the pass itself calls `update`."""

    def __init__(self, n_layers: int, max_rows: int, max_columns: int) -> None:
        self.span = _Span()
        self._max_rows, self._max_columns = max_rows, max_columns
        super().__init__(layers=[_SlotLayer(self.span) for _ in range(n_layers)])

    def prefill(self, first_row: int, rows: int, columns: int) -> None:
        """The next pass starts `rows` new sequences of up to `columns` tokens, right-padded, from `first_row`."""
        self._reserve(first_row + rows, columns)
        self.span.first_row, self.span.ends, self.span.start, self.span.columns = first_row, None, 0, columns

    def extend(self, row: int, states: Sequence[KeysValues], start: int, columns: int) -> None:
        """The next pass writes columns `start` to `columns` of one row, whose first ones are taken from `states`."""
        self._reserve(row + 1, columns)
        for layer, (keys, values) in zip(self.layers, states, strict=True):
            layer.keys[row, :, :start], layer.values[row, :, :start] = keys[:, :start], values[:, :start]
        self.span.first_row, self.span.ends, self.span.start, self.span.columns = row, None, start, columns

    @property
    def is_used(self) -> bool:
        """Whether it holds memory."""
        return any(layer.is_initialized for layer in self.layers)

    def states(self, row: int, columns: int) -> list[KeysValues]:
        """A copy of the first `columns` columns of a row, layer by layer."""
        return [
            (la.keys[row, :, :columns].clone(), la.values[row, :, :columns].clone()) for la in self.layers
        ]

    def decode(self, ends: torch.Tensor, columns: int) -> None:
        """The next pass writes one token of row i to column `ends[i]`, for the first len(ends) rows.

        `columns` is the highest end + 1: what attention sees.
        """
        self._reserve(len(ends), columns)
        self.span.rows = torch.arange(len(ends), device=ends.device)
        self.span.ends, self.span.columns = ends, columns

    def move(self, source: int, target: int, columns: int) -> None:
        """Copies the first `columns` columns of a row into another row."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys[target, :, :columns] = layer.keys[source, :, :columns]
                layer.values[target, :, :columns] = layer.values[source, :, :columns]

    def _reserve(self, rows: int, columns: int) -> None:
        span = self.span
        if rows <= span.row_capacity and columns <= span.column_capacity:
            return
        row_capacity, column_capacity = span.row_capacity, span.column_capacity
        if rows > row_capacity:
            row_capacity = min(max(rows, 2 * row_capacity), self._max_rows)
        if columns > column_capacity:
            column_capacity = min(-(-columns // _COLUMNS) * _COLUMNS, self._max_columns)
        for layer in self.layers:
            layer.grow(row_capacity, column_capacity)
        # Only now: where memory ran out in the middle, what all layers hold is still the old capacity.
        span.row_capacity, span.column_capacity = row_capacity, column_capacity


class _Span:
    """State shared by all layers: the capacities, and the slots of the running pass."""

    def __init__(self) -> None:
        self.row_capacity = 0
        self.column_capacity = 0
        self.first_row = 0
        self.start = 0
        self.columns = 0
        self.rows: torch.Tensor | None = None
        self.ends: torch.Tensor | None = None


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer: [rows, heads, columns, head size]."""

    def __init__(self, span: _Span) -> None:
        super().__init__()
        self._span = span

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, columns = self._span.row_capacity, self._span.column_capacity
        self.keys, self.values = _zeros(key_states, rows, columns), _zeros(value_states, rows, columns)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        span = self._span
        if span.ends is None:
            rows = slice(span.first_row, span.first_row + len(key_states))
            self.keys[rows, :, span.start : span.columns] = key_states
            self.values[rows, :, span.start : span.columns] = value_states
            if span.start == 0:
                return key_states, value_states
            return self.keys[rows, :, : span.columns], self.values[rows, :, : span.columns]
        self.keys[span.rows, :, span.ends] = key_states[:, :, 0]
        self.values[span.rows, :, span.ends] = value_states[:, :, 0]
        rows = slice(len(key_states))
        return self.keys[rows, :, : span.columns], self.values[rows, :, : span.columns]

    def grow(self, rows: int, columns: int) -> None:
        if self.is_initialized:
            self.keys, self.values = _grown(self.keys, rows, columns), _grown(self.values, rows, columns)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._span.columns, 0

    def get_seq_length(self) -> int:
        """Tokens before this pass; a decoding pass is given its positions."""
        return self._span.start if self._span.ends is None else self._span.columns - 1

    def get_max_length(self) -> int:
        return -1


def _zeros(states: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    # Zeros, not garbage: a masked column has weight 0, and 0 times a stray NaN would still be NaN.
    shape = (rows, states.shape[1], columns, states.shape[3])
    return torch.zeros(shape, dtype=states.dtype, device=states.device)


def _grown(old: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A copy of at least this capacity; a growth that failed in a later layer may have left a larger one."""
    new = _zeros(old, max(rows, old.shape[0]), max(columns, old.shape[2]))
    new[: old.shape[0], :, : old.shape[2]] = old
    return new
