"""A built data set as a folder for others: what `datasets.load_dataset` reads as it is, with a data card.

Two configs, `examples` and `trajectories` (those that were kept), in numbered Parquet files; a manifest.json with all
that the data was made from. One shard of trajectories is in memory at a time. No engine, no Ray.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from steper_ray.core.errors import DataError
from steper_ray.core.files import new_folder, read_table, write_text
from steper_ray.core.fingerprints import digest
from steper_ray.core.splits import draw
from steper_ray.data.examples import make_examples
from steper_ray.data.export_card import card
from steper_ray.data.inspection import KEPT, DataSet, Inspection
from steper_ray.data.portable import portable
from steper_ray.data.rows import NumberedFiles
from steper_ray.frameworks import framework_of
from steper_ray.schema import (
    EXAMPLE_SCHEMA,
    TRAJECTORY_SCHEMA,
    StepExample,
    Trajectory,
    to_row,
    trajectory_from_row,
)

ROWS_A_GROUP = 512  # of some 30 KB each: what is in memory
FILE_BYTES = 500_000_000  # before compression, as data sets of the hub are cut
_VERSION = 1
_MARK = "steper_export"  # the key of manifest.json that marks an export

# Plain Arrow types say all that `datasets` needs to know. Its own notes in the files' metadata are omitted: their
# names for lists changed between its versions, and an older one refuses those of a newer one.
SCHEMAS = {
    "examples": EXAMPLE_SCHEMA.append(pa.field("prompt", pa.string())).append(
        pa.field("completion", pa.string())
    ),
    "trajectories": TRAJECTORY_SCHEMA.insert(0, pa.field("id", pa.string())),
}


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Rows of each config and split, and the questions of each split."""

    folder: Path
    rows: dict[str, dict[str, int]]
    questions: dict[str, int]

    def summary(self) -> str:
        lines = [
            f"{split:11} {count:,} questions, "
            + ", ".join(f"{rows[split]:,} {config}" for config, rows in self.rows.items())
            for split, count in self.questions.items()
        ]
        return "\n".join([*lines, f"written to  {self.folder}"])


def split_of(question_id: str, validation: float) -> str:
    """`validation` for about this share of the questions, else `train`: the same one in every export."""
    return "validation" if draw(question_id) < validation else "train"


def export(run_dir: Path, out: Path, *, validation: float = 0.0, language: str = "en") -> ExportReport:
    """Writes the data set of a run to `out`, as a whole or not at all; an export that is there is replaced.

    `validation` is the share of questions that are held out, 0 for none. Raises DataError where there is no finished
    build, where its files are of different builds, or where `out` is something else.
    """
    if not 0 <= validation < 1:
        raise DataError(f"--validation {validation}: a share of the questions, at least 0 and below 1")
    _check_free(out)
    data = DataSet(run_dir)
    with new_folder(out) as fresh:
        report, found = _write_rows(data, fresh, out, validation)
        _check_splits(report)
        manifest = _manifest(data.manifest, report, validation)
        write_text(fresh / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        title = run_dir.resolve().name
        text = card(title, manifest, found, SCHEMAS, language)
        write_text(fresh / "README.md", text)
    return report


def _check_free(out: Path) -> None:
    if not out.exists():
        return
    try:
        ours = _MARK in json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise DataError(f"{out}: exists and is no export: name another folder, or remove it")


def _check_splits(report: ExportReport) -> None:
    """`datasets` opens no split without rows."""
    empty = [split for split, questions in report.questions.items() if not questions]
    if len(empty) == len(report.questions):
        raise DataError("nothing was kept, so there is nothing to export: see dropped.md of the run")
    if empty:
        raise DataError(
            f"no question falls into the split '{empty[0]}': choose another --validation, or none"
        )


def _write_rows(data: DataSet, fresh: Path, out: Path, validation: float) -> tuple[ExportReport, Inspection]:
    splits = ["train", "validation"] if validation else ["train"]
    files = {
        config: {
            split: NumberedFiles(
                fresh / "data" / config, split, schema, rows_a_group=ROWS_A_GROUP, file_bytes=FILE_BYTES
            )
            for split in splits
        }
        for config, schema in SCHEMAS.items()
    }
    found, questions, last = Inspection(), Counter(dict.fromkeys(splits, 0)), None
    kept = _kept(data)
    for seen in data:
        found.add(seen)
        if seen.fate != KEPT:
            continue
        trajectory = seen.trajectory
        settled = next(kept, None)
        if settled is None or settled.id != trajectory.id:
            held = None if settled is None else settled.id
            raise _torn(data, f"{trajectory.id!r} was kept, data/kept holds {held!r} in its place")
        split = split_of(trajectory.question.id, validation)
        questions[split] += trajectory.question.id != last  # the samples of a question follow each other
        last = trajectory.question.id
        files["trajectories"][split].add([_trajectory_row(trajectory)])
        files["examples"][split].add(map(_with_text, make_examples(settled)))
    if (left := next(kept, None)) is not None:
        raise _torn(data, f"data/kept holds {left.id!r}, which was not kept")
    counts = {config: {split: f.rows for split, f in of.items()} for config, of in files.items()}
    for of_config in files.values():
        for written in of_config.values():
            written.close()
    return ExportReport(out, counts, dict(questions)), found


def _kept(data: DataSet) -> Iterator[Trajectory]:
    """The trajectories of all parts, one part in memory at a time; each part is verified against the manifest."""
    if "kept_sha256" not in data.manifest:
        raise _torn(data, "an earlier version built them and kept examples, not trajectories")
    for name, sha256 in sorted(data.manifest["kept_sha256"].items()):
        try:
            rows = read_table(data.folder / "kept" / name, sha256).to_pylist()
        except DataError as error:
            raise _torn(data, str(error)) from error
        yield from map(trajectory_from_row, rows)


def _torn(data: DataSet, what: str) -> DataError:
    return DataError(
        f"{data.folder}: files of different builds: {what}. Build again: finished shards are kept"
    )


def _with_text(example: StepExample) -> dict[str, Any]:
    """The example with the text of its prompt and of its target, in the layout that the project trains with."""
    layout = framework_of(example.framework).layout
    passages = [passage for step in example.passages for passage in step]
    prompt = layout.text(example.question, passages, ())
    return {
        **to_row(example),
        "prompt": prompt,
        "completion": "".join(layout.chain_segments(example.chain)),
    }


def _trajectory_row(trajectory: Trajectory) -> dict[str, Any]:
    """The answer is the data's own text; the other plain columns say where a trajectory comes from."""
    row = to_row(trajectory)
    return {"id": trajectory.id} | {
        name: portable(value) if isinstance(value, str) and name != "answer" else value
        for name, value in row.items()
    }


def _manifest(manifest: dict[str, Any], report: ExportReport, validation: float) -> dict[str, Any]:
    """That of the build, with the settings of this data set alone, and nothing that holds on one machine only."""
    config = manifest["config"]
    sections = ["corpus", "retrieval", "reasoning", "build"]
    if config["build"]["teacher"] == "engine":
        sections[2:2] = ["engine", "sampling"]
    held_out = {"validation": validation, "questions": report.questions, "rows": report.rows}
    teachers = [teacher["identity"] for teacher in manifest["teachers"]]
    rest = {key: value for key, value in manifest.items() if key not in ("config", "teachers")}
    rest["kept_sha256"] = digest(manifest["kept_sha256"])  # the build's files are not these
    kept = {**rest, "teachers": teachers, "config": {name: config[name] for name in sections}}
    # The digests are those of the run, under which its shards lie: taken before paths are cut.
    identity = {"identity_sha256": [digest(teacher) for teacher in teachers]}
    return {_MARK: _VERSION, "splits": held_out, **identity, **portable(kept)}
