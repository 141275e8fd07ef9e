"""A corpus made ready for rollouts: its questions as a file, its index, its fingerprint.

- Tasks read the corpus, so that the driver's memory does not grow with it.
- A corpus whose files have not changed is not read again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from steper_ray.config import CorpusConfig, RetrievalConfig
from steper_ray.core.files import write_text
from steper_ray.core.tasks import in_order
from steper_ray.corpora import open_corpus
from steper_ray.corpora.files import absolute
from steper_ray.retrieval import ensure_index, index_folder, long_passages
from steper_ray.rollouts.questions import QuestionFile, known_questions, write_questions
from steper_ray.schema import Question


@dataclass(frozen=True, slots=True)
class Source:
    """The questions, the folder of the finished index, and the fingerprint of the passages."""

    questions: QuestionFile
    index: Path
    corpus: str

    def long_passages(self, limit: int, happens: str) -> str:
        """A line on the passages of more than `limit` characters, empty where there are none."""
        found = long_passages(self.index, limit)
        return found.summary(happens) if found else ""


def open_source(
    corpus: CorpusConfig,
    retrieval: RetrievalConfig,
    run_dir: Path,
    shard_size: int,
    *,
    questions: Sequence[Question] | None = None,
    answered: bool = True,
    num_cpus: float = 1,
) -> Source:
    """Reads and indexes what is not there yet below `run_dir`; `questions` replace those of the corpus.

    With `answered`, a question without an answer is a malformed record.
    Raises DataError, RetrievalError and StorageError.
    """
    run_dir, corpus = run_dir.resolve(), _absolute(corpus)
    (fingerprint,) = in_order(_fingerprint, [corpus], num_cpus)
    folder = index_folder(retrieval, run_dir, fingerprint)
    list(in_order(partial(_index, retrieval, folder, fingerprint), [corpus], num_cpus))
    if questions is not None:
        return Source(write_questions(run_dir / "questions", questions, shard_size), folder, fingerprint)
    name = open_corpus(corpus).source(answered=answered)
    file = known_questions(run_dir / "questions", shard_size, name)
    if file is None:
        write = partial(_questions, run_dir / "questions", shard_size, name, answered)
        (file,) = in_order(write, [corpus], num_cpus)
    return Source(file, folder, fingerprint)


def _absolute(corpus: CorpusConfig) -> CorpusConfig:
    """A task may run in another folder."""
    paths = {"questions": corpus.questions, "passages": corpus.passages, "qrels": corpus.qrels}
    return corpus.model_copy(update={name: absolute(path) for name, path in paths.items()})


def _fingerprint(corpus: CorpusConfig) -> str:
    return open_corpus(corpus).fingerprint()


def _index(retrieval: RetrievalConfig, folder: Path, fingerprint: str, corpus: CorpusConfig) -> None:
    ensure_index(open_corpus(corpus).passages(), retrieval, folder, fingerprint)


def _questions(
    folder: Path, shard_size: int, name: str, answered: bool, corpus: CorpusConfig
) -> QuestionFile:
    """The file of questions, and beside it skipped-*.jsonl: file, record and reason of what the corpus leaves out."""
    opened = open_corpus(corpus)
    opened.fingerprint()  # what the passages leave out counts too

    def skipped() -> int:
        if opened.skipped:
            lines = (json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in opened.skipped)
            write_text(folder / f"skipped-{name[:16]}.jsonl", "".join(lines))
        return len(opened.skipped)

    return write_questions(folder, opened.questions(answered=answered), shard_size, name, skipped)
