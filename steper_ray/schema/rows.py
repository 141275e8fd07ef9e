"""The types as Arrow rows: `to_row` / `from_row` are the only conversion between a type and a row of its schema."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import Any

import pyarrow as pa

from steper_ray.schema.types import (
    Ability,
    Hit,
    Passage,
    Question,
    Step,
    StepExample,
    StopReason,
    SubQuestion,
    TopLogprobs,
    Trajectory,
    Usage,
)

SCHEMA_VERSION = 5

_PASSAGE = pa.struct([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
_HIT = pa.struct([("passage", _PASSAGE), ("score", pa.float64())])
_SUB = pa.struct([("question", pa.string()), ("answer", pa.string()), ("support_id", pa.string())])
_USAGE = pa.struct(
    [
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("thinking_tokens", pa.int64()),
        ("larger_tokens", pa.int64()),
    ]
)
_TOP = pa.struct(
    [
        ("vocabulary", pa.string()),
        ("written", pa.list_(pa.int32())),
        ("ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float16())),
    ]
)
_QUESTION_FIELDS = [
    ("id", pa.string()),
    ("text", pa.string()),
    ("answers", pa.list_(pa.string())),
    ("gold_ids", pa.list_(pa.string())),
    ("hops", pa.int64()),
    ("decomposition", pa.list_(_SUB)),
    ("dataset", pa.string()),
]
_STEP = pa.struct(
    [
        ("index", pa.int64()),
        ("query", pa.string()),
        ("hits", pa.list_(_HIT)),
        ("reasoning", pa.string()),
        ("mean_logprob", pa.float64()),
        ("usage", _USAGE),
        ("retrieval_seconds", pa.float64()),
        ("generation_seconds", pa.float64()),
        ("taken_back", pa.string()),
        ("confidence", pa.float64()),
        ("duplicates", pa.int64()),
        ("supported", pa.bool_()),
        ("injected", pa.string()),
        ("top_logprobs", _TOP),
    ]
)


def _versioned(fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(fields, metadata={"steper_schema_version": str(SCHEMA_VERSION)})


PASSAGE_SCHEMA = _versioned(list(zip(("id", "title", "text"), [pa.string()] * 3, strict=True)))
QUESTION_SCHEMA = _versioned(_QUESTION_FIELDS)
TRAJECTORY_SCHEMA = _versioned(
    [
        ("question", pa.struct(_QUESTION_FIELDS)),
        ("framework", pa.string()),
        ("steps", pa.list_(_STEP)),
        ("answer", pa.string()),
        ("stop_reason", pa.string()),
        ("error", pa.string()),
        ("source", pa.string()),
        ("sample", pa.int64()),
        ("attempt", pa.int64()),
    ]
)
EXAMPLE_SCHEMA = _versioned(
    [
        ("id", pa.string()),
        ("question_id", pa.string()),
        ("step", pa.int64()),
        ("n_steps", pa.int64()),
        ("ability", pa.string()),
        ("question", pa.string()),
        ("passages", pa.list_(pa.list_(_PASSAGE))),
        ("chain", pa.list_(pa.string())),
        ("framework", pa.string()),
    ]
)
SCORE_SCHEMA = _versioned(
    [("question_id", pa.string()), ("step", pa.int64()), ("verifier", pa.string()), ("score", pa.float64())]
)


def to_row(value: Any) -> dict[str, Any]:
    """A type as a plain dict that fits its Arrow schema."""
    return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_row(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, StrEnum):
        return value.value
    return value


def passage_from_row(row: dict[str, Any]) -> Passage:
    return Passage(row["id"], row["title"], row["text"])


def question_from_row(row: dict[str, Any]) -> Question:
    return Question(
        id=row["id"],
        text=row["text"],
        answers=tuple(row["answers"]),
        gold_ids=tuple(row["gold_ids"]),
        hops=row["hops"],
        decomposition=tuple(SubQuestion(**sub) for sub in row["decomposition"]),
        dataset=row["dataset"],
    )


def step_from_row(row: dict[str, Any]) -> Step:
    hits = tuple(Hit(passage_from_row(hit["passage"]), hit["score"]) for hit in row["hits"])
    usage = Usage(**{name: tokens or 0 for name, tokens in row["usage"].items()})  # an older row has fewer
    top = row.get("top_logprobs")  # an older row has none
    if top is not None:
        top = TopLogprobs(
            top["vocabulary"],
            tuple(top["written"]),
            tuple(top["ids"]),
            tuple(map(float, top["logprobs"])),
        )
    return Step(**{**row, "hits": hits, "usage": usage, "top_logprobs": top})


def trajectory_from_row(row: dict[str, Any]) -> Trajectory:
    return Trajectory(
        **{
            **row,
            "question": question_from_row(row["question"]),
            "steps": tuple(step_from_row(step) for step in row["steps"]),
            "stop_reason": StopReason(row["stop_reason"]),
        }
    )


def example_from_row(row: dict[str, Any]) -> StepExample:
    return StepExample(
        **{
            **row,
            "ability": Ability(row["ability"]),
            "passages": tuple(tuple(passage_from_row(p) for p in step) for step in row["passages"]),
            "chain": tuple(row["chain"]),
        }
    )
