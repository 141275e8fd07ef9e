"""Kept trajectories as the single-step baselines of Table 1 learn them: the passages of one search, and one text.

- `kard` (Kang et al. 2023): passages found with the teacher's rationale; the rationale. KARD's reranker, which at
  inference looks for what that search would have found, is not built.
- `chain_of_note` (Yu et al. 2023): passages found with the question; a note on each, then what no passage tells.
- `sail` (Luo et al. 2023): passages found with the question; which of them inform and which distract, then the
  rationale. `core.claims` decides in place of SAIL's entailment model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from steper_ray.config import Config, ReasoningConfig, RetrievalConfig
from steper_ray.core.answers import extract_answer
from steper_ray.core.claims import Ground
from steper_ray.core.errors import DataError
from steper_ray.core.files import (
    file_sha256,
    read_table,
    remove_folder,
    replace_folder,
    storing,
    write_table,
    write_text,
)
from steper_ray.core.fingerprints import code_digest, digest
from steper_ray.core.locks import locked
from steper_ray.core.progress import Bar
from steper_ray.core.sentences import split_sentences
from steper_ray.core.tasks import in_order
from steper_ray.frameworks import framework_of
from steper_ray.reasoning.passages import PassagePool
from steper_ray.retrieval import open_index, search_settings
from steper_ray.retrieval.base import Retriever
from steper_ray.rollouts.sources import open_source
from steper_ray.schema import TRAJECTORY_SCHEMA, Passage, Step, Trajectory, to_row, trajectory_from_row

_SEARCHES = 64  # trajectories whose passages are asked for at once


def form_folder(run_dir: Path, form: str) -> Path:
    """The trajectories of a form: what training reads."""
    return run_dir / "data" / "forms" / form / "kept"


def make_form(config: Config) -> Path:
    """Writes the kept trajectories of the build in the form of `train.form`; returns `form_folder`.

    Nothing is done where the same trajectories stand there in the same form. Raises DataError where there is no
    build, RetrievalError and StorageError.
    """
    with locked(config.run_dir, "build"):
        return _make(config)


def _make(config: Config) -> Path:
    form, run_dir = config.train.form, config.run_dir.resolve()
    build = run_dir / "data" / "manifest.json"
    try:
        files: Mapping[str, str] = json.loads(build.read_text(encoding="utf-8"))["kept_sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{build}: no finished build here: run the build stage first") from error
    source = open_source(config.corpus, config.retrieval, run_dir, config.build.shard_size)
    how = [search_settings(config.retrieval), config.reasoning.model_dump(mode="json")]
    made_of = digest([code_digest(), form, source.corpus, how, files])
    folder = form_folder(run_dir, form)
    manifest = folder.parent / "manifest.json"
    if _is_made(manifest, folder, made_of):
        return folder
    fresh = folder.with_name("kept.writing")
    remove_folder(fresh)
    with storing(folder.parent):
        fresh.mkdir(parents=True)
    part = _Part(form, config.reasoning, config.retrieval, source.index, source.corpus, fresh)
    kept = [(run_dir / "data" / "kept" / name, sha256) for name, sha256 in files.items()]
    written, bar = dict[str, str](), Bar(form, "files", len(files))
    for name, sha256 in zip(files, in_order(partial(_write, part), kept), strict=True):
        written[name] = sha256
        bar.show(len(written))
    bar.close()
    manifest.unlink(missing_ok=True)
    replace_folder(fresh, folder)
    write_text(manifest, json.dumps({"made_of": made_of, "kept_sha256": written}, indent=1) + "\n")
    return folder


def _is_made(manifest: Path, folder: Path, made_of: str) -> bool:
    try:
        noted = json.loads(manifest.read_text(encoding="utf-8"))
        files = noted["kept_sha256"].items()
        return noted["made_of"] == made_of and all(file_sha256(folder / name) == sha for name, sha in files)
    except (OSError, ValueError, KeyError, AttributeError):
        return False


@dataclass(frozen=True, slots=True)
class _Part:
    """What the tasks share."""

    form: str
    reasoning: ReasoningConfig
    retrieval: RetrievalConfig
    index: Path
    corpus: str
    folder: Path


def _write(part: _Part, kept: tuple[Path, str]) -> str:
    """One file of kept trajectories in the form; returns its SHA-256."""
    path, sha256 = kept
    retriever = open_index(part.index, part.retrieval, part.corpus)
    rows = list[dict[str, Any]]()
    for batch in read_table(path, sha256).to_batches(_SEARCHES):
        trajectories = [trajectory_from_row(row) for row in batch.to_pylist()]
        rows += map(to_row, single_steps(trajectories, retriever, part.reasoning, part.form))
    return write_table(part.folder / path.name, pa.Table.from_pylist(rows, schema=TRAJECTORY_SCHEMA))


def single_steps(
    trajectories: Sequence[Trajectory], retriever: Retriever, reasoning: ReasoningConfig, form: str
) -> list[Trajectory]:
    """Each trajectory as one step: a search for `reasoning.k` passages, and the text of the form."""
    queries = [" ".join(one.chain) if form == "kard" else one.question.text for one in trajectories]
    made = []
    for one, query, found in zip(trajectories, queries, retriever.search(queries, reasoning.k), strict=True):
        hits = PassagePool(reasoning).add(found)
        text = _TEXTS[form](one, [hit.passage for hit in hits])
        made.append(replace(one, steps=(Step(1, query, hits, text),)))
    return made


def _rationale(trajectory: Trajectory, _: Sequence[Passage] = ()) -> str:
    framework = framework_of(trajectory.framework)
    return framework.clean(framework.layout.joiner.join(trajectory.chain))


def _notes(trajectory: Trajectory, passages: Sequence[Passage]) -> str:
    told, rest = _told(trajectory, passages)
    notes = [
        f"Passage {number} tells: {' '.join(told[number])}"
        if number in told
        else f"Passage {number} tells nothing."
        for number in range(1, len(passages) + 1)
    ]
    return framework_of(trajectory.framework).layout.joiner.join([*notes, *rest]).strip()


def _marked(trajectory: Trajectory, passages: Sequence[Passage]) -> str:
    told, _ = _told(trajectory, passages)
    marks = [
        f"Passage {number} is {'informative' if number in told else 'distracting'}."
        for number in range(1, len(passages) + 1)
    ]
    joiner = framework_of(trajectory.framework).layout.joiner
    return joiner.join([*marks, _rationale(trajectory)]).strip()


def _told(trajectory: Trajectory, passages: Sequence[Passage]) -> tuple[dict[int, list[str]], list[str]]:
    """The sentences of a chain by the number of the one passage that holds all they claim, from 1; and the others."""
    ground = Ground(trajectory.question.text, passages)
    told, rest = dict[int, list[str]](), list[str]()
    lines = (line for piece in trajectory.chain for line in piece.split("\n"))
    for sentence in (sentence for line in lines for sentence in split_sentences(line)):
        found = ground.of(sentence)
        if extract_answer(sentence) is None and found and not found.missing and len(found.passages) == 1:
            told.setdefault(found.passages[0] + 1, []).append(sentence)
        else:
            rest.append(sentence)
    return told, rest


_TEXTS: Mapping[str, Callable[[Trajectory, Sequence[Passage]], str]] = {
    "kard": _rationale,
    "chain_of_note": _notes,
    "sail": _marked,
}
