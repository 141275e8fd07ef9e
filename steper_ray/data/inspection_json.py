"""An inspected data set as one plain object, for machines. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from steper_ray.data.inspection import DataSet, Inspection, Seen
from steper_ray.data.measures import ExampleLengths, StepCost, spread
from steper_ray.schema import Ability, to_row


def as_object(data: DataSet, found: Inspection, shown: Iterable[Seen] = ()) -> dict[str, Any]:
    """All figures of the summary, and the trajectories that were asked for. A spread that has no values is None."""
    counts = data.manifest["counts"]
    return {
        "run": data.folder.resolve().parent.name,
        "code": data.manifest["code"],
        "questions": counts["questions"],
        "questions_kept": counts["questions_kept"],
        "trajectories": found.trajectories,
        "fates": dict(sorted(found.fates.items())),
        "hops": _pairs("hops", found.hops),
        "teachers": _pairs("source", found.sources),
        "kept": {
            "steps": _spread(found.steps_kept),
            "passages": _spread(found.passages),
            "words_a_step": _spread(found.words),
        },
        "examples": {one.value: _lengths(found.lengths.get(one, ExampleLengths())) for one in Ability},
        "recall_after_step": data.recall,
        "steps": [_cost(cost) for cost in found.costs],
        "cost": _cost(found.cost) | {"engine_seconds_at_least": found.cost.engine_seconds(data.in_flight)},
        "repeats": {"texts": found.repeats.texts, "chains": found.repeats.chains},
        "shown": [
            {"id": s.trajectory.id, "fate": s.fate, "error": s.error, "trajectory": to_row(s.trajectory)}
            for s in shown
        ],
    }


def _pairs(name: str, counts: dict[Any, tuple[int, int]]) -> list[dict[str, Any]]:
    rows = sorted(counts.items(), key=lambda pair: (pair[0] is not None, pair[0]))
    return [{name: key, "trajectories": n, "kept": kept} for key, (n, kept) in rows]


def _lengths(of: ExampleLengths) -> dict[str, Any]:
    return {"n": of.n} | {one.name: _spread(getattr(of, one.name)) for one in fields(of)}


def _cost(cost: StepCost) -> dict[str, Any]:
    return asdict(cost) | {"fresh_tokens": cost.fresh_tokens, "retrieval_share": cost.retrieval_share}


def _spread(counts: Counter[int]) -> dict[str, int] | None:
    three = spread(counts)
    return None if three is None else dict(zip(("median", "p95", "most"), three, strict=True))
