"""Committed rollouts -> filter -> verify -> the trajectories that are kept, and the manifest that says what they are.

- The same shards give the same bytes: parts follow the questions, and no times are written.
- A part is one task over some shards; memory does not grow with the number of questions.
- data/kept/ is swapped in as a whole folder, and its files' SHA-256 stand in the manifest.

Ray runs the tasks (core/tasks.py); nothing here knows it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from steper_ray.config import BuildConfig, Config
from steper_ray.core.errors import DataError
from steper_ray.core.files import remove_folder, replace_folder, storing, write_table, write_text
from steper_ray.core.fingerprints import code_digest, digest
from steper_ray.core.tasks import in_order
from steper_ray.data.columns import Columns
from steper_ray.data.dropped import Dropped, page
from steper_ray.data.filtering import choose, reason_to_drop
from steper_ray.data.manifest import manifest_of
from steper_ray.data.report import BuildReport
from steper_ray.data.seal import SEAL, damaged, read_seal, seal
from steper_ray.data.tally import Tally, VerifierCount
from steper_ray.data.verify import (
    MODEL_VERIFIERS,
    UNSCORED,
    UNVERIFIED,
    explain,
    first_failure,
    score_steps,
    thresholds,
)
from steper_ray.rollouts.scores import ScoreStore
from steper_ray.rollouts.set import RolloutSet
from steper_ray.rollouts.shards import ShardStore
from steper_ray.schema import SCORE_SCHEMA, StepScore, to_row

QUESTIONS_A_PART = 1024  # bounds the memory of a task; a part is one file
KEPT, SCORES = "kept", "step_scores"


@dataclass(frozen=True, slots=True)
class _Part:
    """One task: the shards of every set, number by number, and where its files go."""

    number: int
    stores: tuple[tuple[ShardStore, tuple[Path, ...]], ...]
    shards: tuple[tuple[str, ...], ...]
    """Shard ids, one tuple a set."""
    build: BuildConfig
    max_steps: int
    kept: Path
    scores: Path


@dataclass(frozen=True, slots=True)
class _Done:
    """The result of one task: counts, SHA-256 of its files, lines of dropped.jsonl and pages of dropped.md."""

    tally: Tally
    kept: str
    dropped: Dropped


def assemble(
    config: Config, sets: Sequence[RolloutSet], *, run: int, skipped: int, passages: str = ""
) -> BuildReport:
    """Writes run_dir/data/: kept/, step_scores/, dropped.jsonl and .md, owed.jsonl, manifest.json, report.json.

    `sets` are the teachers', the first one first; `run` shards were made just now, `skipped` records of the corpus were
    omitted, `passages` is a line on its long ones. Nothing is written where the same shards were assembled before.
    Raises DamagedShardError.
    """
    folder = config.run_dir / "data"
    made_of = _made_of(config, sets, skipped)
    if (report := _finished(folder, made_of, run)) is not None:
        return report
    fresh = {name: folder / f"{name}.writing" for name in (KEPT, SCORES)}
    for path in fresh.values():
        remove_folder(path)
    with storing(folder):
        fresh[KEPT].mkdir(parents=True)
    tally, dropped, files = Tally(), Dropped(), dict[str, str]()
    for number, done in enumerate(in_order(_assemble_part, _parts(config, sets, fresh))):
        tally += done.tally
        dropped.extend(done.dropped)
        files[_name(number)] = done.kept
    for name in ("manifest.json", SEAL):  # never old checksums beside new files
        (folder / name).unlink(missing_ok=True)
    dropped.write(folder)
    owed = [asdict(one) for found in sets for one in found.owed()]
    write_text(folder / "owed.jsonl", "".join(json.dumps(one) + "\n" for one in owed))
    replace_folder(fresh[KEPT], folder / KEPT)
    if fresh[SCORES].exists():
        replace_folder(fresh[SCORES], folder / SCORES)
    else:
        remove_folder(folder / SCORES)
    report = BuildReport(
        questions=sets[0].questions.count,
        questions_kept=tally.questions_kept,
        trajectories=tally.trajectories,
        kept=tally.kept,
        **tally.counts(),
        recall=tally.recall,
        recall_trajectories=tally.recall_trajectories,
        mean_steps=tally.mean_steps,
        k=config.reasoning.k,
        skipped=skipped,
        shards=sum(len(found.questions) for found in sets),
        shards_run=run,
        folder=folder,
        owed=len({one["question"] for one in owed}),
        rejected=tally.rejected,
        passages=passages,
        found_nothing=tally.found_nothing,
        verifiers=tally.verifiers,
        sources=tally.sources,
        facts=tally.facts,
    )
    write_text(
        folder / "manifest.json", json.dumps(manifest_of(config, sets, report, files), indent=1) + "\n"
    )
    seal(folder, made_of, report.to_json())
    return report


def grouped(columns: Columns) -> Iterator[list[int]]:
    """The rows of each question, in the order in which the questions come."""
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(columns.questions):
        rows.setdefault(question, []).append(row)
    yield from rows.values()


def _name(number: int) -> str:
    return f"part-{number:05}.parquet"


def _parts(config: Config, sets: Sequence[RolloutSet], fresh: dict[str, Path]) -> Iterator[_Part]:
    stores = tuple((found.spec.store, tuple(found.spec.scores.values())) for found in sets)
    shards = [found.shards for found in sets]
    size = max(1, QUESTIONS_A_PART // sets[0].questions.shard_size)
    for number, start in enumerate(range(0, len(shards[0]), size)):
        yield _Part(
            number,
            stores,
            tuple(tuple(ids[start : start + size]) for ids in shards),
            config.build,
            config.reasoning.max_steps,
            fresh[KEPT].resolve(),
            fresh[SCORES].resolve(),
        )


def _assemble_part(part: _Part) -> _Done:
    least = thresholds(part.build.verify)
    tally, dropped = Tally(verifiers={name: VerifierCount(value) for name, value in least.items()}), Dropped()
    kept, scores = list[pa.Table](), list[StepScore]()
    for shard in zip(*part.shards, strict=True):
        pairs = zip(part.stores, shard, strict=True)
        columns = Columns([store.table(one) for (store, _), one in pairs])
        asked = _asked(part, shard, columns)
        rows = _filter(columns, part, least, asked, tally, dropped, scores)
        kept.append(columns.settled(rows))
    sha256 = write_table(part.kept / _name(part.number), pa.concat_tables(kept))
    if least:
        table = pa.Table.from_pylist([to_row(score) for score in scores], schema=SCORE_SCHEMA)
        write_table(part.scores / _name(part.number), table)
    return _Done(tally, sha256, dropped)


def _asked(part: _Part, shard: Sequence[str], columns: Columns) -> dict[str, list[StepScore]]:
    """The scores that models gave to the trajectories of one shard, by trajectory id."""
    found: dict[str, list[StepScore]] = {}
    if any(folders for _, folders in part.stores):
        trajectories = [columns.trajectory(row) for row in range(len(columns))]
        for (_, folders), one in zip(part.stores, shard, strict=True):
            for folder in folders:
                for key, scored in ScoreStore(folder).read(one, trajectories).items():
                    found.setdefault(key, []).extend(scored)
    return found


def _filter(
    columns: Columns,
    part: _Part,
    least: dict[str, float],
    asked: dict[str, list[StepScore]],
    tally: Tally,
    dropped: Dropped,
    scores: list[StepScore],
) -> list[int]:
    """The rows to keep; everything else is counted and noted."""
    build, plain, recalls = part.build, columns.plain, columns.recalls()
    models = least.keys() & set(MODEL_VERIFIERS)
    kept = list[int]()
    for rows in grouped(columns):
        reasons, errors = list[str | None](), list[str | None]()
        scored = list[list[StepScore]]()
        for row in rows:
            stop, error = columns.stop_reasons[row], plain["error"][row]
            reason = reason_to_drop(stop, plain["answer"][row], columns.answers[row], error, build.match)
            of_row = list[StepScore]()
            if least:
                trajectory = columns.trajectory(row)
                of_row = [*score_steps(trajectory, list(least)), *asked.get(trajectory.id, ())]
                if reason is None and not models <= {score.verifier for score in of_row}:
                    reason, error = UNSCORED, "a model has not scored its steps: build again"
                elif reason is None:
                    tally.add_scores(of_row)
                    if (failed := first_failure(of_row, least)) is not None:
                        reason, error = UNVERIFIED + failed.verifier, explain(failed, least, trajectory)
            reasons.append(reason)
            errors.append(error)
            scored.append(of_row)
        if len(rows) > 1:
            reasons = choose([columns.trajectory(row) for row in rows], reasons, build.keep, build.match)
        for row, reason, error, of_row in zip(rows, reasons, errors, scored, strict=True):
            scores.extend(of_row)
            corrected = plain["attempt"][row] > 0
            stop, source, steps = columns.stop_reasons[row], plain["source"][row], columns.n_steps[row]
            nothing = columns.found_nothing[row]
            tally.add(
                reason, stop, source, steps,
                corrected=corrected, found_nothing=nothing, error=plain["error"][row],
            )  # fmt: skip
            if (recall := recalls[row]) is not None:
                tally.add_recall(recall, part.max_steps)
            if reason is None:
                _check_chain(columns, row)
                tally.facts.add(columns.supported(row), columns.injected(row))
                kept.append(row)
            else:
                dropped.add(columns.trajectory_id(row), reason, error, _page(columns, row, error, of_row))
        tally.add_question(kept=None in reasons)
    return kept


def _page(columns: Columns, row: int, error: str | None, scored: Sequence[StepScore]) -> Any:
    return lambda: page(columns.trajectory(row), error, scored)


def _check_chain(columns: Columns, row: int) -> None:
    if columns.took_back[row]:
        raise DataError(
            f"trajectory '{columns.trajectory_id(row)}': a step took back what it wrote, so its steps are not those of "
            "its chain: make trajectories to learn from with reasoning.stop=fixed"
        )


def _made_of(config: Config, sets: Sequence[RolloutSet], skipped: int) -> str:
    """A digest of everything that decides what is written."""
    parts = []
    for found in sets:
        manifests = found.spec.store.manifests(found.shards)
        files = [(one.id, one.sha256, len(one.owed)) if one is not None else None for one in manifests]
        stores = [ScoreStore(path) for path in found.spec.scores.values()]
        scores = [[store.folder.name, *map(store.sha256, found.shards)] for store in stores]
        parts.append([found.spec.identity, files, scores])
    settings = json.loads(config.model_dump_json(exclude={"train", "serve", "demo", "evaluate"}))
    return digest([code_digest(), QUESTIONS_A_PART, settings, parts, skipped])


def _finished(folder: Path, made_of: str, run: int) -> BuildReport | None:
    """The report of an earlier call, if its files stand as they were written."""
    try:
        sealed = read_seal(folder)
        if sealed["made_of"] != made_of or any(damaged(folder, sealed, name) for name in sealed["files"]):
            return None
        return BuildReport.from_json(sealed["report"], folder=folder, shards_run=run)
    except (DataError, KeyError, TypeError):
        return None
